// RMSNorm, one row at a time: forward, and a backward from x and the inverse size of each row.
//
//     normed = x r,  r = (mean x^2 + eps)^-1/2       y = round(normed) w
//     d_x = r (d w - normed mean(d w normed))        d_w = sum over rows of d round(normed)
//
// The weight's gradient is summed over blocks of rows, and the blocks in their order: threads change no bit.
#include "vector.h"

namespace {

constexpr int64_t BLOCK = 256;  // rows that are summed together; ops/rms_norm.py makes room for their sums

template <class T>
void forward(const T* x, const T* w, T* y, float* inverse, int64_t rows, int64_t width, int64_t row, float eps) {
#pragma omp parallel for schedule(static) if (rows * width > 16384)
  for (int64_t r = 0; r < rows; r++) {
    const T* in = x + r * row;
    T* out = y + r * width;
    f16 sum = {};
    over(width, [&](int64_t i, int n) {
      f16 v = some(in + i, n);
      sum += v * v;
    });
    float scale = 1.0f / sqrtf(total(sum) / (float)width + eps);
    inverse[r] = scale;
    over(width, [&](int64_t i, int n) { some(out + i, through(some(in + i, n) * scale, in) * some(w + i, n), n); });
  }
}

template <class T>
void backward(const T* d, const T* x, const T* w, const float* inverse, T* d_x, float* sums, int64_t rows, int64_t width,
              int64_t d_row, int64_t row) {
#pragma omp parallel for schedule(static) if (rows * width > 16384)
  for (int64_t block = 0; block < (rows + BLOCK - 1) / BLOCK; block++) {
    float* sum = sums + block * width;
    memset(sum, 0, width * sizeof(float));
    for (int64_t r = block * BLOCK; r < rows && r < (block + 1) * BLOCK; r++) {
      const T *in = x + r * row, *e = d + r * d_row;
      const float scale = inverse[r];
      f16 dot = {};
      over(width, [&](int64_t i, int n) {
        f16 normed = some(in + i, n) * scale, g = some(e + i, n);
        dot += g * some(w + i, n) * normed;
        some(sum + i, some(sum + i, n) + g * through(normed, in), n);
      });
      const float along = total(dot) / (float)width;
      over(width, [&](int64_t i, int n) {
        f16 normed = some(in + i, n) * scale;
        some(d_x + r * width + i, (some(e + i, n) * some(w + i, n) - normed * along) * scale, n);
      });
    }
  }
}

}  // namespace

extern "C" {
void norm_f32(const float* x, const float* w, float* y, float* inverse, int64_t rows, int64_t width, int64_t row,
              float eps) {
  forward(x, w, y, inverse, rows, width, row, eps);
}
void norm_bf16(const bf16* x, const bf16* w, bf16* y, float* inverse, int64_t rows, int64_t width, int64_t row,
               float eps) {
  forward(x, w, y, inverse, rows, width, row, eps);
}
void norm_backward_f32(const float* d, const float* x, const float* w, const float* inverse, float* d_x, float* sums,
                       int64_t rows, int64_t width, int64_t d_row, int64_t row) {
  backward(d, x, w, inverse, d_x, sums, rows, width, d_row, row);
}
void norm_backward_bf16(const bf16* d, const bf16* x, const bf16* w, const float* inverse, bf16* d_x, float* sums,
                        int64_t rows, int64_t width, int64_t d_row, int64_t row) {
  backward(d, x, w, inverse, d_x, sums, rows, width, d_row, row);
}
}
