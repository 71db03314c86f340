// What the vector headers ask of the compiler.
#pragma once

#include <cstdint>

#define DEEPMNN_INLINE inline __attribute__((always_inline))

// Before a loop with a small constant trip count whose arrays must end up in registers.
#if defined(__clang__)
#define DEEPMNN_UNROLL _Pragma("unroll")
#else
#define DEEPMNN_UNROLL _Pragma("GCC unroll 32")
#endif
