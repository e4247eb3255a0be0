// Choosing experts in one pass over the tokens, and the gradient of that in another. moonlet/ops/route.py has the
// equations. Everything is computed in fp32 and token by token: what a token gets does not depend on its company.
//
// N tokens, D hidden size, E experts, A of them chosen; G groups of experts, of which `top_groups` are searched.

#include "half.h"

#include <cmath>
#include <cstdint>
#include <vector>

namespace {

struct Rule {
  int64_t E, A, G, top_groups;
  bool softmax, normalise;
  float scale;
};

constexpr float kTiny = 1e-20f;  // as in the reference: no division by zero

// logits[e] = <x, w_e>, four experts at a time, so that x is read once for them
template <typename T>
void products(const T* __restrict x, const float* __restrict w, float* __restrict logits, int64_t E, int64_t D) {
  int64_t e = 0;
  for (; e + 4 <= E; e += 4, w += 4 * D) {
    const float *__restrict w1 = w + D, *__restrict w2 = w1 + D, *__restrict w3 = w2 + D;
    float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
    for (int64_t i = 0; i < D; i++) {
      float v = load(x[i]);
      s0 += v * w[i], s1 += v * w1[i], s2 += v * w2[i], s3 += v * w3[i];
    }
    logits[e] = s0, logits[e + 1] = s1, logits[e + 2] = s2, logits[e + 3] = s3;
  }
  for (; e < E; e++, w += D) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < D; i++) sum += load(x[i]) * w[i];
    logits[e] = sum;
  }
}

void to_scores(float* s, const Rule& rule) {
  if (!rule.softmax) {
    for (int64_t e = 0; e < rule.E; e++) s[e] = 1.0f / (1.0f + exponential(-s[e]));
    return;
  }
  float most = s[0], sum = 0;
  for (int64_t e = 1; e < rule.E; e++) most = s[e] > most ? s[e] : most;
  for (int64_t e = 0; e < rule.E; e++) sum += s[e] = exponential(s[e] - most);
  for (int64_t e = 0; e < rule.E; e++) s[e] /= sum;
}

// The n largest of values[size], best first; of equal ones the lower index. Of NaNs, too, it takes each at most once.
void largest(const float* values, int64_t size, int64_t n, int64_t* out) {
  for (int64_t e = 0; e < size; e++) {
    int64_t i = e < n ? e : n;
    if (i == n && !(values[e] > values[out[n - 1]])) continue;
    for (i = i == n ? n - 1 : i; i > 0 && values[e] > values[out[i - 1]]; i--) out[i] = out[i - 1];
    out[i] = e;
  }
}

// Memory of one thread for one token.
struct Desk {
  std::vector<float> choice, strength;
  std::vector<char> open;
  std::vector<int64_t> groups;

  explicit Desk(const Rule& rule) : choice(rule.E), strength(rule.G), open(rule.G), groups(rule.top_groups) {}
};

void choose(const float* scores, const float* bias, const Rule& rule, Desk& desk, int64_t* index) {
  float* choice = desk.choice.data();
  for (int64_t e = 0; e < rule.E; e++) choice[e] = scores[e] + bias[e];
  if (rule.G > 1) {
    int64_t size = rule.E / rule.G;
    for (int64_t g = 0; g < rule.G; g++) {  // its two best together
      float first = -INFINITY, second = -INFINITY;
      for (int64_t e = g * size; e < (g + 1) * size; e++) {
        float c = choice[e];
        if (c > first)
          second = first, first = c;
        else if (c > second)
          second = c;
      }
      desk.strength[g] = first + second;
    }
    largest(desk.strength.data(), rule.G, rule.top_groups, desk.groups.data());
    for (char& open : desk.open) open = 0;
    for (int64_t g : desk.groups) desk.open[g] = 1;
    for (int64_t g = 0; g < rule.G; g++)
      if (!desk.open[g])
        for (int64_t e = g * size; e < (g + 1) * size; e++) choice[e] = -INFINITY;
  }
  largest(choice, rule.E, rule.A, index);
}

template <typename T>
void route(const T* x, const float* w, const float* bias, float* scores, int64_t* index, float* weight, int64_t* load,
           int64_t N, int64_t D, const Rule& rule) {
#pragma omp parallel if (N * D > 1 << 14)
  {
    Desk desk(rule);
#pragma omp for
    for (int64_t n = 0; n < N; n++) {
      float* s = scores + n * rule.E;
      int64_t* chosen = index + n * rule.A;
      products(x + n * D, w, s, rule.E, D);
      to_scores(s, rule);
      choose(s, bias, rule, desk, chosen);
      float sum = kTiny;
      for (int64_t a = 0; a < rule.A; a++) sum += s[chosen[a]];
      float factor = rule.normalise ? rule.scale / sum : rule.scale;
      for (int64_t a = 0; a < rule.A; a++) weight[n * rule.A + a] = s[chosen[a]] * factor;
    }
  }
  if (load)
    for (int64_t i = 0; i < N * rule.A; i++) load[index[i]]++;
}

// The gradient of one token's logits, dense [E]; s its scores.
void to_logits(const float* s, const int64_t* chosen, const float* d_weight, const Rule& rule, float* d_logits) {
  for (int64_t e = 0; e < rule.E; e++) d_logits[e] = 0;
  float sum = kTiny, dot = 0;
  for (int64_t a = 0; a < rule.A; a++) sum += s[chosen[a]], dot += s[chosen[a]] * d_weight[a];
  for (int64_t a = 0; a < rule.A; a++)  // of the scores
    d_logits[chosen[a]] = rule.normalise ? rule.scale / sum * (d_weight[a] - dot / sum) : rule.scale * d_weight[a];
  if (!rule.softmax) {
    for (int64_t a = 0; a < rule.A; a++) d_logits[chosen[a]] *= s[chosen[a]] * (1.0f - s[chosen[a]]);
    return;
  }
  float mean = 0;
  for (int64_t e = 0; e < rule.E; e++) mean += s[e] * d_logits[e];
  for (int64_t e = 0; e < rule.E; e++) d_logits[e] = s[e] * (d_logits[e] - mean);
}

// dx, and the gradient of the matrix as one sum for each of `parts` equal shares of the tokens, [parts, E, D] of zeros.
template <typename T>
void route_backward(const T* x, const float* w, const float* scores, const int64_t* index, const float* d_weight, T* dx,
                    float* dw, int64_t N, int64_t D, int64_t parts, const Rule& rule) {
#pragma omp parallel for
  for (int64_t part = 0; part < parts; part++) {
    float* mine = dw + part * rule.E * D;
    std::vector<float> d_logits(rule.E), row(D);
    float* __restrict sum = row.data();
    for (int64_t n = N * part / parts; n < N * (part + 1) / parts; n++) {
      to_logits(scores + n * rule.E, index + n * rule.A, d_weight + n * rule.A, rule, d_logits.data());
      const T* __restrict in = x + n * D;
      for (int64_t i = 0; i < D; i++) sum[i] = 0;
      for (int64_t e = 0; e < rule.E; e++) {
        float d = d_logits[e];
        if (d == 0) continue;
        const float* __restrict from = w + e * D;
        float* __restrict to = mine + e * D;
        for (int64_t i = 0; i < D; i++) {
          sum[i] += d * from[i];
          to[i] += d * load(in[i]);
        }
      }
      T* __restrict out = dx + n * D;
      for (int64_t i = 0; i < D; i++) store(out[i], sum[i]);
    }
  }
}

}  // namespace

extern "C" {

#define FOR_TYPE(NAME, T)                                                                                              \
  void route_##NAME(const T* x, const float* w, const float* bias, float* scores, int64_t* index, float* weight,       \
                    int64_t* load, int64_t N, int64_t D, int64_t E, int64_t A, int64_t G, int64_t top_groups,          \
                    int64_t softmax, int64_t normalise, float scale) {                                                 \
    route(x, w, bias, scores, index, weight, load, N, D, {E, A, G, top_groups, softmax != 0, normalise != 0, scale});  \
  }                                                                                                                    \
  void route_backward_##NAME(const T* x, const float* w, const float* scores, const int64_t* index,                    \
                             const float* d_weight, T* dx, float* dw, int64_t N, int64_t D, int64_t parts, int64_t E,  \
                             int64_t A, int64_t softmax, int64_t normalise, float scale) {                             \
    route_backward(x, w, scores, index, d_weight, dx, dw, N, D, parts,                                                 \
                   {E, A, 1, 1, softmax != 0, normalise != 0, scale});                                                 \
  }

FOR_TYPE(f32, float)
FOR_TYPE(bf16, Half)
}
