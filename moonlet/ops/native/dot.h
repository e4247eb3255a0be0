// Small products in registers: C[rows][16 n] (+)= A B, for rows in steps of four.
//
// The contraction runs over units. With AVX512-BF16 a unit is two bf16 numbers that the processor multiplies by two
// others and adds to an fp32 sum in one instruction; elsewhere it is one fp32 number. A unit of A is spread over a
// vector, so A may lie in memory in any order; B has sixteen columns of a unit side by side.
#pragma once

#include "vector.h"

#if defined(__AVX512BF16__) && defined(__AVX512F__)
#define HAS_PAIRS 1
#include <immintrin.h>
#else
#define HAS_PAIRS 0
#endif

#if defined(__AVX512F__)
constexpr int WIDEST = 4;  // vectors of B at a time: 32 registers hold 4 x 4 or 8 x 3 sums
constexpr int TALL = 8;
#else
constexpr int WIDEST = 1;  // here a vector takes two registers of sixteen, or four of thirty-two
constexpr int TALL = 4;
#endif

struct Singles {
  typedef float number;  // as kept between products
  typedef float unit;
  static constexpr int per = 1;
  static inline f16 dot(f16 sum, const unit* a, const unit* b) { return sum + *a * load(b); }
};

#if HAS_PAIRS
struct Pairs {
  typedef bf16 number;
  typedef uint32_t unit;
  static constexpr int per = 2;
  static inline f16 dot(f16 sum, const unit* a, const unit* b) {
    return (f16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)*a), (__m512bh)_mm512_loadu_si512(b));
  }
};
#endif

struct Matrix {
  int64_t row, step;  // in units: from a row to the next, and along the contraction
};

template <class D, int N, int M>
static inline void tile(const typename D::unit* a, Matrix at, const typename D::unit* b, int64_t b_step, int64_t length,
                        float* c, int64_t c_row, bool add) {
  f16 sum[M][N];
  for (int m = 0; m < M; m++)
    for (int n = 0; n < N; n++) sum[m][n] = add ? load(c + m * c_row + 16 * n) : f16{};
  for (int64_t k = 0; k < length; k++) {
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
      for (int n = 0; n < N; n++)
        sum[m][n] = D::dot(sum[m][n], a + m * at.row + k * at.step, b + k * b_step + 16 * n);
  }
  for (int m = 0; m < M; m++)
    for (int n = 0; n < N; n++) store(c + m * c_row + 16 * n, sum[m][n]);
}

template <class D, int N>
static inline void columns(const typename D::unit* a, Matrix at, const typename D::unit* b, int64_t b_step,
                           int64_t length, float* c, int64_t c_row, int rows, bool add) {
  int r = 0;
  if constexpr (N <= 3)
    for (; r + TALL <= rows; r += TALL)
      tile<D, N, TALL>(a + r * at.row, at, b, b_step, length, c + r * c_row, c_row, add);
  for (; r < rows; r += 4) tile<D, N, 4>(a + r * at.row, at, b, b_step, length, c + r * c_row, c_row, add);
}

// C [rows, 16 vectors] (+)= A [rows, length units] B [length units, 16 vectors].
template <class D>
static inline void multiply(const typename D::unit* a, Matrix at, const typename D::unit* b, int64_t b_step,
                            int64_t length, float* c, int64_t c_row, int rows, int vectors, bool add) {
  while (vectors > 0) {
    int n = vectors < WIDEST ? vectors : WIDEST;
    if (WIDEST == 4 && vectors == 5) n = 3;  // 3 + 2 keeps more sums in flight than 4 + 1
    if constexpr (WIDEST == 4) {
      if (n == 4) columns<D, 4>(a, at, b, b_step, length, c, c_row, rows, add);
      if (n == 3) columns<D, 3>(a, at, b, b_step, length, c, c_row, rows, add);
      if (n == 2) columns<D, 2>(a, at, b, b_step, length, c, c_row, rows, add);
    }
    if (n == 1) columns<D, 1>(a, at, b, b_step, length, c, c_row, rows, add);
    b += 16 * n, c += 16 * n, vectors -= n;
  }
}
