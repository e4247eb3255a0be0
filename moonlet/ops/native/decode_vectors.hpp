// Sixteen numbers at a time, and the two products of a decode step.
//
//   dots      y[b][o] = sum_k w[o][k] x[b][k]       rows of a matrix against vectors: weights, and keys against queries
//   combine   y[b][j] = sum_k c[b][k] w[k][j]       sums of rows: values, and queries moved into the latent's space
//
// Every y is one sum in sixteen lanes, taken in one order and folded at the end by halves, whatever the other outputs
// and vectors are and whoever computes it: a row's bits do not depend on its company. So nothing here may be reordered
// by the compiler (-fno-associative-math). Weights are float or bfloat16, the arithmetic is float.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

typedef float f16 __attribute__((vector_size(64)));
typedef int32_t i16 __attribute__((vector_size(64)));
typedef uint32_t u16 __attribute__((vector_size(64)));
typedef uint16_t h16 __attribute__((vector_size(32)));

constexpr int LANES = 16;

struct Bf16 {
  uint16_t bits;
};

inline f16 load(const float* p) {
  f16 v;
  memcpy(&v, p, sizeof v);
  return v;
}

inline f16 load(const Bf16* p) {
  h16 v;
  memcpy(&v, p, sizeof v);
  return (f16)(__builtin_convertvector(v, u16) << 16);
}

// The first n < 16 of them and zeros.
template <class T>
inline f16 load_some(const T* p, int64_t n) {
  T lanes[LANES] = {};
  memcpy(lanes, p, n * sizeof(T));
  return load(lanes);
}

inline void store(float* p, f16 v) { memcpy(p, &v, sizeof v); }

inline void store_some(float* p, f16 v, int64_t n) { memcpy(p, &v, n * sizeof(float)); }

inline f16 all(float x) { return x - f16{}; }

inline float value(float x) { return x; }

inline float value(Bf16 x) {
  uint32_t bits = (uint32_t)x.bits << 16;
  float out;
  memcpy(&out, &bits, sizeof out);
  return out;
}

inline void put(float* p, float x) { *p = x; }

// To the nearest, ties to even; NaN stays one.
inline void put(Bf16* p, float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  p->bits = x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Lane i and lane i + 8, then i + 4, i + 2, i + 1. `fold8` does the same for eight sums at once.
inline float fold(f16 v) {
  float a[LANES];
  store(a, v);
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; i++) a[i] += a[i + half];
  return a[0];
}

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (i16){__VA_ARGS__})
#endif

// Halves of a and b, added crosswise: both sums remain, in half the lanes each.
inline f16 halve8(f16 a, f16 b) {
  return SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
         SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}
inline f16 halve4(f16 a, f16 b) {
  return SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
         SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
}
inline f16 halve2(f16 a, f16 b) {
  return SHUFFLE(a, b, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
         SHUFFLE(a, b, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
}

// Eight sums, in the order 0 .. 7, in the lower half.
inline f16 fold8(const f16* a) {
  f16 v = halve2(halve4(halve8(a[0], a[1]), halve8(a[2], a[3])), halve4(halve8(a[4], a[5]), halve8(a[6], a[7])));
  return SHUFFLE(v, v, 0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6, 8, 10, 12, 14) +
         SHUFFLE(v, v, 1, 3, 5, 7, 9, 11, 13, 15, 1, 3, 5, 7, 9, 11, 13, 15);
}

// e^x to about 1e-7 of itself, for x from -87 to 88; what lies beyond is taken as that.
inline f16 exponential(f16 x) {
  x = x < -87.0f ? all(-87.0f) : x;  // written so that NaN stays
  x = x > 88.0f ? all(88.0f) : x;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest whole number in the low bits
  f16 shifted = x * 1.44269504f + magic;
  f16 n = shifted - magic;
  f16 r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  f16 p = all(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  i16 exponent = ((i16)shifted - 0x4b400000 + 127) << 23;
  return p * (f16)exponent;
}

inline f16 sigmoid(f16 x) { return 1.0f / (1.0f + exponential(-x)); }

// Thirty-two numbers. Of bfloat16 two lie in 32 bits, and shifting and masking makes floats of them: so the even ones
// come first, then the odd ones, and what they are multiplied by has to be taken in the same order.
constexpr int PAIR = 2 * LANES;

struct Pair {
  f16 first, second;
};

inline Pair load_pair(const float* p) { return {load(p), load(p + LANES)}; }

inline Pair load_pair(const Bf16* p) {
  u16 v;
  memcpy(&v, p, sizeof v);
  return {(f16)(v << 16), (f16)(v & 0xffff0000u)};
}

template <class T>
inline Pair in_order_of(f16 a, f16 b) {
  if (std::is_same<T, float>::value) return {a, b};
  return {SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
          SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)};
}

template <class T>
inline Pair in_usual_order(f16 a, f16 b) {
  if (std::is_same<T, float>::value) return {a, b};
  return {SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23),
          SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)};
}

// f over n numbers, the last ones in a vector of their own.
template <class F>
inline void each(int64_t n, F f) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) f(i, (int64_t)LANES);
  if (i < n) f(i, n - i);
}

inline f16 get(const float* p, int64_t n) { return n == LANES ? load(p) : load_some(p, n); }

inline void set(float* p, f16 v, int64_t n) {
  if (n == LANES)
    store(p, v);
  else
    store_some(p, v, n);
}

inline float sum_of_squares(const float* x, int64_t n) {
  f16 sum = {};
  each(n, [&](int64_t i, int64_t m) {
    f16 v = get(x + i, m);
    sum += v * v;
  });
  return fold(sum);
}

// Vectors that a matrix is multiplied by: row b begins at base + b * stride, or at index[b] * stride.
struct Rows {
  const float* base;
  int64_t stride, count;
  const int32_t* index = nullptr;
  const float* operator[](int64_t b) const { return base + (index ? index[b] : b) * stride; }
};

#if defined(__AVX512F__)
constexpr int TILE = 8;  // rows of the matrix at a time: with three vectors 24 sums, of 32 registers
#else
constexpr int TILE = 2;
#endif

// TILE rows against N vectors; the sums of vector n go to y + n * LANES. Loops over n and r are written out in full, or
// the sums would live in memory.
template <class T, int N, bool AHEAD>
inline void tile(const T* const* w, const float* const* x, int64_t K, int64_t ahead, float* y) {
  f16 acc[N][TILE];
#pragma GCC unroll 8
  for (int n = 0; n < N; n++)
#pragma GCC unroll 8
    for (int r = 0; r < TILE; r++) acc[n][r] = f16{};
  int64_t k = 0;
  for (; k + PAIR <= K; k += PAIR) {
    Pair v[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) v[n] = in_order_of<T>(load(x[n] + k), load(x[n] + k + LANES));
#pragma GCC unroll 8
    for (int r = 0; r < TILE; r++) {
      const Pair row = load_pair(w[r] + k);
      if (AHEAD) {
        __builtin_prefetch(w[r] + k + ahead);
        if (sizeof(T) == 4) __builtin_prefetch(w[r] + k + ahead + LANES);
      }
#pragma GCC unroll 8
      for (int n = 0; n < N; n++) {
        acc[n][r] += row.first * v[n].first;
        acc[n][r] += row.second * v[n].second;
      }
    }
  }
  for (; k < K; k += LANES) {
    const int64_t some = K - k < LANES ? K - k : LANES;
    f16 v[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) v[n] = get(x[n] + k, some);
#pragma GCC unroll 8
    for (int r = 0; r < TILE; r++) {
      const f16 row = some == LANES ? load(w[r] + k) : load_some(w[r] + k, some);
#pragma GCC unroll 8
      for (int n = 0; n < N; n++) acc[n][r] += row * v[n];
    }
  }
#pragma GCC unroll 8
  for (int n = 0; n < N; n++) {
#if defined(__AVX512F__)
    store(y + n * LANES, fold8(acc[n]));
#else
    for (int r = 0; r < TILE; r++) y[n * LANES + r] = fold(acc[n][r]);
#endif
  }
}

// Outputs first .. last - 1 of each vector, given to sink(b, o, y, count): y[0 .. count - 1] are outputs o, o + 1, ...
template <class T, class Sink>
void dots(const T* w, int64_t stride, int64_t first, int64_t last, const Rows& rows, int64_t K, Sink&& sink) {
  for (int64_t o = first; o < last; o += TILE) {
    const T* p[TILE];
    for (int r = 0; r < TILE; r++) p[r] = w + (o + r < last ? o + r : last - 1) * stride;
    const int64_t count = last - o < TILE ? last - o : TILE;
    // What the next tile reads is asked for while this one is multiplied, by the first vectors only.
    const int64_t ahead = TILE * stride;
    auto take = [&](auto number, int64_t b) {
      constexpr int N = decltype(number)::value;
      const float* x[N];
      for (int n = 0; n < N; n++) x[n] = rows[b + n];
      float y[N * LANES];
      if (b)
        tile<T, N, false>(p, x, K, 0, y);
      else
        tile<T, N, true>(p, x, K, ahead, y);
      for (int n = 0; n < N; n++) sink(b + n, o, (const float*)y + n * LANES, count);
    };
    int64_t b = 0;
    for (; b + 3 <= rows.count && rows.count - b != 4; b += 3) take(std::integral_constant<int, 3>(), b);
    for (; b + 2 <= rows.count; b += 2) take(std::integral_constant<int, 2>(), b);
    if (b < rows.count) take(std::integral_constant<int, 1>(), b);
  }
}

// Rows that lie in blocks of `size`: those of block i begin at base + table[i] * apart. Without a table one block holds
// all of them.
template <class T>
struct Blocks {
  const T* base;
  int64_t stride;
  const int64_t* table = nullptr;
  int64_t apart = 0, size = INT64_MAX;

  const T* operator[](int64_t i) const { return base + (table ? table[i] * apart : 0); }

  // f(from, to, rows): rows from .. to - 1 begin at `rows`.
  template <class F>
  inline void each(int64_t count, F f) const {
    for (int64_t from = 0, i = 0; from < count; i++) {
      const int64_t to = size < count - from ? from + size : count;
      f(from, to, (*this)[i]);
      from = to;
    }
  }
};

// Columns j .. j + 32 C - 1 of N outputs.
template <class T, int N, int C>
inline void combine_tile(const Blocks<T>& w, const float* const* c, int64_t K, float* const* y, int64_t j) {
  Pair acc[N][C] = {};
  w.each(K, [&](int64_t from, int64_t to, const T* rows) {
    const T* row = rows + j;
    for (int64_t k = from; k < to; k++, row += w.stride) {
      Pair v[C];
#pragma GCC unroll 8
      for (int i = 0; i < C; i++) v[i] = load_pair(row + i * PAIR);
#pragma GCC unroll 8
      for (int n = 0; n < N; n++)
#pragma GCC unroll 8
        for (int i = 0; i < C; i++) {
          acc[n][i].first += c[n][k] * v[i].first;
          acc[n][i].second += c[n][k] * v[i].second;
        }
    }
  });
  for (int n = 0; n < N; n++)
    for (int i = 0; i < C; i++) {
      const Pair out = in_usual_order<T>(acc[n][i].first, acc[n][i].second);
      store(y[n] + j + i * PAIR, out.first);
      store(y[n] + j + i * PAIR + LANES, out.second);
    }
}

// The last columns, at most 16 of them.
template <class T, int N>
inline void combine_rest(
    const Blocks<T>& w, const float* const* c, int64_t K, float* const* y, int64_t j, int64_t width) {
  f16 acc[N] = {};
  w.each(K, [&](int64_t from, int64_t to, const T* rows) {
    const T* row = rows + j;
    for (int64_t k = from; k < to; k++, row += w.stride) {
      const f16 v = width == LANES ? load(row) : load_some(row, width);
      for (int n = 0; n < N; n++) acc[n] += c[n][k] * v;
    }
  });
  for (int n = 0; n < N; n++) set(y[n] + j, acc[n], width);
}

// y[b][0 .. columns - 1] at y + b * y_stride, from K rows of w.
template <class T>
void combine(const Blocks<T>& w, int64_t columns, const Rows& rows, int64_t K, float* y, int64_t y_stride) {
  auto take = [&](auto number, int64_t b) {
    constexpr int N = decltype(number)::value;
    const float* c[N];
    float* out[N];
    for (int n = 0; n < N; n++) c[n] = rows[b + n], out[n] = y + (b + n) * y_stride;
    int64_t j = 0;
    constexpr int C = TILE == 8 ? 2 : 1;
    for (; j + C * PAIR <= columns; j += C * PAIR) combine_tile<T, N, C>(w, c, K, out, j);
    for (; j + PAIR <= columns; j += PAIR) combine_tile<T, N, 1>(w, c, K, out, j);
    for (; j < columns; j += LANES)
      combine_rest<T, N>(w, c, K, out, j, columns - j < LANES ? columns - j : LANES);
  };
  int64_t b = 0;
  for (; b + 4 <= rows.count; b += 4) take(std::integral_constant<int, 4>(), b);
  for (; b < rows.count; b++) take(std::integral_constant<int, 1>(), b);
}
