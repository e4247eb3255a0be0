// One token a row through attention over the cache: MLA in absorbed form, and grouped queries.
//
//   MLA   q' = [q_nope W_k | rope(q_rope)] a head,  u = softmax(q' entries^T scale) entries[:R],  out = u W_v^T
//   GQA   out = softmax(rope(q) keys^T scale) values, H/G query heads to a head of keys and values
//
// A thread has some heads, for all rows: their weights are read once. Up to HEADS of them meet the cache together, block
// by block: a sum goes through the positions in their order, whatever blocks they lie in.
#pragma once

#include <cmath>

#include "decode_model.hpp"

constexpr int64_t HEADS = 8;

// Pairs (2i, 2i + 1) for MLA, (i, i + half) for GQA.
inline void turn(float* x, const float* cos, const float* sin, int64_t half, bool interleaved) {
  for (int64_t i = 0; i < half; i++) {
    float &a = interleaved ? x[2 * i] : x[i], &b = interleaved ? x[2 * i + 1] : x[i + half];
    const float first = a, second = b;
    a = first * cos[i] - second * sin[i];
    b = first * sin[i] + second * cos[i];
  }
}

inline void softmax(float* x, int64_t n, float scale) {
  float largest = x[0];
  for (int64_t i = 1; i < n; i++) largest = x[i] > largest ? x[i] : largest;
  f16 sum = {};
  each(n, [&](int64_t i, int64_t m) {
    f16 v = exponential((get(x + i, m) - largest) * scale);
    set(x + i, v, m);
    sum += m == LANES ? v : load_some(x + i, m);
  });
  const float inverse = 1.0f / fold(sum);
  each(n, [&](int64_t i, int64_t m) { set(x + i, get(x + i, m) * inverse, m); });
}

// Queries (a vector each) over S keys and values of one row: y[h] = softmax(q[h] keys^T scale) values.
template <class T>
void attend(const Blocks<T>& keys, int64_t key_width, const Blocks<T>& values, int64_t value_width, int64_t S,
            Rows queries, float scale, float* logits, float* y, int64_t y_stride) {
  for (int64_t h = 0; h < queries.count; h += HEADS) {
    const int64_t count = queries.count - h < HEADS ? queries.count - h : HEADS;
    const Rows some = {queries.base + h * queries.stride, queries.stride, count};
    keys.each(S, [&](int64_t from, int64_t to, const T* rows) {
      dots(rows, keys.stride, 0, to - from, some, key_width, [=](int64_t b, int64_t s, const float* v, int64_t n) {
        memcpy(logits + b * S + from + s, v, n * sizeof(float));
      });
    });
    for (int64_t i = 0; i < count; i++) softmax(logits + i * S, S, scale);
    combine(values, value_width, {logits, S, count}, S, y + h * y_stride, y_stride);
  }
}

template <class T>  // of the cache
struct Attention {
  const Worker& w;
  const Layer& layer;
  const Memory& memory;
  const Model& m = w.model;
  const int64_t B = w.rows();

  // Which block holds each `block` positions of row b's text.
  const int64_t* table(int64_t b) const { return w.call.tables + w.call.texts[b] * w.call.table_stride; }

  // Where row b's own position begins in its block, of entries `stride` wide.
  T* own(int64_t b, int64_t stride) const {
    const int64_t position = w.call.positions[b], block = w.call.block;
    return (T*)memory.entries + table(b)[position / block] * memory.row_stride + position % block * stride;
  }

  // Row b's entries from `skipped` numbers on.
  Blocks<T> entries(int64_t b, int64_t stride, int64_t skipped = 0) const {
    return {(const T*)memory.entries + skipped, stride, table(b), memory.row_stride, w.call.block};
  }

  void turn_row(float* x, int64_t b, int64_t width, bool interleaved) const {
    if (!w.call.cos) return;
    const int64_t half = width / 2, at = w.call.turns[b] * half;
    turn(x, w.call.cos + at, w.call.sin + at, half, interleaved);
  }

  void mla() const {
    const int64_t H = m.heads, Q = H * (m.K + m.P), E = m.R + m.P;
    const Rows x = w.normed_rows(layer.norm_mix);
    float *q = w.wide, *latent = w.narrow, *absorbed = w.inner, *u = w.up;
    float* low = w.mixed;  // the queries' latent, over before `mixed` is needed
    w.linear(layer.kv, x, latent, E);
    const int64_t rank = layer.q_a.rows;
    w.linear(rank ? layer.q_a : layer.q, x, rank ? low : q, rank ? rank : Q);
    w.wait();
    for (int64_t b = w.thread; b < B; b += w.threads) remember(latent + b * E, b);
    if (rank) {
      float* normed = w.own;
      for (int64_t b = 0; b < B; b++) Worker::norm(low + b * rank, normed + b * rank, layer.q_norm, rank, m.latent_eps);
      w.linear(layer.q, {normed, rank, B}, q, Q);
    }
    w.wait();
    const Range heads = w.part(H, 1);
    for (int64_t h = heads.first; h < heads.last; h++) absorb(h, q, absorbed);
    for (int64_t b = 0; b < B && heads.first < heads.last; b++) {
      const int64_t at = b * H + heads.first;
      attend(entries(b, E), E, entries(b, E), m.R, w.call.positions[b] + 1,
             {absorbed + at * E, E, heads.last - heads.first}, (float)m.scale, w.own, u + at * m.R, m.R);
    }
    for (int64_t h = heads.first; h < heads.last; h++) {
      const int64_t first = h * (m.K + m.V) + m.K;
      float* to = w.mixed + h * m.V;
      const int64_t stride = H * m.V;
      w.product(layer.kv_b, {0, m.V}, {u + h * m.R, H * m.R, B},
                [=](int64_t b, int64_t o, const float* v, int64_t n) {
                  memcpy(to + b * stride + o, v, n * sizeof(float));
                }, first);
    }
    w.wait();
    w.add(layer.o, {w.mixed, H * m.V, B});
  }

  // The new entry of row b: its latent normed and its key turned.
  void remember(float* latent, int64_t b) const {
    Worker::norm(latent, latent, layer.kv_norm, m.R, m.latent_eps);
    turn_row(latent + m.R, b, m.P, true);
    T* to = own(b, m.R + m.P);
    for (int64_t i = 0; i < m.R + m.P; i++) put(to + i, latent[i]);
  }

  // Head h of all rows: what it asks for, in the space of the entries.
  void absorb(int64_t h, float* q, float* absorbed) const {
    const int64_t H = m.heads, Q = H * (m.K + m.P), E = m.R + m.P;
    const Rows nope = {q + h * (m.K + m.P), Q, B};
    const int64_t skipped = h * (m.K + m.V) * m.R;
    float* to = absorbed + h * E;
    if (layer.kv_b.kind == BF16)
      combine(Blocks<Bf16>{(const Bf16*)layer.kv_b.data + skipped, m.R}, m.R, nope, m.K, to, H * E);
    else
      combine(Blocks<float>{(const float*)layer.kv_b.data + skipped, m.R}, m.R, nope, m.K, to, H * E);
    for (int64_t b = 0; b < B; b++) {
      float* rope = to + b * H * E + m.R;
      memcpy(rope, nope[b] + m.K, m.P * sizeof(float));
      turn_row(rope, b, m.P, true);
    }
  }

  void gqa() const {
    const int64_t H = m.heads, G = m.groups, K = m.K, per = H / G;
    const Rows x = w.normed_rows(layer.norm_mix);
    float *q = w.wide, *k = w.narrow, *v = w.up;
    w.linear(layer.q, x, q, H * K);
    w.linear(layer.kv, x, k, G * K);
    w.linear(layer.v, x, v, G * K);
    w.wait();
    for (int64_t i = w.thread; i < B * G; i += w.threads) {
      const int64_t b = i / G, g = i % G;
      turn_row(k + i * K, b, m.P, false);
      T* to = own(b, K) + g * memory.group_stride;
      for (int64_t j = 0; j < K; j++) put(to + j, k[i * K + j]), put(to + memory.kind_stride + j, v[i * K + j]);
    }
    w.wait();
    const Range heads = w.part(H, 1);
    for (int64_t b = 0; b < B; b++)
      for (int64_t h = heads.first; h < heads.last;) {
        const int64_t g = h / per, end = (g + 1) * per < heads.last ? (g + 1) * per : heads.last;
        float* asked = q + (b * H + h) * K;
        for (int64_t i = 0; i < end - h; i++) turn_row(asked + i * K, b, m.P, false);
        const int64_t keys = g * memory.group_stride;
        attend(entries(b, K, keys), K, entries(b, K, keys + memory.kind_stride), K, w.call.positions[b] + 1,
               {asked, K, end - h}, (float)m.scale, w.own, w.mixed + (b * H + h) * K, K);
        h = end;
      }
    w.wait();
    w.add(layer.o, {w.mixed, H * K, B});
  }
};
