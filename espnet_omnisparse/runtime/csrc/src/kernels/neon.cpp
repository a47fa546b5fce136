// NEON of 64-bit ARM.
#include "table.h"

namespace omnisparse {
const KernelTable* neon_table() { return nullptr; }
}  // namespace omnisparse
