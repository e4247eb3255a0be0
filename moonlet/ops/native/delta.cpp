// The gated delta rule in chunks of sixteen tokens, one head of one row at a time, all of a chunk in the cache.
//
// With e_t = exp(g_t), A_i = e_1 .. e_i and R_j = e_(j+1) .. e_C of a chunk, channel by channel, and w = beta k:
//
//     seen_ij = sum_d x_i w_j e_(j+1) .. e_i     j < i for keys (x = k), j <= i for queries (x = q)
//     E = (I + seen_k)^-1 (V - (k A) S)          what each value adds to what its key recalls
//     O = scale ((q A) S + seen_q E)
//     S <- A_C S + (w R)^T E
//
// All decays are products of numbers at most 1. Where no channel forgets more than LEAST inside the chunk, `seen` is one
// product of x A and w / A; elsewhere w is taken through the decays a token at a time, which is exact whatever they are.
// A document's first token has e = 0: nothing of the state, and of other documents, passes it.
//
// Kept for backward are the states before every SPAN chunks. Backward runs such a span once more, with all that it needs
// kept in a core's cache, and then from its end to its beginning. A task is one head of one row: threads change no bit.
#include "dot.h"

#include <cstdlib>
#include <initializer_list>

namespace {

constexpr int C = 16;              // tokens of a chunk: a row of `seen` is one vector
constexpr int SPAN = 8;            // chunks; ops/delta_native.py makes room for the states before them
constexpr float LEAST = 1.6e-28f;  // e^-64: 1 / LEAST times inputs up to 1e10 is still a number

struct Strided {
  void* at;
  int64_t row, token, head;  // in elements
};

struct Call {
  int64_t B, T, H, K, V;
  Strided q, k, v, g, beta, o;  // o: the output, or its gradient
  Strided d_q, d_k, d_v, d_g, d_beta;
  const int64_t* documents;                 // [B, T] or null
  float *state, *last, *before, *d_state;   // [B, H, K, V]; before: [B, H, spans, K, V] or null; last: or its gradient
  double scale;
};

int64_t ceiling(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// What is known of a chunk. Widths are rounded up to whole vectors; what lies beyond is zero.
struct Chunk {
  int64_t begin;
  int n;       // tokens
  bool whole;  // `seen` is one product
  float beta[C];
  float *q, *k;      // [C, K]
  float *e, *A, *R;  // [C, K]
  float *x;          // [2 C, K], what reads the state: keys, then queries
  float *w, *out;    // [C, K], beta k, and what of it is left behind the chunk
  float *y;          // [C, K], w / A where whole
  float *seen;       // [2 C, C]
  float *solve;      // [C, C], (I + seen_k)^-1
  float *S, *E;      // [K, V], the state before the chunk; [C, V]
};

struct Memory {
  float* at;
  float* take(int64_t n) {
    float* p = at;
    at += ceiling(n, 16);
    return p;
  }
};

void carve(Chunk& c, Memory& m, int64_t K, int64_t V) {
  for (float** p : {&c.q, &c.k, &c.e, &c.A, &c.R, &c.w, &c.out, &c.y}) *p = m.take(C * K);
  c.x = m.take(2 * C * K), c.seen = m.take(2 * C * C), c.solve = m.take(C * C);
  c.S = m.take(K * V), c.E = m.take(C * V);
}
int64_t numbers(int64_t K, int64_t V) { return 10 * C * K + 3 * C * C + K * V + C * V; }

// What is needed for a moment.
struct Work {
  float *turned;                 // [K, 2 C]
  float *read;                   // [2 C, V]
  float *d, *dT, *dE, *ET, *dS;  // [2 C, V], [V, 2 C], [C, V], [V, C], [K, V]
  float *dx, *dy, *d_out;        // [2 C, K], [C, K] each
  float *d_seen, *own, *left;    // [2 C, C], [C], [K]
  float *dq, *dk, *dw, *dg;      // [C, K]

  Work(Memory& m, int64_t K, int64_t V) {
    turned = m.take(2 * C * K), read = m.take(2 * C * V);
    d = m.take(2 * C * V), dT = m.take(2 * C * V), dE = m.take(C * V), ET = m.take(C * V), dS = m.take(K * V);
    dx = m.take(2 * C * K), d_seen = m.take(2 * C * C), own = m.take(C), left = m.take(K);
    for (float** p : {&dy, &d_out, &dq, &dk, &dw, &dg}) *p = m.take(C * K);
  }
  static int64_t numbers(int64_t K, int64_t V) { return C * (10 * K + 8 * V + 2 * C + 1) + K + K * V; }
};

struct Buffer {
  float* base = nullptr;
  int64_t size = 0;
  ~Buffer() { free(base); }
  Memory reserve(int64_t n) {
    if (n > size) {
      free(base);
      size = ceiling(n, 1024);
      base = (float*)aligned_alloc(4096, size * sizeof(float));
      if (!base) abort();
    }
    return {base};
  }
};
thread_local Buffer buffer;

inline i16 lanes() { return i16{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }

// Sixteen rows of sixteen, `from` apart, into sixteen rows `to` apart: four rounds of interleaving halves.
inline void transpose16(const float* in, int64_t from, float* out, int64_t to) {
  f16 a[16], b[16];
  for (int i = 0; i < 16; i++) a[i] = load(in + i * from);
  auto round = [](const f16* x, f16* y) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
      y[2 * i] = __builtin_shufflevector(x[i], x[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      y[2 * i + 1] = __builtin_shufflevector(x[i], x[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    }
  };
  round(a, b), round(b, a), round(a, b), round(b, a);
  for (int i = 0; i < 16; i++) store(out + i * to, a[i]);
}
// [C, width] -> [width, C], rows `to` apart.
inline void upright(const float* in, int64_t width, float* out, int64_t to) {
  for (int64_t d = 0; d < width; d += 16) transpose16(in + d, width, out + d * to, to);
}
// [width, C], rows `from` apart, -> [C, width]
inline void lying(const float* in, int64_t from, float* out, int64_t width) {
  for (int64_t d = 0; d < width; d += 16) transpose16(in + d * from, from, out + d, width);
}

inline void product(const float* a, Matrix at, const float* b, int64_t b_row, int64_t length, float* c, int64_t c_row,
                    int64_t rows, int64_t columns, bool add) {
  multiply<Singles>(a, at, b, b_row, length, c, c_row, (int)rows, (int)(columns / 16), add);
}

// Numbers of one token into a row of whole vectors.
template <class M>
inline void fill(const M* from, float* to, int64_t width) {
  int64_t i = 0;
  for (; i + 16 <= width; i += 16) store(to + i, load(from + i));
  if (i < width) store(to + i, load(from + i, (int)(width - i)));
}
template <class M>
inline void empty(const float* from, M* to, int64_t width) {
  int64_t i = 0;
  for (; i + 16 <= width; i += 16) store(to + i, load(from + i));
  if (i < width) store(to + i, load(from + i), (int)(width - i));
}
inline void clear(float* to, int64_t n) { memset(to, 0, n * sizeof(float)); }

template <class M>
struct Head {
  const Call& call;
  const int64_t b, h, K, V;  // K and V in whole vectors
  const Work work;

  Head(const Call& call, int64_t task, const Work& work)
      : call(call), b(task / call.H), h(task % call.H), K(ceiling(call.K, 16)), V(ceiling(call.V, 16)), work(work) {}

  template <class X>
  X* at(const Strided& s, int64_t t) const {
    return (X*)s.at + b * s.row + t * s.token + h * s.head;
  }
  float* state(float* states, int64_t of, int64_t number) const {
    return states + ((b * call.H + h) * of + number) * call.K * call.V;
  }
  void get(const float* from, float* S) const {
    if (K != call.K) clear(S, K * V);
    for (int64_t d = 0; d < call.K; d++) fill(from + d * call.V, S + d * V, call.V);
  }
  void put(const float* S, float* to) const {
    for (int64_t d = 0; d < call.K; d++) empty(S + d * V, to + d * call.V, call.V);
  }

  // All of a chunk that does not depend on the state.
  void prepare(Chunk& c, int64_t begin) const {
    c.begin = begin, c.n = (int)(call.T - begin < C ? call.T - begin : C);
    const int64_t* documents = call.documents ? call.documents + b * call.T + begin : nullptr;
    for (int i = 0; i < C; i++) {
      float *q = c.q + i * K, *k = c.k + i * K, *e = c.e + i * K;
      c.beta[i] = 0;
      if (i >= c.n) {  // a token that reads nothing, writes nothing and forgets nothing
        clear(q, K), clear(k, K);
        for (int64_t d = 0; d < K; d += 16) store(e + d, splat(1));
        continue;
      }
      fill(at<M>(call.q, begin + i), q, call.K);
      fill(at<M>(call.k, begin + i), k, call.K);
      c.beta[i] = *at<float>(call.beta, begin + i);
      if (documents && begin + i && documents[i] != documents[i - 1]) {
        clear(e, K);
        continue;
      }
      fill(at<float>(call.g, begin + i), e, call.K);
      for (int64_t d = 0; d < K; d += 16) store(e + d, exponential(load(e + d)));
    }
    bool whole = true;
    for (int64_t d = 0; d < K; d += 16) {
      f16 A = splat(1), R = splat(1);
      for (int i = 0; i < C; i++) {
        int64_t at = i * K + d;
        A *= load(c.e + at);
        f16 k = load(c.k + at);
        store(c.A + at, A);
        store(c.x + at, k * A);
        store(c.x + C * K + at, load(c.q + at) * A);
        store(c.w + at, k * c.beta[i]);
      }
      for (int i = 0; i < 16; i++) whole &= A[i] >= LEAST;
      for (int i = C - 1; i >= 0; i--) {
        int64_t at = i * K + d;
        store(c.R + at, R);
        store(c.out + at, load(c.w + at) * R);
        R *= load(c.e + at);
      }
    }
    c.whole = whole;
    see(c);
    for (int i = 0; i < C; i++) {
      f16 keys = load(c.seen + i * C), queries = load(c.seen + (C + i) * C);
      store(c.seen + i * C, either(lanes() < i, keys, f16{}));
      store(c.seen + (C + i) * C, either(lanes() <= i, queries, f16{}));
    }
    f16 solve[C];
    for (int i = 0; i < C; i++) {
      f16 even = either(lanes() == i, splat(1), f16{}), odd = {};
      const float* row = c.seen + i * C;
      int j = 0;
      for (; j + 2 <= i; j += 2) even -= row[j] * solve[j], odd -= row[j + 1] * solve[j + 1];
      if (j < i) even -= row[j] * solve[j];
      store(c.solve + i * C, solve[i] = even + odd);
    }
  }

  // seen, with numbers of no meaning where a token sees none.
  void see(Chunk& c) const {
    float* wT = work.turned;
    if (c.whole) {
      for (int64_t d = 0; d < C * K; d += 16) store(c.y + d, load(c.w + d) / load(c.A + d));
      upright(c.y, K, wT, C);
      product(c.x, {K, 1}, wT, C, K, c.seen, C, 2 * C, C, false);
      return;
    }
    upright(c.w, K, wT, C);
    for (int i = 0; i < C; i++) {
      const float *q = c.q + i * K, *k = c.k + i * K, *e = c.e + i * K;
      const i16 earlier = lanes() < i;
      f16 keys = {}, queries = {};
      for (int64_t d = 0; d < K; d++) {
        f16 w = load(wT + d * C);
        w = either(earlier, w * e[d], w);
        store(wT + d * C, w);
        keys += w * k[d], queries += w * q[d];
      }
      store(c.seen + i * C, keys), store(c.seen + (C + i) * C, queries);
    }
  }

  // E, what queries read of the state (left in work.read's second half), and, if asked for, the state behind the chunk.
  void advance(Chunk& c, float* next) const {
    float* read = work.read;
    product(c.x, {K, 1}, c.S, V, K, read, V, 2 * C, V, false);
    for (int i = 0; i < c.n; i++) {
      const M* v = at<M>(call.v, c.begin + i);
      float* error = read + i * V;
      int64_t d = 0;
      for (; d + 16 <= call.V; d += 16) store(error + d, load(v + d) - load(error + d));
      if (d < call.V) store(error + d, load(v + d, (int)(call.V - d)) - load(error + d));
    }
    clear(read + c.n * V, (C - c.n) * V);
    product(c.solve, {C, 1}, read, V, C, c.E, V, C, V, false);
    if (!next) return;
    decay(c, c.S, next);
    product(c.out, {1, K}, c.E, V, C, next, V, K, V, true);
  }
  // What the chunk leaves of a state.
  void decay(const Chunk& c, const float* from, float* to) const {
    const float* left = c.A + (C - 1) * K;
    for (int64_t d = 0; d < K; d++)
      for (int64_t j = 0; j < V; j += 16) store(to + d * V + j, load(from + d * V + j) * left[d]);
  }

  void forward(Chunk& c) const {
    get(state(call.state, 1, 0), c.S);
    const float scale = (float)call.scale;
    for (int64_t begin = 0; begin < call.T; begin += C) {
      if (call.before && begin % (SPAN * C) == 0) put(c.S, state(call.before, spans(), begin / (SPAN * C)));
      prepare(c, begin);
      advance(c, c.S);
      float* o = work.read + C * V;
      product(c.seen + C * C, {C, 1}, c.E, V, C, o, V, C, V, true);
      for (int i = 0; i < c.n; i++) {
        for (int64_t j = 0; j < V; j += 16) store(o + i * V + j, load(o + i * V + j) * scale);
        empty(o + i * V, at<M>(call.o, begin + i), call.V);
      }
    }
    put(c.S, state(call.last, 1, 0));
  }
  int64_t spans() const { return (call.T + SPAN * C - 1) / (SPAN * C); }

  void backward(Chunk* chunks) const {
    float* dS = work.dS;
    get(state(call.last, 1, 0), dS);
    for (int64_t span = spans() - 1; span >= 0; span--) {
      get(state(call.before, spans(), span), chunks[0].S);
      int count = 0;
      for (int64_t begin = span * SPAN * C; count < SPAN && begin < call.T; begin += C, count++) {
        prepare(chunks[count], begin);
        bool more = count + 1 < SPAN && begin + C < call.T;
        advance(chunks[count], more ? chunks[count + 1].S : nullptr);
      }
      while (count--) back(chunks[count], dS);
    }
    put(dS, state(call.d_state, 1, 0));
  }

  // Gradients of one chunk's inputs; dS, that of the state behind it, becomes that of the state before it.
  void back(const Chunk& c, float* dS) const {
    const Work& m = work;
    float *d_error = m.d, *d_o = m.d + C * V;  // the former with its sign turned: that of what keys read
    const float scale = (float)call.scale;
    for (int i = 0; i < C; i++) {
      if (i >= c.n) {
        clear(d_o + i * V, V);
        continue;
      }
      fill(at<M>(call.o, c.begin + i), d_o + i * V, call.V);
      for (int64_t j = 0; j < V; j += 16) store(d_o + i * V + j, load(d_o + i * V + j) * scale);
    }
    product(c.seen + C * C, {1, C}, d_o, V, C, m.dE, V, C, V, false);
    product(c.out, {K, 1}, dS, V, K, m.dE, V, C, V, true);
    product(c.solve, {1, C}, m.dE, V, C, d_error, V, C, V, false);
    for (int i = 0; i < c.n; i++) empty(d_error + i * V, at<M>(call.d_v, c.begin + i), call.V);
    for (int64_t j = 0; j < C * V; j += 16) store(d_error + j, -load(d_error + j));

    upright(d_error, V, m.dT, 2 * C), upright(d_o, V, m.dT + C, 2 * C), upright(c.E, V, m.ET, C);
    product(c.S, {V, 1}, m.dT, 2 * C, V, m.turned, 2 * C, K, 2 * C, false);
    lying(m.turned, 2 * C, m.dx, K), lying(m.turned + C, 2 * C, m.dx + C * K, K);
    product(dS, {V, 1}, m.ET, C, V, m.turned, C, K, C, false);
    lying(m.turned, C, m.d_out, K);
    product(m.d, {V, 1}, m.ET, C, V, m.d_seen, C, 2 * C, C, false);
    for (int i = 0; i < C; i++) {
      float *keys = m.d_seen + i * C, *queries = m.d_seen + (C + i) * C;
      // A query sees what its own token wrote without any decay: put aside, so that nothing is left of it to cancel.
      m.own[i] = queries[i];
      store(keys, either(lanes() < i, load(keys), f16{}));
      store(queries, either(lanes() < i, load(queries), f16{}));
    }
    for (int64_t d = 0; d < K; d++) {
      f16 sum = {};
      for (int64_t j = 0; j < V; j += 16) sum += load(c.S + d * V + j) * load(dS + d * V + j);
      m.left[d] = total(sum) * c.A[(C - 1) * K + d];
    }
    decay(c, dS, dS);
    product(c.x, {1, K}, m.d, V, 2 * C, dS, V, K, V, true);

    if (c.whole) {
      product(m.d_seen, {C, 1}, c.y, K, C, m.dx, K, 2 * C, K, true);
      product(m.d_seen, {1, C}, c.x, K, 2 * C, m.dy, K, C, K, false);
    }
    for (int64_t d = 0; d < K; d += 16) channels(c, d);
    for (int i = 0; i < c.n; i++) {
      f16 sum = {};
      const float b = c.beta[i];
      for (int64_t j = i * K; j < (i + 1) * K; j += 16) {
        f16 dw = load(m.dw + j);
        sum += dw * load(c.k + j);
        store(m.dk + j, load(m.dk + j) + dw * b);
      }
      *at<float>(call.d_beta, c.begin + i) = total(sum);
      empty(m.dq + i * K, at<M>(call.d_q, c.begin + i), call.K);
      empty(m.dk + i * K, at<M>(call.d_k, c.begin + i), call.K);
      empty(m.dg + i * K, at<float>(call.d_g, c.begin + i), call.K);
    }
  }

  // Sixteen channels through the decays: from gradients of x, out and y to those of q, k, w and g.
  void channels(const Chunk& c, int64_t d) const {
    const Work& m = work;
    f16 dg[C] = {}, dq[C], dk[C], dw[C], behind = load(m.left + d);
    for (int i = C - 1; i >= 0; i--) {
      const int64_t j = i * K + d;
      f16 keys = load(m.dx + j), queries = load(m.dx + C * K + j), A = load(c.A + j);
      f16 logs = keys * load(c.x + j) + queries * load(c.x + C * K + j);
      dk[i] = keys * A, dq[i] = queries * A;
      dw[i] = load(m.d_out + j) * load(c.R + j);
      if (c.whole) {
        f16 dy = load(m.dy + j);
        dw[i] += dy / A;
        logs -= dy * load(c.y + j);
      }
      dg[i] = behind += logs;
    }
    if (!c.whole) pairs(c, d, dq, dk, dw, dg);
    f16 passing = {};
    for (int i = 0; i < C; i++) {
      const int64_t j = i * K + d;
      store(m.dg + j, dg[i] + passing);
      passing += load(m.d_out + j) * load(c.out + j);
      store(m.dq + j, dq[i] + load(c.w + j) * m.own[i]);
      store(m.dk + j, dk[i]);
      store(m.dw + j, dw[i] + load(c.q + j) * m.own[i]);
    }
  }

  // What each token wrote, taken through the decays a token at a time; its gradient, taken back.
  void pairs(const Chunk& c, int64_t d, f16* dq, f16* dk, f16* dw, f16* dg) const {
    for (int j = 0; j < C - 1; j++) {
      f16 seen[C], w = load(c.w + j * K + d), back = {};
      for (int i = j + 1; i < C; i++) {
        seen[i] = w *= load(c.e + i * K + d);
        dk[i] += w * work.d_seen[i * C + j];
        dq[i] += w * work.d_seen[(C + i) * C + j];
      }
      for (int i = C - 1; i > j; i--) {
        back += load(c.k + i * K + d) * work.d_seen[i * C + j] + load(c.q + i * K + d) * work.d_seen[(C + i) * C + j];
        dg[i] += seen[i] * back;
        back *= load(c.e + i * K + d);
      }
      dw[j] += back;
    }
  }
};

template <class M>
void run(const Call& call, int threads, bool backward) {
  const int64_t K = ceiling(call.K, 16), V = ceiling(call.V, 16), count = backward ? SPAN : 1;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t task = 0; task < call.B * call.H; task++) {
    Memory memory = buffer.reserve(count * numbers(K, V) + Work::numbers(K, V));
    Chunk chunks[SPAN];
    for (int64_t i = 0; i < count; i++) carve(chunks[i], memory, K, V);
    Head<M> head(call, task, Work(memory, K, V));
    backward ? head.backward(chunks) : head.forward(chunks[0]);
  }
}

}  // namespace

extern "C" {
void delta_f32(const Call* c, int64_t threads) { run<float>(*c, (int)threads, false); }
void delta_bf16(const Call* c, int64_t threads) { run<bf16>(*c, (int)threads, false); }
void delta_backward_f32(const Call* c, int64_t threads) { run<float>(*c, (int)threads, true); }
void delta_backward_bf16(const Call* c, int64_t threads) { run<bf16>(*c, (int)threads, true); }
}
