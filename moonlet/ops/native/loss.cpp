// Rows of logits to losses and, in the same memory, to the loss's gradient: a row is read once and written once.
//
//     loss = log sum_v e^(x_v - m) + m - x_target        d_v = (softmax_v - [v = target]) factor
#include "vector.h"

#include <cstdlib>

namespace {

template <class T>
void rows_of(T* logits, const int64_t* target, float* loss, int64_t rows, int64_t width, int64_t gradient,
             float factor) {
#pragma omp parallel if (rows * width > 16384)
  {
    float* e = (float*)malloc((width + 16) * sizeof(float));
    if (!e) abort();
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
      T* x = logits + r * width;
      const int64_t tail = width % 16, whole = width - tail, chosen = target[r];
      if (chosen < 0) {  // does not count
        loss[r] = 0;
        if (gradient) memset((void*)x, 0, width * sizeof(T));
        continue;
      }
      f16 most = splat(-INFINITY);
      for (int64_t i = 0; i < whole; i += 16) {
        f16 v = load(x + i);
        most = either(v > most, v, most);
      }
      for (int64_t i = whole; i < width; i++) {
        f16 v = load(x + i, 1);
        most[0] = v[0] > most[0] ? v[0] : most[0];
      }
      float m = most[0];
      for (int i = 1; i < 16; i++) m = m > most[i] ? m : most[i];
      f16 sum = {};
      for (int64_t i = 0; i < whole; i += 16) {
        f16 v = decayed(load(x + i) - m);
        store(e + i, v);
        sum += v;
      }
      float z = total(sum);
      if (tail) {
        f16 v = decayed(load(x + whole, (int)tail) - m);
        store(e + whole, v);
        for (int i = 0; i < tail; i++) z += v[i];
      }
      loss[r] = logf(z) + m - load(x + chosen, 1)[0];
      if (!gradient) continue;
      const float scale = factor / z;
      for (int64_t i = 0; i < whole; i += 16) store(x + i, load(e + i) * scale);
      if (tail) store(x + whole, load(e + whole) * scale, (int)tail);
      store(x + chosen, splat(e[chosen] * scale - factor), 1);
    }
    free(e);
  }
}

}  // namespace

extern "C" {
void loss_f32(float* logits, const int64_t* target, float* loss, int64_t rows, int64_t width, int64_t gradient,
              float factor) {
  rows_of(logits, target, loss, rows, width, gradient, factor);
}
void loss_bf16(bf16* logits, const int64_t* target, float* loss, int64_t rows, int64_t width, int64_t gradient,
               float factor) {
  rows_of(logits, target, loss, rows, width, gradient, factor);
}
}
