// flags: -fno-associative-math
//
// Weights of four bits: their product with few rows, which reads each code once from memory, and what they stand for,
// for products with many rows. moonlet/ops/low_bit.py has the equations, low_bit_codes.py the layouts.

#include "low_bit.hpp"

namespace {

constexpr int64_t kFew = 1 << 15;  // codes; for fewer no second thread is woken
constexpr int64_t kRows = 48;      // of x at a time, which stay in a core's own cache while the codes pass by

// y[b][o], in tiles of rows that threads share out. `room`: rows * whole_blocks(columns) numbers.
template <class C>
void product(const Codes& m, int64_t out, const float* x, int64_t rows, float* room, float* y) {
  const int64_t stride = whole_blocks(m.columns), tiles = (out + TILE - 1) / TILE;
  for (int64_t b = 0; b < rows; b++) in_order_of_codes(x + b * m.columns, m.columns, room + b * stride);
  for (int64_t first = 0; first < rows; first += kRows) {
    const Rows some = {room + first * stride, stride, rows - first < kRows ? rows - first : kRows};
    float* to = y + first * out;
#pragma omp parallel for if (out * m.columns > kFew)
    for (int64_t t = 0; t < tiles; t++) {
      const int64_t last = (t + 1) * TILE < out ? (t + 1) * TILE : out;
      code_dots<C>(m, t * TILE, last, some, [=](int64_t b, int64_t o, const float* v, int64_t n) {
        memcpy(to + b * out + o, v, n * sizeof(float));
      });
    }
  }
}

void put_all(float* p, f16 v) { store(p, v); }

void put_all(Bf16* p, f16 v) {
  const u16 bits = (u16)v;
  const h16 to = __builtin_convertvector(v != v ? u16{} + 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, h16);
  memcpy(p, &to, sizeof to);
}

template <class C, class T>
void dequantize(const Codes& m, int64_t out, T* to) {
  const f16 table = load(C::table);
  const u16 shifts = {0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28};
#pragma omp parallel for if (out * m.columns > kFew)
  for (int64_t o = 0; o < out; o++) {
    const uint8_t* codes = m.codes + o * m.bytes;
    const typename C::Scale* scales = (const typename C::Scale*)m.scales + o * m.groups;
    T* row = to + o * m.columns;
    auto sixteen = [&](uint64_t both, int64_t k) {
      const uint32_t a = (uint32_t)both, b = (uint32_t)(both >> 32);
      const u16 words = {a, a, a, a, a, a, a, a, b, b, b, b, b, b, b, b};
      return numbers<C>(words >> shifts, table) * C::scale(scales[k / GROUP]);
    };
    int64_t k = 0;
    for (; k + LANES <= m.columns; k += LANES) {
      uint64_t both;
      memcpy(&both, codes + k / 2, sizeof both);
      put_all(row + k, sixteen(both, k));
    }
    if (k < m.columns) {
      uint64_t both = 0;
      memcpy(&both, codes + k / 2, m.bytes - k / 2);
      T rest[LANES];
      put_all(rest, sixteen(both, k));
      memcpy(row + k, rest, (m.columns - k) * sizeof(T));
    }
  }
}

template <class F>
void with_scheme(int64_t is_mxfp4, F f) {
  if (is_mxfp4)
    f(Mxfp4());
  else
    f(Int4());
}

}  // namespace

extern "C" {

// y [rows, out] = x [rows, columns] W^T, all fp32.
void low_bit_product(int64_t is_mxfp4, const uint8_t* codes, const void* scales, int64_t out, int64_t columns,
                     int64_t bytes, int64_t groups, const float* x, int64_t rows, float* room, float* y) {
  const Codes m = {codes, scales, bytes, groups, columns};
  with_scheme(is_mxfp4, [&](auto c) { product<decltype(c)>(m, out, x, rows, room, y); });
}

// to [out, columns] = W, fp32 or bfloat16.
void low_bit_dequantize(int64_t is_mxfp4, const uint8_t* codes, const void* scales, int64_t out, int64_t columns,
                        int64_t bytes, int64_t groups, int64_t is_bf16, void* to) {
  const Codes m = {codes, scales, bytes, groups, columns};
  with_scheme(is_mxfp4, [&](auto c) {
    if (is_bf16)
      dequantize<decltype(c)>(m, out, (Bf16*)to);
    else
      dequantize<decltype(c)>(m, out, (float*)to);
  });
}
}
