// AVX2 with FMA; x86 alone.
#include "table.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include "target.h"

TARGET("avx2,fma")

namespace omnisparse {
namespace {

const char kName[] = "avx2";
constexpr int kGroup = 2;
constexpr bool kOffset = false;
using Number = int16_t;
using Weight = int16_t;

#include "vectors_avx2.h"

using Wide = Narrow;
using WideWhole = Narrow;

#include "whole16.h"

}  // namespace

#include "body.h"

const KernelTable* avx2_table() { return &kTable; }

}  // namespace omnisparse

END_TARGET

#else
namespace omnisparse {
const KernelTable* avx2_table() { return nullptr; }
}  // namespace omnisparse
#endif
