// What stands around the delta rule in Kimi delta attention, a token at a time: the short convolution with SiLU and the
// heads' length, the logarithms of the decays, and the gated norm of the heads. The equations are in ops/short_conv.py,
// ops/log_decay.py and ops/gated_norm.py.
//
// Arithmetic is fp32. Gradients of weights are summed over blocks of tokens, and the blocks in their order by the
// caller: threads change no bit.
#include "vector.h"

#include <vector>

namespace {

constexpr int64_t BLOCK = 64;  // tokens that are summed together; the callers make room for their sums
constexpr int MOST = 16;       // taps
constexpr float L2_EPS = 1e-6f;

inline f16 sigmoid(f16 x) { return 1.0f / (1.0f + exponential(-x)); }

// ---- The short convolution

struct Conv {
  int64_t B, T, C, W, K;  // K: width of a head, 0: lengths stay
  void *x, *out, *before;  // [B, T, C], rows and tokens of x may lie apart; out, or its gradient; [B, W-1, C] or null
  int64_t x_row, x_token, out_row, out_token;
  float* taps;                // [W, C]
  const int64_t* documents;  // [B, T] or null
  void* d_x;                  // [B, T, C]
  float *d_taps, *d_before;  // [B, blocks of a row, W, C]; [B, W-1, C] or null
};

template <class M>
struct Row {
  const Conv& c;
  const int64_t b;

  const M* input(int64_t t) const {
    if (t >= 0) return (const M*)c.x + b * c.x_row + t * c.x_token;
    return (const M*)c.before + (b * (c.W - 1) + c.W - 1 + t) * c.C;
  }
  // How many inputs before its own token t sees.
  int64_t depth(int64_t t) const {
    const int64_t* own = c.documents ? c.documents + b * c.T + t : nullptr;
    for (int64_t j = 1; j < c.W; j++) {
      if (j > t) return c.before ? c.W - 1 : t;
      if (own && own[-j] != own[1 - j]) return j - 1;
    }
    return c.W - 1;
  }
  inline f16 convolved(const M* const* inputs, int64_t deep, int64_t d, int n) const {
    const float* taps = c.taps + (c.W - 1) * c.C + d;
    f16 sum = some(inputs[0] + d, n) * some(taps, n);
    for (int64_t j = 1; j <= deep; j++) sum += some(inputs[j] + d, n) * some(taps - j * c.C, n);
    return sum;
  }
  int64_t see(int64_t t, const M** inputs) const {
    int64_t deep = depth(t);
    for (int64_t j = 0; j <= deep; j++) inputs[j] = input(t - j);
    return deep;
  }
  static float inverse_length(const float* y, int64_t K) {
    f16 sum = {};
    over(K, [&](int64_t i, int n) { sum += some(y + i, n) * some(y + i, n); });
    return 1.0f / sqrtf(total(sum) + L2_EPS);
  }

  void forward(int64_t t, float* y) const {
    const M* inputs[MOST];
    const int64_t deep = see(t, inputs);
    M* out = (M*)c.out + b * c.out_row + t * c.out_token;
    auto silu = [&](int64_t d, int n) {
      f16 x = convolved(inputs, deep, d, n);
      return x * sigmoid(x);
    };
    if (!c.K) {
      over(c.C, [&](int64_t d, int n) { some(out + d, silu(d, n), n); });
      return;
    }
    for (int64_t head = 0; head < c.C; head += c.K) {
      over(c.K, [&](int64_t i, int n) { some(y + i, silu(head + i, n), n); });
      const float inverse = inverse_length(y, c.K);
      over(c.K, [&](int64_t i, int n) { some(out + head + i, some(y + i, n) * inverse, n); });
    }
  }

  // The gradient of what is convolved at token t, [C]; y and slope hold a head.
  void through_silu(int64_t t, float* d_c, float* y, float* slope) const {
    const M* inputs[MOST];
    const int64_t deep = see(t, inputs), K = c.K ? c.K : c.C;
    const M* d_out = (const M*)c.out + b * c.out_row + t * c.out_token;
    for (int64_t head = 0; head < c.C; head += K) {
      over(K, [&](int64_t i, int n) {
        f16 x = convolved(inputs, deep, head + i, n), s = sigmoid(x);
        some(slope + i, s * (1.0f + either(s < 1.0f, x * (1.0f - s), f16{})), n);  // x infinite: no NaN
        some(y + i, x * s, n);
      });
      const float inverse = c.K ? inverse_length(y, K) : 1;
      f16 dot = {};
      if (c.K) over(K, [&](int64_t i, int n) { dot += some(d_out + head + i, n) * some(y + i, n); });
      const float along = c.K ? total(dot) * inverse * inverse : 0;  // a length that is fixed has no gradient along itself
      over(K, [&](int64_t i, int n) {
        f16 d = some(d_out + head + i, n);
        if (c.K) d = (d - some(y + i, n) * along) * inverse;
        some(d_c + head + i, d * some(slope + i, n), n);
      });
    }
  }

  // Tokens begin .. end - 1. d_c: [BLOCK + W - 1, C], of these tokens and of the next that see them.
  void backward(int64_t begin, int64_t end, float* d_c, float* sums) const {
    const int64_t C = c.C, W = c.W, reached = end + W - 1 < c.T ? end + W - 1 : c.T;
    std::vector<float> head(2 * (c.K ? c.K : C) + 32);
    std::vector<int64_t> depths(reached - begin);
    for (int64_t t = begin; t < reached; t++) {
      depths[t - begin] = depth(t);
      through_silu(t, d_c + (t - begin) * C, head.data(), head.data() + (c.K ? c.K : C) + 16);
    }
    memset(sums, 0, W * C * sizeof(float));
    for (int64_t t = begin; t < end; t++) {
      const M* inputs[MOST];
      const float* later[MOST];
      int64_t taps[MOST];
      int count = 0;
      for (int64_t j = 0; j < W && t + j < reached; j++)
        if (depths[t + j - begin] >= j) later[count] = d_c + (t + j - begin) * C, taps[count++] = W - 1 - j;
      const int64_t deep = see(t, inputs);
      M* d_x = (M*)c.d_x + (b * c.T + t) * C;
      over(C, [&](int64_t d, int n) {
        f16 sum = {}, own = some(d_c + (t - begin) * C + d, n);
        for (int i = 0; i < count; i++) sum += some(later[i] + d, n) * some(c.taps + taps[i] * C + d, n);
        some(d_x + d, sum, n);
        for (int64_t j = 0; j <= deep; j++) {
          float* at = sums + (W - 1 - j) * C + d;
          some(at, some(at, n) + own * some(inputs[j] + d, n), n);
        }
      });
    }
    if (begin || !c.d_before) return;
    float* d_before = c.d_before + b * (W - 1) * C;
    memset(d_before, 0, (W - 1) * C * sizeof(float));
    for (int64_t t = 0; t < W - 1 && t < reached; t++)
      for (int64_t j = t + 1; j <= depths[t]; j++) {
        const float *own = d_c + t * C, *tap = c.taps + (W - 1 - j) * C;
        float* to = d_before + (W - 1 + t - j) * C;
        over(C, [&](int64_t d, int n) { some(to + d, some(to + d, n) + some(own + d, n) * some(tap + d, n), n); });
      }
  }
};

template <class M>
void convolve(const Conv& c, int threads, bool backward) {
  const int64_t blocks = (c.T + BLOCK - 1) / BLOCK;
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> memory(backward ? (BLOCK + c.W - 1) * c.C : c.C + 16);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < c.B * blocks; task++) {
      Row<M> row{c, task / blocks};
      const int64_t begin = task % blocks * BLOCK, end = begin + BLOCK < c.T ? begin + BLOCK : c.T;
      if (backward) row.backward(begin, end, memory.data(), c.d_taps + task * c.W * c.C);
      else
        for (int64_t t = begin; t < end; t++) row.forward(t, memory.data());
    }
  }
}

// ---- The decays

// softplus without loss where it is small: max(x, 0) + log(1 + u), u = e^-|x|, by log(1 + u) = 2 artanh(u / (2 + u)).
inline f16 softplus(f16 x) {
  f16 u = exponential(either(x < 0.0f, x, -x)), s = u / (2.0f + u), q = s * s;
  f16 p = splat(1.0f / 15);
  for (float odd : {13.0f, 11.0f, 9.0f, 7.0f, 5.0f, 3.0f, 1.0f}) p = p * q + 1.0f / odd;
  return either(x > 0.0f, x, f16{}) + 2.0f * s * p;
}

template <class M>
void decays(const M* f, const float* bias, const float* rate, float* g, int64_t rows, int64_t H, int64_t K, int64_t f_row) {
#pragma omp parallel for schedule(static) if (rows * H * K > 16384)
  for (int64_t r = 0; r < rows; r++)
    for (int64_t h = 0; h < H; h++)
      over(K, [&](int64_t i, int n) {
        const int64_t d = h * K + i;
        some(g + r * H * K + d, softplus(some(f + r * f_row + d, n) + some(bias + d, n)) * -rate[h], n);
      });
}
// sums: [blocks, 2, H K], of the bias, and of dg softplus, of which the rates' gradient is made.
template <class M>
void decays_backward(const float* dg, const M* f, const float* bias, const float* rate, M* d_f, float* sums, int64_t rows,
                     int64_t H, int64_t K, int64_t d_row, int64_t f_row) {
  const int64_t width = H * K;
#pragma omp parallel for schedule(static) if (rows * width > 16384)
  for (int64_t block = 0; block < (rows + BLOCK - 1) / BLOCK; block++) {
    float* sum = sums + block * 2 * width;
    memset(sum, 0, 2 * width * sizeof(float));
    for (int64_t r = block * BLOCK; r < rows && r < (block + 1) * BLOCK; r++)
      for (int64_t h = 0; h < H; h++)
        over(K, [&](int64_t i, int n) {
          const int64_t d = h * K + i;
          f16 x = some(f + r * f_row + d, n) + some(bias + d, n), given = some(dg + r * d_row + d, n);
          f16 to_x = given * sigmoid(x) * -rate[h];
          some(d_f + r * width + d, to_x, n);
          some(sum + d, some(sum + d, n) + to_x, n);
          some(sum + width + d, some(sum + width + d, n) + given * softplus(x), n);
        });
  }
}

// ---- The gated norm

template <class M>
void gated(const M* o, const M* z, const float* w, M* y, int64_t rows, int64_t K, int64_t o_row, int64_t z_row, float eps) {
#pragma omp parallel for schedule(static) if (rows * K > 16384)
  for (int64_t r = 0; r < rows; r++) {
    const M *in = o + r * o_row, *gate = z + r * z_row;
    f16 sum = {};
    over(K, [&](int64_t i, int n) { sum += some(in + i, n) * some(in + i, n); });
    const float inverse = 1.0f / sqrtf(total(sum) / (float)K + eps);
    over(K, [&](int64_t i, int n) {
      some(y + r * K + i, some(in + i, n) * inverse * some(w + i, n) * sigmoid(some(gate + i, n)), n);
    });
  }
}
// sums: [blocks, K]
template <class M>
void gated_backward(const M* d_y, const M* o, const M* z, const float* w, M* d_o, M* d_z, float* sums, int64_t rows,
                    int64_t K, int64_t d_row, int64_t o_row, int64_t z_row, float eps) {
#pragma omp parallel for schedule(static) if (rows * K > 16384)
  for (int64_t block = 0; block < (rows + BLOCK - 1) / BLOCK; block++) {
    float* weight = sums + block * K;
    memset(weight, 0, K * sizeof(float));
    for (int64_t r = block * BLOCK; r < rows && r < (block + 1) * BLOCK; r++) {
      const M *in = o + r * o_row, *gate = z + r * z_row, *given = d_y + r * d_row;
      f16 sum = {}, dot = {};
      over(K, [&](int64_t i, int n) { sum += some(in + i, n) * some(in + i, n); });
      const float inverse = 1.0f / sqrtf(total(sum) / (float)K + eps);
      over(K, [&](int64_t i, int n) {
        f16 normed = some(in + i, n) * inverse, d = some(given + i, n), passed = sigmoid(some(gate + i, n));
        f16 gated = d * passed, along = gated * some(w + i, n) * normed;
        dot += along;
        some(weight + i, some(weight + i, n) + gated * normed, n);
        some(d_z + r * K + i, along * (1.0f - passed), n);
      });
      const float mean = total(dot) / (float)K;
      over(K, [&](int64_t i, int n) {
        f16 normed = some(in + i, n) * inverse, d = some(given + i, n) * sigmoid(some(gate + i, n)) * some(w + i, n);
        some(d_o + r * K + i, (d - normed * mean) * inverse, n);
      });
    }
  }
}

}  // namespace

#define FOR(M, NAME)                                                                                                  \
  void conv_##NAME(const Conv* c, int64_t threads) { convolve<M>(*c, (int)threads, false); }                          \
  void conv_backward_##NAME(const Conv* c, int64_t threads) { convolve<M>(*c, (int)threads, true); }                  \
  void decays_##NAME(const M* f, const float* bias, const float* rate, float* g, int64_t rows, int64_t H, int64_t K,  \
                     int64_t f_row) {                                                                                 \
    decays(f, bias, rate, g, rows, H, K, f_row);                                                                      \
  }                                                                                                                   \
  void decays_backward_##NAME(const float* dg, const M* f, const float* bias, const float* rate, M* d_f, float* sums, \
                              int64_t rows, int64_t H, int64_t K, int64_t d_row, int64_t f_row) {                     \
    decays_backward(dg, f, bias, rate, d_f, sums, rows, H, K, d_row, f_row);                                          \
  }                                                                                                                   \
  void gated_##NAME(const M* o, const M* z, const float* w, M* y, int64_t rows, int64_t K, int64_t o_row,             \
                    int64_t z_row, float eps) {                                                                       \
    gated(o, z, w, y, rows, K, o_row, z_row, eps);                                                                    \
  }                                                                                                                   \
  void gated_backward_##NAME(const M* d_y, const M* o, const M* z, const float* w, M* d_o, M* d_z, float* sums,       \
                             int64_t rows, int64_t K, int64_t d_row, int64_t o_row, int64_t z_row, float eps) {       \
    gated_backward(d_y, o, z, w, d_o, d_z, sums, rows, K, d_row, o_row, z_row, eps);                                  \
  }

extern "C" {
FOR(float, f32)
FOR(bf16, bf16)
}
