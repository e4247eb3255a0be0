// One number at a time from fp32 or bf16 memory, in fp32 in between.
#pragma once

#include <cstdint>

enum Half : uint16_t {};  // a bfloat16's bits

static inline float load(float x) { return x; }

static inline float load(Half x) { return __builtin_bit_cast(float, uint32_t(x) << 16); }

static inline void store(float& to, float x) { to = x; }

// To nearest, ties to even.
static inline void store(Half& to, float x) {
  uint32_t bits = __builtin_bit_cast(uint32_t, x);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  // Rounding would carry a NaN's bits over into a zero.
  to = Half((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}
