// Muon's two sweeps over parameters, each touching memory once. moonlet/ops/momentum.py has the equations.
//
// Parameters come as lists of blocks of `sizes[p]` numbers.

#include <cstdint>

extern "C" {

// m = mu m + g;  ahead = g + mu m, block after block.
void momentum_ahead(float* const* momenta, const float* const* gradients, const int64_t* sizes, int64_t blocks, float mu,
                    float* ahead) {
#pragma omp parallel
  {
    float* to = ahead;
    for (int64_t p = 0; p < blocks; to += sizes[p++]) {
      float* __restrict m = momenta[p];
      const float* __restrict g = gradients[p];
      float* __restrict out = to;
#pragma omp for simd schedule(static) nowait
      for (int64_t i = 0; i < sizes[p]; i++) {
        float next = mu * m[i] + g[i];
        m[i] = next;
        out[i] = g[i] + mu * next;
      }
    }
  }
}

// w = keep w - size u, u block after block.
void momentum_move(float* const* weights, const float* updates, const int64_t* sizes, int64_t blocks, float keep,
                   float size) {
#pragma omp parallel
  {
    const float* from = updates;
    for (int64_t p = 0; p < blocks; from += sizes[p++]) {
      float* __restrict w = weights[p];
      const float* __restrict u = from;
#pragma omp for simd schedule(static) nowait
      for (int64_t i = 0; i < sizes[p]; i++) w[i] = keep * w[i] - size * u[i];
    }
  }
}
}
