// Sixteen floats at a time, from fp32 or bf16 memory, and the exponential.
//
// GCC's and Clang's vector extensions: the compiler lowers them to whatever registers the processor has. Row tails are
// handled by loads and stores of n < 16 elements; what is not loaded is zero.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

typedef float f16 __attribute__((vector_size(64)));
typedef int32_t i16 __attribute__((vector_size(64)));
typedef uint32_t u16 __attribute__((vector_size(64)));
typedef uint16_t h16 __attribute__((vector_size(32)));

struct bf16 {
  uint16_t bits;
};

static inline f16 splat(float x) { return f16{} + x; }

static inline f16 load(const float* p) {
  f16 v;
  memcpy(&v, p, 64);
  return v;
}
static inline f16 load(const bf16* p) {
  h16 h;
  memcpy(&h, p, 32);
  return (f16)(__builtin_convertvector(h, u16) << 16);
}
static inline void store(float* p, f16 v) { memcpy(p, &v, 64); }

// To nearest, ties to even; a NaN stays one.
static inline h16 rounded(f16 v) {
  u16 bits = (u16)v;
  u16 up = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  u16 quiet = (bits >> 16) | 0x40;
  u16 nan = (u16)((bits & 0x7fffffff) > 0x7f800000);
  return __builtin_convertvector((up & ~nan) | (quiet & nan), h16);
}
static inline void store(bf16* p, f16 v) {
  h16 h = rounded(v);
  memcpy(p, &h, 32);
}

static inline f16 load(const float* p, int n) {
  f16 v = {};
  memcpy(&v, p, 4 * (size_t)n);
  return v;
}
static inline f16 load(const bf16* p, int n) {
  h16 h = {};
  memcpy(&h, p, 2 * (size_t)n);
  return (f16)(__builtin_convertvector(h, u16) << 16);
}
static inline void store(float* p, f16 v, int n) { memcpy(p, &v, 4 * (size_t)n); }
static inline void store(bf16* p, f16 v, int n) {
  h16 h = rounded(v);
  memcpy(p, &h, 2 * (size_t)n);
}

// A row of any width, sixteen numbers at a time and the rest at its end: f(first, how many).
template <class F>
static inline void over(int64_t width, F&& f) {
  int64_t i = 0;
  for (; i + 16 <= width; i += 16) f(i, 16);
  if (i < width) f(i, (int)(width - i));
}
template <class T>
static inline f16 some(const T* p, int n) {
  return n == 16 ? load(p) : load(p, n);
}
template <class T>
static inline void some(T* p, f16 v, int n) {
  n == 16 ? store(p, v) : store(p, v, n);
}

// What a vector would be after a trip through memory of this type.
static inline f16 through(f16 v, const float*) { return v; }
static inline f16 through(f16 v, const bf16*) { return (f16)(__builtin_convertvector(rounded(v), u16) << 16); }

static inline float total(f16 v) {
  float s = 0;
  for (int i = 8; i; i /= 2)
    for (int j = 0; j < i; j++) v[j] += v[j + i];
  return s + v[0];
}

static inline f16 either(i16 mask, f16 yes, f16 no) { return mask ? yes : no; }

// e^x to about 1e-7 of itself: e^x = 2^n e^r, n the nearest whole number to x log2(e), |r| <= ln(2) / 2. Rounding to n
// goes through the bits of 1.5 2^23 + y, which no compiler that reorders sums can undo. Returns e^r.
static inline f16 exponential_parts(f16 x, i16& n) {
  const f16 magic = splat(12582912.0f);
  n = (i16)(x * 1.44269504f + magic) - (i16)magic;
  f16 whole = __builtin_convertvector(n, f16);
  f16 r = x - whole * 0.693359375f;  // ln 2 in two parts: the first has few bits, so its products are exact
  r = r + whole * 2.12194440e-4f;
  // 1 + r + r^2 q(r), q through the values at Chebyshev's nodes: off by 1e-8.
  f16 p = splat(0.00139262508f);
  p = p * r + 0.00836323288f;
  p = p * r + 0.0416665542f;
  p = p * r + 0.166665767f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  return p * r + 1.0f;
}

// Zero below -87.3, infinite above 88.7; a NaN stays one.
static inline f16 exponential(f16 x) {
  const f16 low = splat(-87.3f), high = splat(88.7f);
  i16 n;
  f16 p = exponential_parts(either(x < low, low, either(x > high, high, x)), n);
  // 2^n in two factors: n = 128 alone has no exponent.
  i16 half = n >> 1;
  f16 scaled = p * (f16)((half + 127) << 23) * (f16)((n - half + 127) << 23);
  scaled = either(x < low, f16{}, scaled);
  return either(x > high, splat(INFINITY), scaled);
}

// The same where x is known not to exceed 80, as under a softmax.
static inline f16 decayed(f16 x) {
  const f16 low = splat(-87.3f);
  i16 n;
  f16 p = exponential_parts(either(x < low, low, x), n);
  return either(x < low, f16{}, p * (f16)((n + 127) << 23));
}
