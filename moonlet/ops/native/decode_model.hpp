// What a decode step is told: the weights, once, and what changes with every call. moonlet/generate/native_step.py fills
// these structures field by field, so their order is shared with it; every integer is 64 bits wide.
#pragma once

#include <atomic>
#include <cstdint>

#include "low_bit.hpp"

#if defined(_OPENMP)
#include <sched.h>
#endif

enum Kind : int64_t { FLOAT, BF16, INT4, MXFP4 };

struct Matrix {
  const void* data;  // [rows, columns], each row behind the one before
  int64_t rows, columns;
  Kind kind;
  const void* scales;  // of codes

  bool is_codes() const { return kind == INT4 || kind == MXFP4; }

  // Of rows `skipped` and on.
  template <class C>
  Codes codes(int64_t skipped) const {
    const int64_t bytes = kind == INT4 ? (columns + 7) / 8 * 4 : (columns + 1) / 2;
    const int64_t groups = (columns + GROUP - 1) / GROUP;
    const auto* own = (const typename C::Scale*)scales + skipped * groups;
    return {(const uint8_t*)data + skipped * bytes, own, bytes, groups, columns};
  }
};

struct Layer {
  int64_t mixer;  // 0 MLA, 1 GQA, 2 KDA
  int64_t has_experts, has_shared;
  const float *norm_mix, *norm_channels;
  Matrix q_a, q, kv, kv_b, v, o;  // GQA and KDA: k is kv
  const float *q_norm, *kv_norm;
  // KDA
  Matrix f_a, f_b, g_a, g_b, beta;
  const float *taps, *rate, *dt_bias, *o_norm;  // taps [W, 3HK], rate [H]
  // dense: gate, up, down; with experts: those of the shared ones
  Matrix gate, up, down;
  Matrix router;
  const float* router_bias;
  Matrix expert_gate_up, expert_down;  // [E * 2I, D], [E * D, I]; these may be codes
};

struct Model {
  int64_t layers, width, vocabulary;
  int64_t heads, groups, K, P, R, V;        // GQA: K wide heads, of which P are turned
  int64_t delta_heads, delta_width, delta_taps;
  int64_t experts, active, expert_groups, top_groups, softmax, normalise;
  double routed_scale, scale, eps, latent_eps;
  const Layer* layer;
  Matrix embedding, head;
  const float* norm;
};

// One layer's memory; strides count numbers. Attention's lies in N blocks of S positions, KDA's in a row a text.
struct Memory {
  void* entries;  // MLA [N, S, R+P], GQA [2, N, G, S, K], KDA's state [B, H, K, V]
  int64_t row_stride, kind_stride, group_stride;
  void* inputs;  // KDA: [B, W-1, 3HK]
  int64_t inputs_stride;
};

// A row is one token. Those of one text follow one another in order; each sees the cache up to its own position.
struct Call {
  const int64_t* tokens;
  const int64_t* positions;
  const int64_t* texts;   // which row of the cache each belongs to
  const int64_t* tables;  // [B, table_stride]: the blocks of each row of the cache, in order
  const int64_t* wanted;  // rows whose logits are asked for
  int64_t table_stride, block;  // positions of a block
  int64_t rows, logits_rows, is_bf16, threads, longest;  // longest: one more than any position
  const Memory* memory;
  const float *cos, *sin;       // [positions, half]
  const int64_t* turns;         // which row of them each row takes
  float* scratch;
  float* logits;  // [wanted, vocabulary]
};

// Threads wait for each other: they spin, as what they wait for takes a microsecond, and yield when it takes longer.
class Barrier {
 public:
  void expect(int64_t threads) { n_ = threads; }
  void wait() {
    if (n_ == 1) return;
    const int64_t seen = turn_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == n_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      turn_.store(seen + 1, std::memory_order_release);
      return;
    }
    for (int64_t spins = 0; turn_.load(std::memory_order_acquire) == seen; spins++) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
#if defined(_OPENMP)
      if (spins > 1000) sched_yield();
#endif
    }
  }

 private:
  int64_t n_ = 1;
  alignas(64) std::atomic<int64_t> arrived_{0};
  alignas(64) std::atomic<int64_t> turn_{0};
};

struct Range {
  int64_t first, last;
};

// What one thread of a step knows.
struct Worker {
  const Model& model;
  const Call& call;
  Barrier& barrier;
  int64_t thread, threads;
  // Shared by all: the residual stream x [B, D]; wide and narrow buffers [B, ...].
  float *x, *wide, *narrow, *mixed, *inner, *up, *scores;
  // This thread's own.
  float *normed, *own;

  int64_t rows() const { return call.rows; }

  // This thread's part of `total`, cut at multiples of `unit`.
  Range part(int64_t total, int64_t unit = TILE) const {
    const int64_t units = (total + unit - 1) / unit;
    const int64_t first = units * thread / threads * unit, last = units * (thread + 1) / threads * unit;
    return {first < total ? first : total, last < total ? last : total};
  }

  void wait() const { barrier.wait(); }

  // Rows [first, last) of a matrix, each against all vectors, which for codes lie in their order.
  template <class Sink>
  void product(const Matrix& m, Range r, const Rows& rows, Sink&& sink, int64_t skipped = 0) const {
    if (m.kind == INT4)
      code_dots<Int4>(m.codes<Int4>(skipped), r.first, r.last, rows, sink);
    else if (m.kind == MXFP4)
      code_dots<Mxfp4>(m.codes<Mxfp4>(skipped), r.first, r.last, rows, sink);
    else if (m.kind == BF16)
      dots((const Bf16*)m.data + skipped * m.columns, m.columns, r.first, r.last, rows, m.columns, sink);
    else
      dots((const float*)m.data + skipped * m.columns, m.columns, r.first, r.last, rows, m.columns, sink);
  }

  // This thread's part of y = x W^T.
  void linear(const Matrix& m, const Rows& rows, float* y, int64_t stride) const {
    product(m, part(m.rows), rows, [=](int64_t b, int64_t o, const float* v, int64_t n) {
      memcpy(y + b * stride + o, v, n * sizeof(float));
    });
  }

  // This thread's part of x += y W^T.
  void add(const Matrix& m, const Rows& rows) const {
    const int64_t D = model.width;
    float* to = x;
    product(m, part(m.rows), rows, [=](int64_t b, int64_t o, const float* v, int64_t n) {
      for (int64_t i = 0; i < n; i++) to[b * D + o + i] += v[i];
    });
  }

  // x / sqrt(mean x^2 + eps) weight
  static void norm(const float* from, float* to, const float* weight, int64_t n, double eps) {
    const float inverse = 1.0f / __builtin_sqrtf(sum_of_squares(from, n) / (float)n + (float)eps);
    each(n, [&](int64_t i, int64_t m) { set(to + i, get(from + i, m) * inverse * get(weight + i, m), m); });
  }

  // All rows of x, normed: each thread for itself, which costs less than to wait for the others.
  Rows normed_rows(const float* weight) const {
    const int64_t D = model.width;
    for (int64_t b = 0; b < rows(); b++) norm(x + b * D, normed + b * D, weight, D, model.eps);
    return {normed, D, rows()};
  }
};
