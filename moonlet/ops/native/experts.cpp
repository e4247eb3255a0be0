// What lies between the products of the routed experts: counting tokens out to experts, gathering their rows, SwiGLU
// with the mixing weight in it, its backward, and adding each token's rows up again. Every pass reads and writes memory
// once and computes in fp32. moonlet/ops/experts.py has the equations and calls these.
//
// N tokens, A experts a token, E experts, D hidden size, I expert width; rows in order of experts, padding between.

#include "half.h"

#include <cstdint>
#include <cstring>

namespace {

inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

constexpr int64_t kFew = 1 << 14;  // numbers; for fewer no second thread is woken

// a = weight silu(gate) up
template <typename T>
void swiglu(const T* h, const int32_t* copy, const float* weight, T* a, int64_t rows, int64_t I) {
#pragma omp parallel for if (rows * I > kFew)
  for (int64_t row = 0; row < rows; row++) {
    const T *__restrict gate = h + row * 2 * I, *__restrict up = gate + I;
    T* __restrict out = a + row * I;
    float w = copy[row] < 0 ? 0.0f : weight[copy[row]];
    for (int64_t i = 0; i < I; i++) {
      float g = load(gate[i]);
      store(out[i], w * g * sigmoid(g) * load(up[i]));
    }
  }
}

// From da, the gradient of a: of gate and up, into dh; of the weight; and a itself once more.
template <typename T>
void swiglu_backward(const T* h, const T* da, const int32_t* copy, const float* weight, T* dh, T* a, float* d_weight,
                     int64_t rows, int64_t I) {
#pragma omp parallel for if (rows * I > kFew)
  for (int64_t row = 0; row < rows; row++) {
    const T *__restrict gate = h + row * 2 * I, *__restrict up = gate + I, *__restrict in = da + row * I;
    T *__restrict d_gate = dh + row * 2 * I, *__restrict d_up = d_gate + I, *__restrict out = a + row * I;
    float w = copy[row] < 0 ? 0.0f : weight[copy[row]];
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < I; i++) {
      float g = load(gate[i]), u = load(up[i]), d = load(in[i]);
      float s = sigmoid(g);
      float silu = g * s;
      sum += d * silu * u;
      d *= w;
      store(d_up[i], d * silu);
      store(d_gate[i], d * u * s * (1.0f + g * (1.0f - s)));
      store(out[i], w * silu * u);
    }
    if (copy[row] >= 0) d_weight[copy[row]] = sum;
  }
}

// out_n = plus_n + sum over a of rows[place[n, a]]
template <typename T>
void gather_sum(const T* rows, const int32_t* place, const T* plus, T* out, int64_t N, int64_t A, int64_t D) {
#pragma omp parallel for if (N * A * D > kFew)
  for (int64_t n = 0; n < N; n++) {
    const int32_t* from = place + n * A;
    T* to = out + n * D;
    const T* extra = plus ? plus + n * D : nullptr;
    constexpr int64_t kBlock = 256;
    for (int64_t begin = 0; begin < D; begin += kBlock) {
      int64_t size = D - begin < kBlock ? D - begin : kBlock;
      float sum[kBlock];
      const T* first = rows + from[0] * D + begin;
      for (int64_t i = 0; i < size; i++) sum[i] = load(first[i]);
      for (int64_t a = 1; a < A; a++) {
        const T* row = rows + from[a] * D + begin;
        for (int64_t i = 0; i < size; i++) sum[i] += load(row[i]);
      }
      if (extra)
        for (int64_t i = 0; i < size; i++) sum[i] += load(extra[begin + i]);
      for (int64_t i = 0; i < size; i++) store(to[begin + i], sum[i]);
    }
  }
}

}  // namespace

extern "C" {

// Counts the copies of tokens out to experts, in order, every expert's rows up to a multiple of `pad`. Fills
// copy[rows]: which of the N A copies lies in a row, -1 for padding; place[N A]: where each lies; ends[E]: the row
// behind each expert's last. An index that is none of the E leaves -1 in ends[E - 1].
void experts_layout(const int64_t* index, int64_t copies, int64_t E, int64_t pad, int32_t* copy, int32_t* place,
                    int64_t* ends) {
  for (int64_t e = 0; e < E; e++) ends[e] = 0;
  for (int64_t c = 0; c < copies; c++) {
    if (uint64_t(index[c]) >= uint64_t(E)) {
      ends[E - 1] = -1;
      return;
    }
    ends[index[c]]++;
  }
  int64_t rows = 0;
  for (int64_t e = 0; e < E; e++) {
    int64_t count = ends[e], padded = (count + pad - 1) / pad * pad;
    for (int64_t i = count; i < padded; i++) copy[rows + i] = -1;
    ends[e] = rows;  // where its next copy goes
    rows += padded;
  }
  for (int64_t c = 0; c < copies; c++) {
    int64_t row = ends[index[c]]++;
    copy[row] = int32_t(c);
    place[c] = int32_t(row);
  }
  for (int64_t e = 0; e < E; e++) ends[e] = (ends[e] + pad - 1) / pad * pad;
}

// to[row] = x[token of the copy in it], zeros for padding. `bytes` a row.
void experts_gather(const char* x, const int32_t* copy, char* to, int64_t rows, int64_t A, int64_t bytes) {
#pragma omp parallel for if (rows * bytes > 2 * kFew)
  for (int64_t row = 0; row < rows; row++) {
    if (copy[row] < 0)
      memset(to + row * bytes, 0, size_t(bytes));
    else
      memcpy(to + row * bytes, x + copy[row] / A * bytes, size_t(bytes));
  }
}

#define FOR_TYPE(NAME, T)                                                                                          \
  void experts_swiglu_##NAME(const T* h, const int32_t* copy, const float* weight, T* a, int64_t rows, int64_t I) { \
    swiglu(h, copy, weight, a, rows, I);                                                                           \
  }                                                                                                                \
  void experts_swiglu_backward_##NAME(const T* h, const T* da, const int32_t* copy, const float* weight, T* dh,    \
                                      T* a, float* d_weight, int64_t rows, int64_t I) {                            \
    swiglu_backward(h, da, copy, weight, dh, a, d_weight, rows, I);                                                \
  }                                                                                                                \
  void experts_gather_sum_##NAME(const T* rows, const int32_t* place, const T* plus, T* out, int64_t N, int64_t A, \
                                 int64_t D) {                                                                      \
    gather_sum(rows, place, plus, out, N, A, D);                                                                   \
  }

FOR_TYPE(f32, float)
FOR_TYPE(bf16, Half)
}
