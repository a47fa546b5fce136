// Which loops this CPU can run.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "../error.h"
#include "table.h"

namespace omnisparse {
namespace {

bool supported(const char* name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  if (std::strcmp(name, "avx2") == 0) return avx2;
  if (std::strcmp(name, "avx512") == 0) return avx512;
  if (std::strcmp(name, "avx512vnni") == 0)
    return avx512 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi");
#else
  (void)name;
#endif
  return true;
}

// Best first.
std::vector<const KernelTable*> tables() {
  std::vector<const KernelTable*> found;
  for (const KernelTable* table :
       {avx512vnni_table(), avx512_table(), avx2_table(), neon_table(), plain_table()}) {
    if (table != nullptr && supported(table->name)) found.push_back(table);
  }
  return found;
}

const KernelTable* named(const char* name) {
  for (const KernelTable* table : tables()) {
    if (name == nullptr || *name == '\0' || std::strcmp(table->name, name) == 0) return table;
  }
  return nullptr;
}

std::atomic<const KernelTable*>& chosen() {
  static std::atomic<const KernelTable*> table = [] {
    const KernelTable* wanted = named(std::getenv("OMNISPARSE_ISA"));
    return wanted != nullptr ? wanted : named(nullptr);
  }();
  return table;
}

}  // namespace

const KernelTable& kernels() { return *chosen().load(std::memory_order_relaxed); }

void require_isa() {
  const char* wanted = std::getenv("OMNISPARSE_ISA");
  if (named(wanted) == nullptr)
    throw Error("OMNISPARSE_ISA is " + std::string(wanted) + ", and this CPU has " +
                available_isas() + ": name one of these, or unset it.");
}

bool force_isa(const char* name) {
  const KernelTable* table = named(name);
  if (table == nullptr) return false;
  chosen() = table;
  return true;
}

const char* available_isas() {
  static const std::string names = [] {
    std::string all;
    for (const KernelTable* table : tables()) all += (all.empty() ? "" : " ") + std::string(table->name);
    return all;
  }();
  return names.c_str();
}

}  // namespace omnisparse
