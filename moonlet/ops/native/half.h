// One number at a time from fp32 or bf16 memory, in fp32 in between, and the exponential.
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

// exp(x) = 2^n 2^f with n whole and f in [-1/2, 1/2].
static inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 87.0f ? 87.0f : x;
  float n = __builtin_rintf(x * 1.44269504f);
  float f = x * 1.44269504f - n;
  float p = 1.5252734e-5f;  // ln(2)^k / k!
  p = p * f + 1.5403530e-4f;
  p = p * f + 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.0f;
  return p * __builtin_bit_cast(float, (int32_t(n) + 127) << 23);
}
