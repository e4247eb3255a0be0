// silu(g) u and its two gradients, one row at a time. Rows may lie apart: gate and up can be halves of one matrix.
#include "vector.h"

namespace {

template <class T>
void forward(const T* gate, const T* up, T* out, int64_t rows, int64_t width, int64_t gate_row, int64_t up_row,
             int64_t out_row) {
#pragma omp parallel for schedule(static) if (rows * width > 16384)
  for (int64_t r = 0; r < rows; r++) {
    const T *g = gate + r * gate_row, *u = up + r * up_row;
    T* o = out + r * out_row;
    auto one = [&](f16 x, f16 y) {
      // Rounded between the two as two operators would.
      return through(x / (1.0f + exponential(-x)), g) * y;
    };
    int64_t i = 0;
    for (; i + 16 <= width; i += 16) store(o + i, one(load(g + i), load(u + i)));
    if (int n = width - i) store(o + i, one(load(g + i, n), load(u + i, n)), n);
  }
}

template <class T>
void backward(const T* d_out, const T* gate, const T* up, T* d_gate, T* d_up, int64_t rows, int64_t width, int64_t d_row,
              int64_t gate_row, int64_t up_row, int64_t d_gate_row, int64_t d_up_row) {
#pragma omp parallel for schedule(static) if (rows * width > 16384)
  for (int64_t r = 0; r < rows; r++) {
    const T *d = d_out + r * d_row, *g = gate + r * gate_row, *u = up + r * up_row;
    T *dg = d_gate + r * d_gate_row, *du = d_up + r * d_up_row;
    auto one = [&](f16 e, f16 x, f16 y, f16& to_up) {
      f16 s = 1.0f / (1.0f + exponential(-x));
      // x s (1 - s) with x infinite and s at 0 or 1 would be NaN.
      f16 inner = either(s < 1.0f, x * (1.0f - s), f16{});
      to_up = e * either(s > 0.0f, x * s, f16{});
      return e * y * s * (1.0f + inner);
    };
    f16 to_up;
    int64_t i = 0;
    for (; i + 16 <= width; i += 16) {
      store(dg + i, one(load(d + i), load(g + i), load(u + i), to_up));
      store(du + i, to_up);
    }
    if (int n = width - i) {
      store(dg + i, one(load(d + i, n), load(g + i, n), load(u + i, n), to_up), n);
      store(du + i, to_up, n);
    }
  }
}

}  // namespace

extern "C" {
void swiglu_f32(const float* g, const float* u, float* o, int64_t rows, int64_t width, int64_t gr, int64_t ur,
                int64_t orow) {
  forward(g, u, o, rows, width, gr, ur, orow);
}
void swiglu_bf16(const bf16* g, const bf16* u, bf16* o, int64_t rows, int64_t width, int64_t gr, int64_t ur,
                 int64_t orow) {
  forward(g, u, o, rows, width, gr, ur, orow);
}
void swiglu_backward_f32(const float* d, const float* g, const float* u, float* dg, float* du, int64_t rows,
                         int64_t width, int64_t dr, int64_t gr, int64_t ur, int64_t dgr, int64_t dur) {
  backward(d, g, u, dg, du, rows, width, dr, gr, ur, dgr, dur);
}
void swiglu_backward_bf16(const bf16* d, const bf16* g, const bf16* u, bf16* dg, bf16* du, int64_t rows,
                          int64_t width, int64_t dr, int64_t gr, int64_t ur, int64_t dgr, int64_t dur) {
  backward(d, g, u, dg, du, rows, width, dr, gr, ur, dgr, dur);
}
}
