// One token a row through Kimi delta attention, a head at a time; model/kda.py has the equations.
//
// Short convolutions over q, k and v, decay, the state's two passes, the gated norm: all of it is one head's own, so a
// thread takes its heads from the projections to the output without waiting for the others.
#pragma once

#include <cmath>

#include "decode_model.hpp"

template <class T>  // of the remembered inputs
struct Delta {
  const Worker& w;
  const Layer& layer;
  const Memory& memory;
  const int64_t H = w.model.delta_heads, K = w.model.delta_width, W = w.model.delta_taps, B = w.rows();
  const int64_t all_heads = H * K;

  void step() const {
    const Rows x = w.normed_rows(layer.norm_mix);
    float *qkv = w.wide, *f = w.narrow, *gate = w.inner, *beta = w.scores;
    w.linear(layer.q, x, qkv, 3 * all_heads);
    w.linear(layer.kv, x, qkv + all_heads, 3 * all_heads);
    w.linear(layer.v, x, qkv + 2 * all_heads, 3 * all_heads);
    w.linear(layer.f_a, x, f, K);
    w.linear(layer.g_a, x, gate, K);
    w.linear(layer.beta, x, beta, H);
    w.wait();
    const Range heads = w.part(H, 1);
    float *decay = w.own, *passed = decay + B * K, *q = passed + B * K, *k = q + K, *v = k + K;
    for (int64_t h = heads.first; h < heads.last; h++) {
      rows_of(layer.f_b, h, {f, K, B}, decay);
      rows_of(layer.g_b, h, {gate, K, B}, passed);
      for (int64_t b = 0; b < B; b++) {
        const bool empty = w.call.positions[b] == 0;
        const float* taken = qkv + b * 3 * all_heads + h * K;
        convolve(taken, b, h, 0, empty, q);
        convolve(taken, b, h, 1, empty, k);
        convolve(taken, b, h, 2, empty, v);
        to_length_one(q);
        to_length_one(k);
        decays(decay + b * K, h);
        float* out = w.mixed + b * all_heads + h * K;
        recur((float*)memory.entries + w.call.texts[b] * memory.row_stride + h * K * K, empty, decay + b * K, q, k, v,
              1.0f / (1.0f + std::exp(-beta[b * H + h])), out);
        Worker::norm(out, out, layer.o_norm, K, w.model.eps);
        const float* z = passed + b * K;
        each(K, [&](int64_t i, int64_t n) { set(out + i, get(out + i, n) * sigmoid(get(z + i, n)), n); });
      }
    }
    w.wait();
    w.add(layer.o, {w.mixed, all_heads, B});
  }

  // Head h's K rows of a matrix, against all vectors. -> to [B, K]
  void rows_of(const Matrix& m, int64_t h, const Rows& rows, float* to) const {
    const int64_t K = this->K;
    w.product(m, {0, K}, rows, [=](int64_t b, int64_t o, const float* y, int64_t n) {
      memcpy(to + b * K + o, y, n * sizeof(float));
    }, h * K);
  }

  // SiLU of the channels' last W inputs; the new one moves in, the oldest out.
  void convolve(const float* taken, int64_t b, int64_t h, int64_t which, bool empty, float* to) const {
    const int64_t channel = which * all_heads + h * K;
    const float* now = taken + which * all_heads;
    T* before = (T*)memory.inputs + w.call.texts[b] * memory.inputs_stride + channel;
    const float* taps = layer.taps + channel;
    for (int64_t i = 0; i < K; i++) {
      float sum = now[i] * taps[(W - 1) * 3 * all_heads + i];
      for (int64_t j = 0; j < W - 1; j++) {
        T* past = before + j * 3 * all_heads + i;
        if (empty) put(past, 0.0f);
        sum += value(*past) * taps[j * 3 * all_heads + i];
        put(past, j + 1 < W - 1 ? (empty ? 0.0f : value(past[3 * all_heads])) : now[i]);
      }
      to[i] = sum;
    }
    each(K, [&](int64_t i, int64_t n) { set(to + i, get(to + i, n) * sigmoid(get(to + i, n)), n); });
  }

  void to_length_one(float* x) const {
    const float inverse = 1.0f / std::sqrt(sum_of_squares(x, K) + 1e-6f);
    each(K, [&](int64_t i, int64_t n) { set(x + i, get(x + i, n) * inverse, n); });
  }

  // exp(rate softplus(f + bias)), in place; rate is negative.
  void decays(float* f, int64_t h) const {
    for (int64_t i = 0; i < K; i++) {
      const float y = f[i] + layer.dt_bias[h * K + i];
      f[i] = std::exp(layer.rate[h] * (y > 20.0f ? y : std::log1p(std::exp(y))));
    }
  }

  // ops/delta.py: delta_step, for one head of one row. The new state is never read again: the query meets what is
  // written as (beta k . q) error.
  void recur(float* state, bool empty, const float* decay, const float* q, const float* k, const float* v, float beta,
             float* out) const {
    if (empty) memset(state, 0, K * K * sizeof(float));
    float meets = 0.0f;
    for (int64_t i = 0; i < K; i++) meets += beta * k[i] * q[i];
    const float scale = 1.0f / std::sqrt((float)K);
    each(K, [&](int64_t j, int64_t n) {
      f16 recalled = {}, asked = {};
      for (int64_t i = 0; i < K; i++) {
        const f16 kept = get(state + i * K + j, n) * decay[i];
        recalled += kept * k[i];
        asked += kept * q[i];
      }
      const f16 wrong = get(v + j, n) - recalled;
      set(out + j, (asked + wrong * meets) * scale, n);
      for (int64_t i = 0; i < K; i++)
        set(state + i * K + j, get(state + i * K + j, n) * decay[i] + wrong * (beta * k[i]), n);
    });
  }
};
