// Newton-Schulz in bf16 on processors with AVX512-BF16, a matrix at a time in a core's own cache.
//
// With Y [m, n] the matrix or its transpose, whichever has n <= m:
//
//     G = Y^T Y,   B = b G + c G^2,   Y <- a Y + Y B
//
// G and G^2 are symmetric: only their upper half is multiplied out, so that a step takes two products' work and not
// three. As in the batched form, Y, G and B are kept in bf16 and products summed in fp32.
//
// `pairs` of a matrix X [k, n] hold (X[2i, j], X[2i + 1, j]), as the processor's instruction wants them, in panels of 32
// columns: pairs[j / 32][i][j % 32]. Sizes are filled up with zeros to multiples of 32, which the products keep.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

// With AMX the library's own products are quicker than these.
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
#include <immintrin.h>
#define HERE 1
#else
#define HERE 0
#endif

#if HERE

namespace {

constexpr int64_t kPanel = 32;  // columns of a tile
constexpr int64_t kRows = 8;    // of a tile

int64_t filled(int64_t size) { return (size + kPanel - 1) / kPanel * kPanel; }

// acc[r] += the sum over pairs of left[r row + pair step] and a panel. ROW and STEP are known to the compiler where
// they are not 0.
template <int64_t STEP, int64_t ROW>
inline __attribute__((always_inline)) void product(const uint32_t* left, int64_t row, const uint32_t* panel,
                                                   int64_t pairs, __m512 (&acc)[kRows][2]) {
  const int64_t rs = ROW ? ROW : row;
#pragma GCC unroll 8
  for (int64_t r = 0; r < kRows; r++) acc[r][0] = acc[r][1] = _mm512_setzero_ps();
  for (int64_t i = 0; i < pairs; i++) {
    const __m512bh right0 = (__m512bh)_mm512_load_si512(panel + i * kPanel);
    const __m512bh right1 = (__m512bh)_mm512_load_si512(panel + i * kPanel + 16);
#pragma GCC unroll 8
    for (int64_t r = 0; r < kRows; r++) {
      const __m512bh value = (__m512bh)_mm512_set1_epi32(int(left[r * rs + i * STEP]));
      acc[r][0] = _mm512_dpbf16_ps(acc[r][0], value, right0);
      acc[r][1] = _mm512_dpbf16_ps(acc[r][1], value, right1);
    }
  }
}

inline __m512i widened(__m512 x) { return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x)); }

// Two rows as pairs, in bf16.
inline __m512i paired(__m512 even, __m512 odd) {
  return _mm512_or_si512(widened(even), _mm512_slli_epi32(widened(odd), 16));
}

inline __m512 even_of(__m512i pairs) { return (__m512)_mm512_slli_epi32(pairs, 16); }

inline __m512 odd_of(__m512i pairs) { return (__m512)_mm512_and_si512(pairs, _mm512_set1_epi32(int(0xffff0000))); }

// out = b base + c X^T X, of X the pairs [k, n]; base, pairs as well, or none: out = X^T X.
void symmetric(const uint32_t* x, int64_t k, int64_t n, const uint32_t* base, float b, float c, uint32_t* out) {
  const __m512 vb = _mm512_set1_ps(b), vc = _mm512_set1_ps(c);
  for (int64_t j = 0; j < n; j += kPanel) {
    const uint32_t* panel = x + j * (k / 2);
    for (int64_t i = 0; i < j + kPanel; i += kRows) {
      __m512 acc[kRows][2];
      product<kPanel, 1>(x + i / kPanel * kPanel * (k / 2) + i % kPanel, 1, panel, k / 2, acc);
      // Rows i.. of columns j..; and where this is above the diagonal's panel, its mirror image.
      alignas(64) uint32_t tile[kRows / 2][kPanel];
#pragma GCC unroll 8
      for (int64_t r = 0; r < kRows; r += 2)
#pragma GCC unroll 2
        for (int64_t half = 0; half < 2; half++) {
          const int64_t at = j * (n / 2) + (i + r) / 2 * kPanel + half * 16;
          __m512 even = acc[r][half], odd = acc[r + 1][half];
          if (base) {
            const __m512i before = _mm512_load_si512(base + at);
            even = _mm512_fmadd_ps(vc, even, _mm512_mul_ps(vb, even_of(before)));
            odd = _mm512_fmadd_ps(vc, odd, _mm512_mul_ps(vb, odd_of(before)));
          }
          const __m512i pairs = paired(even, odd);
          _mm512_store_si512(out + at, pairs);
          _mm512_store_si512(tile[r / 2] + half * 16, pairs);
        }
      if (i >= j) continue;
      uint32_t* mirror = out + i / kPanel * kPanel * (n / 2) + j / 2 * kPanel + i % kPanel;
      for (int64_t q = 0; q < kPanel / 2; q++, mirror += kPanel)  // columns j + 2q and the next become a row of pairs
        for (int64_t r = 0; r < kRows / 2; r++) {
          const uint32_t left = tile[r][2 * q], right = tile[r][2 * q + 1];
          mirror[2 * r] = (left & 0xffff) | (right << 16);
          mirror[2 * r + 1] = (left >> 16) | (right & 0xffff0000);
        }
    }
  }
}

// next = a y + y B, row by row and as pairs, of y [m, n] and B's pairs.
void advance(const uint16_t* y, int64_t m, int64_t n, const uint32_t* by, float a, uint16_t* next, uint32_t* pairs) {
  const __m512 va = _mm512_set1_ps(a);
  for (int64_t j = 0; j < n; j += kPanel)
    for (int64_t i = 0; i < m; i += kRows) {
      __m512 acc[kRows][2];
      product<1, 0>(reinterpret_cast<const uint32_t*>(y + i * n), n / 2, by + j * (n / 2), n / 2, acc);
#pragma GCC unroll 8
      for (int64_t r = 0; r < kRows; r += 2)
#pragma GCC unroll 2
        for (int64_t half = 0; half < 2; half++) {
          __m512 rows[2];
#pragma GCC unroll 2
          for (int64_t s = 0; s < 2; s++) {
            const int64_t at = (i + r + s) * n + j + half * 16;
            const __m512i before = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(y + at)));
            rows[s] = _mm512_fmadd_ps(va, (__m512)_mm512_slli_epi32(before, 16), acc[r + s][half]);
            _mm256_storeu_si256((__m256i*)(next + at), (__m256i)_mm512_cvtneps_pbh(rows[s]));
          }
          _mm512_store_si512(pairs + j * (m / 2) + (i + r) / 2 * kPanel + half * 16, paired(rows[0], rows[1]));
        }
    }
}

uint16_t rounded(float x) {
  uint32_t bits = __builtin_bit_cast(uint32_t, x);
  return uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// What one thread needs for one matrix.
struct Desk {
  uint16_t *y, *next;
  uint32_t *pairs, *gram, *by;
  void* memory;

  Desk(int64_t m, int64_t n) {
    memory = aligned_alloc(64, size_t(3 * m * n + 2 * n * n) * 2);
    y = static_cast<uint16_t*>(memory);
    next = y + m * n;
    pairs = reinterpret_cast<uint32_t*>(next + m * n);
    gram = pairs + m * n / 2;
    by = gram + n * n / 2;
  }
  ~Desk() { free(memory); }
  Desk(const Desk&) = delete;
};

// from [rows, columns] -> its y [m, n] in bf16, divided by `norm`, transposed where it is wide.
void take(const float* from, int64_t rows, int64_t columns, float norm, uint16_t* y, int64_t m, int64_t n) {
  memset(y, 0, size_t(m * n) * 2);
  // A division: the inverse of a large norm is not a normal number.
  if (columns <= rows) {
    for (int64_t i = 0; i < rows; i++)
      for (int64_t j = 0; j < columns; j++) y[i * n + j] = rounded(from[i * columns + j] / norm);
    return;
  }
  constexpr int64_t kBlock = 32;  // a block of both lies in the nearest cache
  for (int64_t i0 = 0; i0 < rows; i0 += kBlock)
    for (int64_t j0 = 0; j0 < columns; j0 += kBlock)
      for (int64_t j = j0; j < columns && j < j0 + kBlock; j++)
        for (int64_t i = i0; i < rows && i < i0 + kBlock; i++)
          y[j * n + i] = rounded(from[i * columns + j] / norm);
}

void give(const uint16_t* y, int64_t n, float* to, int64_t rows, int64_t columns) {
  auto wide = [](uint16_t bits) { return __builtin_bit_cast(float, uint32_t(bits) << 16); };
  if (columns <= rows) {
    for (int64_t i = 0; i < rows; i++)
      for (int64_t j = 0; j < columns; j++) to[i * columns + j] = wide(y[i * n + j]);
    return;
  }
  constexpr int64_t kBlock = 32;
  for (int64_t j0 = 0; j0 < columns; j0 += kBlock)
    for (int64_t i0 = 0; i0 < rows; i0 += kBlock)
      for (int64_t i = i0; i < rows && i < i0 + kBlock; i++)
        for (int64_t j = j0; j < columns && j < j0 + kBlock; j++) to[i * columns + j] = wide(y[j * n + i]);
}

void to_pairs(const uint16_t* y, int64_t m, int64_t n, uint32_t* pairs) {
  for (int64_t j = 0; j < n; j += kPanel)
    for (int64_t i = 0; i < m; i += 2)
      for (int64_t s = 0; s < kPanel; s++)
        *pairs++ = uint32_t(y[i * n + j + s]) | uint32_t(y[(i + 1) * n + j + s]) << 16;
}

void orthogonalise(const float* from, float* to, int64_t rows, int64_t columns, int64_t steps, const float* abc,
                   float tiny, Desk& desk) {
  double sum = 0;
  for (int64_t i = 0; i < rows * columns; i++) sum += double(from[i]) * from[i];
  const int64_t m = filled(rows < columns ? columns : rows), n = filled(rows < columns ? rows : columns);
  take(from, rows, columns, float(std::sqrt(sum) + tiny), desk.y, m, n);
  to_pairs(desk.y, m, n, desk.pairs);
  for (int64_t step = 0; step < steps; step++) {
    symmetric(desk.pairs, m, n, nullptr, 0, 1, desk.gram);
    symmetric(desk.gram, n, n, desk.gram, abc[1], abc[2], desk.by);
    advance(desk.y, m, n, desk.by, abc[0], desk.next, desk.pairs);
    uint16_t* before = desk.y;
    desk.y = desk.next, desk.next = before;
  }
  give(desk.y, n, to, rows, columns);
}

}  // namespace

#endif

extern "C" {

// Whether this processor is one that the kernel is for.
int newton_schulz_here() { return HERE; }

// to = `count` matrices [rows, columns] of `from`, each orthogonalised; the two may not overlap.
void newton_schulz(const float* from, float* to, int64_t count, int64_t rows, int64_t columns, int64_t steps,
                   const float* abc, float tiny) {
#if HERE
  const int64_t m = filled(rows < columns ? columns : rows), n = filled(rows < columns ? rows : columns);
#pragma omp parallel
  {
    Desk desk(m, n);
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < count; i++)
      orthogonalise(from + i * rows * columns, to + i * rows * columns, rows, columns, steps, abc, tiny, desk);
  }
#endif
}
}
