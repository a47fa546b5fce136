// TARGET("avx2,fma") at the top of a file: what follows is compiled for these instruction
// sets, whatever the compiler was told for the rest. To the end of the file: GCC compiles
// what a template makes there as the end says.
#pragma once

#define OMNISPARSE_PRAGMA(x) _Pragma(#x)
#if defined(__clang__)
#define TARGET(sets) \
  OMNISPARSE_PRAGMA(clang attribute push(__attribute__((target(sets))), apply_to = function))
#define END_TARGET _Pragma("clang attribute pop")
#else
#define TARGET(sets) OMNISPARSE_PRAGMA(GCC target(sets))
#define END_TARGET
#endif
