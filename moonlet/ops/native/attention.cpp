// Causal attention in tiles that stay in the cache: no logit reaches memory, and what the mask hides is not computed.
//
// Forward, 16 queries at a time over strips of up to 256 keys: logits, running maximum and sum, probabilities, values.
// It keeps the logarithm of each row's sum. Backward, 64 queries by 64 keys at a time: the logits once more, then
//
//     p = exp(s - lse)    ds = p (dp - sum_v do o)    dv += p^T do    dk += ds^T q    dq += ds k
//
// A task is one key head of one row with all query heads that share it, so that every sum has one order, whatever the
// number of threads. Queries and keys may end in P channels that are turned by the position first (rope); the keys' then
// are shared by all heads and stand by themselves, and nothing is joined in memory.
#include "dot.h"

#include <cstdlib>

namespace {

struct Strided {
  void* at;
  int64_t row, head, token;  // in elements
};

struct Call {
  int64_t B, H, G, T, S;  // rows, heads, key heads, queries, keys
  int64_t K, P, V;        // widths: own channels, turned (or only shared) channels, values
  Strided q, k, shared, v, out, d_out, d_q, d_k, d_shared, d_v;
  const float *cos, *sin;  // [row,] position, P / 2; null: nothing turns
  int64_t cos_row, cos_token;
  const int64_t *starts, *documents;  // [B] or null; [B, T] or null
  int64_t start;
  float *lse, *largest, *turned;  // [B, H, T]; the same or null; [B, G, S, P]: the shared keys' gradient of each head
  double scale;
};

constexpr int ROWS = 16;    // queries of a forward tile, and of a strip of the backward's
constexpr int STRIP = 256;  // keys of a forward tile
constexpr int SIDE = 64;    // queries and keys of a backward tile; keys of a panel
constexpr int STEP = 32;    // keys are skipped in steps of this
constexpr int AHEAD = 24;   // rows from one that is read to one that is asked for

int64_t ceiling(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Memory that a thread keeps between calls and hands out piece by piece.
struct Arena {
  char* base = nullptr;
  size_t size = 0, used = 0;
  ~Arena() { free(base); }
  void reserve(size_t bytes) {
    used = 0;
    if (bytes <= size) return;
    free(base);
    size = ceiling(bytes, 4096);
    base = (char*)aligned_alloc(4096, size);
    if (!base) abort();
  }
  template <class T>
  T* take(size_t n) {
    T* p = (T*)(base + used);
    used += ceiling(n * sizeof(T), 64);
    return p;
  }
};
thread_local Arena arena;

// ---- From memory into the layouts of the products --------------------------------------------------------------

// Rows are short: a call of memcpy or memset would cost more than the work.
template <class M, class N>
inline void copy(const M* from, N* to, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    if constexpr (sizeof(M) == sizeof(N)) memcpy((void*)(to + i), (const void*)(from + i), 16 * sizeof(M));
    else store(to + i, load(from + i));
  }
  for (; i < n; i++) {
    if constexpr (sizeof(M) == sizeof(N)) memcpy((void*)(to + i), (const void*)(from + i), sizeof(M));
    else store(to + i, load(from + i, 1), 1);
  }
}
template <class N>
inline void clear(N* to, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) memset((void*)(to + i), 0, 16 * sizeof(N));
  for (; i < n; i++) memset((void*)(to + i), 0, sizeof(N));
}

// Keeps a product from being fused with the sum that follows: turned here or by PyTorch, a key has the same bits.
volatile int32_t nothing = 0;
inline f16 settled(f16 v, int32_t zero) { return (f16)((i16)v + zero); }

// Sixteen channels, pairs (2i, 2i+1), turned by eight angles; against them for sense -1.
inline f16 turned(f16 x, f16 cos, f16 sin, float sense) {
  const f16 sign = {-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1};
  f16 swapped = __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
  cos = __builtin_shufflevector(cos, cos, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  sin = __builtin_shufflevector(sin, sin, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  const int32_t zero = nothing;
  return settled(x * cos, zero) + settled(swapped * (sin * sign * sense), zero);
}
inline f16 eight(const float* p) {
  f16 v = {};
  memcpy(&v, p, 32);
  return v;
}

// `width` channels turned, and rounded to M on the way.
template <class M, class F, class N>
void turn(const F* from, N* to, const float* cos, const float* sin, int64_t width, float sense) {
  int64_t i = 0;
  for (; i + 16 <= width; i += 16)
    store(to + i, through(turned(load(from + i), eight(cos + i / 2), eight(sin + i / 2), sense), (const M*)nullptr));
  if (int n = (int)(width - i)) {
    f16 c = load(cos + i / 2, n / 2), s = load(sin + i / 2, n / 2);
    store(to + i, through(turned(load(from + i, n), c, s, sense), (const M*)nullptr), n);
  }
}

template <class M>
struct Kernel {
  const Call& c;

  template <class X = M>
  X* element(const Strided& s, int64_t b, int64_t h, int64_t t) const {
    return (X*)s.at + b * s.row + h * s.head + t * s.token;
  }
  // Rows of one head lie far apart, where the processor does not look ahead by itself.
  void soon(const Strided& s, int64_t b, int64_t h, int64_t t, int64_t width) const {
    const char* p = (const char*)element(s, b, h, t + AHEAD);
    for (int64_t i = 0; i < width * (int64_t)sizeof(M) + 63; i += 64) __builtin_prefetch(p + i);
  }
  const float* angle(const float* table, int64_t b, int64_t t) const {
    return table + b * c.cos_row + t * c.cos_token;
  }
  int64_t begin(int64_t b) const { return c.starts ? c.starts[b] : c.start; }

  // One query or key with its turned part behind it, zeros up to `width`.
  template <class N>
  void gather(const M* own, const M* extra, int64_t b, int64_t t, N* to, int64_t width) const {
    copy(own, to, c.K);
    if (c.P) {
      if (c.cos) turn<M>(extra, to + c.K, angle(c.cos, b, t), angle(c.sin, b, t), c.P, 1.0f);
      else copy(extra, to + c.K, c.P);
    }
    clear(to + c.K + c.P, width - c.K - c.P);
  }
};

// Sixteen rows of sixteen units, columns made rows: four perfect shuffles.
inline void transpose(u16* row) {
  for (int round = 0; round < 4; round++) {
    u16 next[16];
    for (int i = 0; i < 8; i++) {
      u16 a = row[i], b = row[i + 8];
      next[2 * i] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      next[2 * i + 1] = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    }
    for (int i = 0; i < 16; i++) row[i] = next[i];
  }
}

// Rows [n][width] as panels of SIDE rows, each [unit][row]: the contraction runs along the width. The last row is read
// up to fifteen units beyond its end.
template <class D>
void panels(const typename D::number* rows, typename D::unit* to, int64_t n, int64_t width, int64_t units) {
  for (int64_t s = 0; s < n; s += 16)
    for (int64_t u = 0; u < units; u += 16) {
      u16 square[16];
      for (int i = 0; i < 16; i++) memcpy(&square[i], rows + (s + i) * width + u * D::per, 64);
      transpose(square);
      typename D::unit* out = to + s / SIDE * SIDE * units + u * SIDE + s % SIDE;
      const int64_t kept = units - u < 16 ? units - u : 16;
      for (int i = 0; i < kept; i++) memcpy(out + i * SIDE, &square[i], 64);
    }
}

// Rows [n][width], width in sixteens, as [n / per][width] units: the contraction runs along the rows.
template <class D>
void paired(const typename D::number* rows, typename D::unit* to, int64_t n, int64_t width) {
  if constexpr (D::per == 1) memcpy(to, rows, n * width * sizeof(float));
  else
    for (int64_t s = 0; s < n; s += 2)
      for (int64_t i = 0; i < width; i += 16) {
        h16 low, high;
        memcpy(&low, rows + s * width + i, 32);
        memcpy(&high, rows + (s + 1) * width + i, 32);
        u16 both = __builtin_convertvector(low, u16) | __builtin_convertvector(high, u16) << 16;
        memcpy(to + s / 2 * width + i, &both, 64);
      }
}

// ---- What a query sees -----------------------------------------------------------------------------------------

struct Sight {
  int64_t first, last;  // keys, both seen
};

template <class M>
void look(const Kernel<M>& kernel, int64_t b, Sight* sight) {
  const Call& c = kernel.c;
  int64_t start = kernel.begin(b), first = 0, T = ceiling(c.T, SIDE);
  for (int64_t t = 0; t < T; t++) {
    if (t >= c.T) {  // padding looks where the last query does
      sight[t] = sight[c.T - 1];
      continue;
    }
    if (c.documents && t > 0 && c.documents[b * c.T + t] != c.documents[b * c.T + t - 1]) first = t;
    int64_t last = start + t;
    sight[t] = {first, last < c.S ? last : c.S - 1};
  }
}

inline f16 hidden(f16 x, int64_t key, Sight sight, float with) {
  if (key >= sight.first && key + 15 <= sight.last) return x;
  const i16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  int64_t low = sight.first - key, high = sight.last - key;
  int32_t from = low < 0 ? 0 : low > 16 ? 16 : (int32_t)low, to = high < -1 ? -1 : high > 15 ? 15 : (int32_t)high;
  return either((lane >= from) & (lane <= to), x, splat(with));
}

inline f16 larger(f16 a, f16 b) { return either(a > b, a, b); }
inline float largest(f16 v) {
  float m = v[0];
  for (int i = 1; i < 16; i++) m = m > v[i] ? m : v[i];
  return m;
}

// Two neighbouring vectors of a row as units along the row.
template <class D>
inline void along(typename D::unit* to, f16 a, f16 b) {
  if constexpr (D::per == 1) store(to, a), store(to + 16, b);
#if HAS_PAIRS
  else {
    __m512bh both = _mm512_cvtne2ps_pbh((__m512)b, (__m512)a);
    memcpy(to, &both, 64);
  }
#endif
}

// Vectors of two neighbouring rows as units across the rows; `row` units lie between rows where a unit is one number.
template <class D>
inline void across(typename D::unit* to, f16 a, f16 b, int64_t row) {
  if constexpr (D::per == 1) store(to, a), store(to + row, b);
#if HAS_PAIRS
  else {
    h16 low = (h16)_mm512_cvtneps_pbh((__m512)a), high = (h16)_mm512_cvtneps_pbh((__m512)b);
    u16 both = __builtin_convertvector(low, u16) | __builtin_convertvector(high, u16) << 16;
    memcpy(to, &both, 64);
  }
#endif
}

// ---- Forward ---------------------------------------------------------------------------------------------------

template <class M, class D>
struct Forward : Kernel<M> {
  typedef typename D::unit unit;
  typedef typename D::number num;
  using Kernel<M>::c;
  explicit Forward(const Call& call) : Kernel<M>{call} {}

  // Queries from .. to of all heads that share key head g of row b.
  void task(int64_t b, int64_t g, int64_t from, int64_t to) const {
    const int64_t W = c.K + c.P, wide = ceiling(W, 16), units = (W + D::per - 1) / D::per, high = ceiling(c.V, 16);
    Sight* sight = (Sight*)malloc(sizeof(Sight) * ceiling(c.T, SIDE));
    look(*this, b, sight);
    const int64_t low = sight[from].first / SIDE * SIDE, end = sight[to - 1].last + 1, n = ceiling(end - low, SIDE);
    arena.reserve(n * (2 * wide + 2 * high) * 4 + ROWS * (wide + 2 * STRIP + high) * 4 + 4096);
    num* rows = arena.take<num>(n * (wide > high ? wide : high) + SIDE);
    unit* keys = arena.take<unit>(n * units);
    unit* values = arena.take<unit>(n / D::per * high);
    for (int64_t s = 0; s < n; s++) {
      this->soon(c.k, b, g, low + s, c.K);
      if (low + s < end)
        this->gather(this->element(c.k, b, g, low + s), this->element(c.shared, b, 0, low + s), b, low + s,
                     rows + s * wide, wide);
      else clear(rows + s * wide, wide);
    }
    panels<D>(rows, keys, n, wide, units);
    for (int64_t s = 0; s < n; s++) {
      this->soon(c.v, b, g, low + s, c.V);
      int64_t has = low + s < end ? c.V : 0;
      if (has) copy(this->element(c.v, b, g, low + s), rows + s * high, has);
      clear(rows + s * high + has, high - has);
    }
    paired<D>(rows, values, n, high);
    num* q = arena.take<num>(ROWS * wide);
    float* logits = arena.take<float>(ROWS * STRIP);
    unit* p = D::per == 1 ? (unit*)logits : arena.take<unit>(ROWS * STRIP / D::per);
    float* o = arena.take<float>(ROWS * high);
    for (int64_t h = g * (c.H / c.G); h < (g + 1) * (c.H / c.G); h++)
      for (int64_t t = from; t < to; t += ROWS)
        some(b, h, t, to - t < ROWS ? to - t : ROWS, low, sight + t, keys, values, q, logits, p, o);
    free(sight);
  }

  void some(int64_t b, int64_t h, int64_t t0, int64_t n, int64_t low, const Sight* sight, const unit* keys,
            const unit* values, num* q, float* logits, unit* p, float* o) const {
    const int64_t W = c.K + c.P, wide = ceiling(W, 16), units = (W + D::per - 1) / D::per, high = ceiling(c.V, 16);
    const float scale = (float)c.scale;
    float top[ROWS], sum[ROWS];
    for (int64_t r = 0; r < ROWS; r++) {
      top[r] = -INFINITY, sum[r] = 0;
      this->soon(c.q, b, h, t0 + r, W);
      if (r < n) {
        const M* own = this->element(c.q, b, h, t0 + r);
        this->gather(own, own + c.K, b, t0 + r, q + r * wide, wide);
      } else clear(q + r * wide, wide);
    }
    const int64_t first = sight[0].first / STEP * STEP, end = ceiling(sight[n - 1].last + 1, STEP);
    bool begun = false;
    for (int64_t s0 = first; s0 < end;) {
      int64_t s1 = s0 / STRIP * STRIP + STRIP;  // strips lie where they lie whatever is seen of them
      if (s1 > end) s1 = end;
      for (int64_t s = s0; s < s1;) {  // panel by panel
        int64_t in = (s - low) % SIDE, m = SIDE - in < s1 - s ? SIDE - in : s1 - s;
        multiply<D>((const unit*)q, {wide / D::per, 1}, keys + (s - low - in) * units + in, SIDE, units, logits + s - s0,
                    STRIP, ROWS, m / 16, false);
        s += m;
      }
      for (int r = 0; r < ROWS; r++) {
        Sight seen = sight[r < n ? r : n - 1];
        float* x = logits + r * STRIP;
        f16 most = splat(top[r]);
        for (int64_t s = 0; s < s1 - s0; s += 16) {
          f16 y = hidden(load(x + s) * scale, s0 + s, seen, -INFINITY);
          store(x + s, y);
          most = larger(most, y);
        }
        float m = largest(most), base = m == -INFINITY ? 0.0f : m;
        f16 added = {};
        for (int64_t s = 0; s < s1 - s0; s += 32) {
          f16 e = decayed(load(x + s) - base), f = decayed(load(x + s + 16) - base);
          added += e + f;
          along<D>(p + r * (STRIP / D::per) + s / D::per, e, f);
        }
        float kept = begun ? decayed(splat(top[r] - base))[0] : 0.0f;
        if (begun && kept != 1.0f)
          for (int64_t i = 0; i < high; i += 16) store(o + r * high + i, load(o + r * high + i) * kept);
        sum[r] = sum[r] * kept + total(added);
        top[r] = m;
      }
      multiply<D>(p, {STRIP / D::per, 1}, values + (s0 - low) / D::per * high, high, (s1 - s0) / D::per, o, high, ROWS,
                  high / 16, begun);
      begun = true;
      s0 = s1;
    }
    for (int64_t r = 0; r < n; r++) {
      M* out = this->element(c.out, b, h, t0 + r);
      float inverse = 1 / sum[r];
      int64_t i = 0;
      for (; i + 16 <= c.V; i += 16) store(out + i, load(o + r * high + i) * inverse);
      if (i < c.V) store(out + i, load(o + r * high + i) * inverse, c.V - i);
      int64_t at = (b * c.H + h) * c.T + t0 + r;
      if (c.lse) c.lse[at] = top[r] + logf(sum[r]);
      // A NaN among the logits shows in their sum alone.
      if (c.largest) c.largest[at] = sum[r] != sum[r] && top[r] != INFINITY ? sum[r] : top[r];
    }
  }
};

// ---- Backward --------------------------------------------------------------------------------------------------

template <class M, class D>
struct Backward : Kernel<M> {
  typedef typename D::unit unit;
  typedef typename D::number num;
  using Kernel<M>::c;
  int64_t W, wide, units, high, v_units;
  explicit Backward(const Call& call) : Kernel<M>{call} {
    W = c.K + c.P, wide = ceiling(W, 16), units = (W + D::per - 1) / D::per;
    high = ceiling(c.V, 16), v_units = (c.V + D::per - 1) / D::per;
  }

  struct Keys {
    unit *panels, *paired, *values;  // K [units] x rows, K rows in pairs, V [units] x rows
    float *d_k, *d_v;                // [S][wide], [S][high]
  };
  struct Tile {
    num *q, *d_o;              // [SIDE][wide], [SIDE][high]
    unit *q_pairs, *d_o_pairs; // rows in pairs
    float *lse, *inner;        // [SIDE]
    float *logits, *d_p;       // [ROWS][SIDE]
    unit *p, *d_s, *d_s_rows;  // rows in pairs, rows in pairs, along rows
    float* d_q;                // [SIDE][wide]
  };

  void task(int64_t b, int64_t g) const {
    Sight* sight = (Sight*)malloc(sizeof(Sight) * ceiling(c.T, SIDE));
    look(*this, b, sight);
    const int64_t end = sight[c.T - 1].last + 1, n = ceiling(end, SIDE), most = wide > high ? wide : high;
    arena.reserve(4 * n * (most + 3 * wide + 2 * high) + 4 * SIDE * (3 * wide + 3 * high + 8 * SIDE) + 16384);
    Keys keys;
    num* rows = arena.take<num>(n * most + SIDE);
    keys.panels = arena.take<unit>(n * units), keys.paired = arena.take<unit>(n / D::per * wide);
    keys.values = arena.take<unit>(n * v_units);
    keys.d_k = arena.take<float>(n * wide), keys.d_v = arena.take<float>(n * high);
    memset(keys.d_k, 0, n * wide * 4);
    memset(keys.d_v, 0, n * high * 4);
    for (int64_t s = 0; s < n; s++) {
      this->soon(c.k, b, g, s, c.K);
      if (s < end)
        this->gather(this->element(c.k, b, g, s), this->element(c.shared, b, 0, s), b, s, rows + s * wide, wide);
      else clear(rows + s * wide, wide);
    }
    panels<D>(rows, keys.panels, n, wide, units);
    paired<D>(rows, keys.paired, n, wide);
    for (int64_t s = 0; s < n; s++) {
      this->soon(c.v, b, g, s, c.V);
      int64_t has = s < end ? c.V : 0;
      if (has) copy(this->element(c.v, b, g, s), rows + s * high, has);
      clear(rows + s * high + has, high - has);
    }
    panels<D>(rows, keys.values, n, high, v_units);
    Tile x;
    x.q = arena.take<num>(SIDE * wide), x.d_o = arena.take<num>(SIDE * high);
    x.q_pairs = arena.take<unit>(SIDE * wide / D::per), x.d_o_pairs = arena.take<unit>(SIDE * high / D::per);
    x.lse = arena.take<float>(SIDE), x.inner = arena.take<float>(SIDE);
    x.logits = arena.take<float>(ROWS * SIDE), x.d_p = arena.take<float>(ROWS * SIDE);
    x.p = arena.take<unit>(SIDE * SIDE), x.d_s = arena.take<unit>(SIDE * SIDE), x.d_s_rows = arena.take<unit>(SIDE * SIDE);
    x.d_q = arena.take<float>(SIDE * wide);
    for (int64_t h = g * (c.H / c.G); h < (g + 1) * (c.H / c.G); h++)
      for (int64_t t = 0; t < c.T; t += SIDE) queries(b, h, t, sight + t, keys, x);
    for (int64_t s = 0; s < c.S; s++) finish_key(b, g, s, s < end, keys);
    free(sight);
  }

  // The gradient of 64 queries, and what they add to those of their keys.
  void queries(int64_t b, int64_t h, int64_t t0, const Sight* sight, const Keys& keys, const Tile& x) const {
    const int64_t n = c.T - t0 < SIDE ? c.T - t0 : SIDE;
    for (int64_t r = 0; r < SIDE; r++) {
      x.lse[r] = 0, x.inner[r] = 0;
      this->soon(c.q, b, h, t0 + r, W), this->soon(c.d_out, b, h, t0 + r, c.V), this->soon(c.out, b, h, t0 + r, c.V);
      if (r >= n) {
        clear(x.q + r * wide, wide);
        clear(x.d_o + r * high, high);
        continue;
      }
      const M *own = this->element(c.q, b, h, t0 + r), *d = this->element(c.d_out, b, h, t0 + r);
      const M* o = this->element(c.out, b, h, t0 + r);
      this->gather(own, own + c.K, b, t0 + r, x.q + r * wide, wide);
      copy(d, x.d_o + r * high, c.V);
      clear(x.d_o + r * high + c.V, high - c.V);
      f16 inner = {};
      int64_t i = 0;
      for (; i + 16 <= c.V; i += 16) inner += load(d + i) * load(o + i);
      if (i < c.V) inner += load(d + i, c.V - i) * load(o + i, c.V - i);
      x.inner[r] = total(inner);
      x.lse[r] = c.lse[(b * c.H + h) * c.T + t0 + r];
    }
    paired<D>(x.q, x.q_pairs, SIDE, wide);
    paired<D>(x.d_o, x.d_o_pairs, SIDE, high);
    memset(x.d_q, 0, SIDE * wide * 4);
    for (int64_t s0 = sight[0].first / SIDE * SIDE; s0 <= sight[n - 1].last; s0 += SIDE) square(s0, n, sight, keys, x);
    const float scale = (float)c.scale;
    for (int64_t r = 0; r < n; r++) {
      float* d = x.d_q + r * wide;
      for (int64_t i = 0; i < wide; i += 16) store(d + i, load(d + i) * scale);
      M* to = this->element(c.d_q, b, h, t0 + r);
      copy(d, to, c.K);
      back(d + c.K, to + c.K, b, t0 + r);
    }
  }

  // 64 queries with 64 keys.
  void square(int64_t s0, int64_t n, const Sight* sight, const Keys& keys, const Tile& x) const {
    const unit *k = keys.panels + s0 * units, *v = keys.values + s0 * v_units;
    int from[SIDE / ROWS], to[SIDE / ROWS];  // of each strip of queries, the keys it sees, in whole steps
    for (int i = 0; i < SIDE / ROWS; i++) {
      const int64_t r0 = i * ROWS, r1 = r0 + ROWS < n ? r0 + ROWS : n;
      from[i] = to[i] = 0;
      if (r0 >= n) continue;
      int64_t first = sight[r0].first - s0, last = sight[r1 - 1].last - s0;
      if (last < 0 || first >= SIDE) continue;
      from[i] = first < 0 ? 0 : (int)(first / STEP * STEP);
      to[i] = last >= SIDE ? SIDE : (int)ceiling(last + 1, STEP);
      const int width = to[i] - from[i];
      multiply<D>((const unit*)(x.q + r0 * wide), {wide / D::per, 1}, k + from[i], SIDE, units, x.logits + from[i], SIDE,
                  ROWS, width / 16, false);
      multiply<D>((const unit*)(x.d_o + r0 * high), {high / D::per, 1}, v + from[i], SIDE, v_units, x.d_p + from[i],
                  SIDE, ROWS, width / 16, false);
      for (int r = 0; r < ROWS; r += 2) strip(r0 + r, r, s0, from[i], to[i], n, sight, x);
      multiply<D>(x.d_s_rows + r0 * (SIDE / D::per) + from[i] / D::per, {SIDE / D::per, 1},
                  keys.paired + (s0 + from[i]) / D::per * wide, wide, width / D::per, x.d_q + r0 * wide, wide, ROWS,
                  wide / 16, true);
    }
    for (int s = 0; s < SIDE; s += STEP) {
      int i = 0, j = SIDE / ROWS;  // the strips that see these keys stand together
      while (i < j && !(from[i] <= s && s < to[i])) i++;
      while (j > i && !(from[j - 1] <= s && s < to[j - 1])) j--;
      if (i == j) continue;
      const int64_t t = i * ROWS / D::per, length = (j - i) * ROWS / D::per;
      multiply<D>(x.p + t * SIDE + s, {1, SIDE}, x.d_o_pairs + t * high, high, length, keys.d_v + (s0 + s) * high, high,
                  STEP, high / 16, true);
      multiply<D>(x.d_s + t * SIDE + s, {1, SIDE}, x.q_pairs + t * wide, wide, length, keys.d_k + (s0 + s) * wide, wide,
                  STEP, wide / 16, true);
    }
  }

  // Probabilities and the logits' gradient of queries t and t + 1 of the tile.
  inline void strip(int64_t t, int r, int64_t s0, int from, int to, int64_t n, const Sight* sight,
                    const Tile& x) const {
    const float scale = (float)c.scale;
    const Sight none = {1, 0};
    f16 p[2][2], d[2][2];
    for (int s = from; s < to; s += 32) {
      for (int i = 0; i < 2; i++) {
        const Sight seen = t + i < n ? sight[t + i] : none;
        for (int j = 0; j < 2; j++) {
          const int at = (r + i) * SIDE + s + 16 * j;
          f16 y = load(x.logits + at) * scale - x.lse[t + i];
          p[i][j] = decayed(hidden(y, s0 + s + 16 * j, seen, -INFINITY));
          d[i][j] = p[i][j] * (load(x.d_p + at) - x.inner[t + i]);
        }
        along<D>(x.d_s_rows + (t + i) * (SIDE / D::per) + s / D::per, d[i][0], d[i][1]);
      }
      for (int j = 0; j < 2; j++) {
        across<D>(x.p + t / D::per * SIDE + s + 16 * j, p[0][j], p[1][j], SIDE);
        across<D>(x.d_s + t / D::per * SIDE + s + 16 * j, d[0][j], d[1][j], SIDE);
      }
    }
  }

  // Turn a gradient of turned channels back.
  void back(const float* from, M* to, int64_t b, int64_t t) const {
    if (!c.P) return;
    if (!c.cos) {
      copy(from, to, c.P);
      return;
    }
    turn<M>(from, to, this->angle(c.cos, b, t), this->angle(c.sin, b, t), c.P, -1.0f);
  }

  void finish_key(int64_t b, int64_t g, int64_t s, bool seen, const Keys& keys) const {
    M *to = this->element(c.d_k, b, g, s), *to_v = this->element(c.d_v, b, g, s);
    float* to_shared = c.turned ? c.turned + ((b * c.G + g) * c.S + s) * c.P : nullptr;
    if (!seen) {
      clear(to, c.K);
      clear(to_v, c.V);
      if (to_shared) clear(to_shared, c.P);
      return;
    }
    float* d = keys.d_k + s * wide;
    for (int64_t i = 0; i < wide; i += 16) store(d + i, load(d + i) * (float)c.scale);
    copy(d, to, c.K);
    if (to_shared) copy(d + c.K, to_shared, c.P);
    copy(keys.d_v + s * high, to_v, c.V);
  }

  // The shared keys' gradient: every head's, in their order.
  void shared(int64_t b, int64_t s) const {
    float* sum = c.turned + (b * c.G * c.S + s) * c.P;  // into the first head's
    for (int64_t g = 1; g < c.G; g++) {
      const float* more = sum + g * c.S * c.P;
      for (int64_t i = 0; i < c.P; i++) sum[i] += more[i];
    }
    back(sum, this->element(c.d_shared, b, 0, s), b, s);
  }
};

template <class M, class D>
void forward(const Call& c, int threads) {
  // A query's result does not depend on its neighbours, so heads too few for the threads are cut.
  int64_t cuts = c.B * c.G >= 2 * threads ? 1 : (2 * threads + c.B * c.G - 1) / (c.B * c.G);
  int64_t length = ceiling((c.T + cuts - 1) / cuts, SIDE);
  cuts = (c.T + length - 1) / length;
  Forward<M, D> kernel(c);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t i = 0; i < c.B * c.G * cuts; i++) {
    // The last part of a row sees most keys; the longest work goes first.
    int64_t part = cuts - 1 - i % cuts, from = part * length, to = from + length < c.T ? from + length : c.T;
    kernel.task(i / cuts / c.G, i / cuts % c.G, from, to);
  }
}

template <class M, class D>
void backward(const Call& c, int threads) {
  Backward<M, D> kernel(c);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t i = 0; i < c.B * c.G; i++) kernel.task(i / c.G, i % c.G);
  if (!c.turned) return;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < c.B * c.S; i++) kernel.shared(i / c.S, i % c.S);
}

#if HAS_PAIRS
typedef Pairs Half;
#else
typedef Singles Half;
#endif

}  // namespace

extern "C" {
int64_t attention_call_bytes() { return sizeof(Call); }
void attention_f32(const Call* c, int64_t threads) { forward<float, Singles>(*c, (int)threads); }
void attention_bf16(const Call* c, int64_t threads) { forward<bf16, Half>(*c, (int)threads); }
void attention_backward_f32(const Call* c, int64_t threads) { backward<float, Singles>(*c, (int)threads); }
void attention_backward_bf16(const Call* c, int64_t threads) { backward<bf16, Half>(*c, (int)threads); }
// Whether bf16 products have instructions of their own here, and whether the matrix unit (AMX) has them too.
int64_t attention_pairs() { return HAS_PAIRS; }
int64_t attention_amx() {
#ifdef __AMX_BF16__
  return 1;
#else
  return 0;
#endif
}
}
