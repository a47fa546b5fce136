// AVX-512 without VNNI; x86 alone.
#include "table.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include "target.h"

TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")

namespace omnisparse {
namespace {

const char kName[] = "avx512";
constexpr int kGroup = 2;
constexpr bool kOffset = false;
using Number = int16_t;
using Weight = int16_t;

#include "vectors_avx2.h"
#include "vectors_avx512.h"

using WideWhole = Narrow;

#include "whole16.h"

}  // namespace

#include "body.h"

const KernelTable* avx512_table() { return &kTable; }

}  // namespace omnisparse

END_TARGET

#else
namespace omnisparse {
const KernelTable* avx512_table() { return nullptr; }
}  // namespace omnisparse
#endif
