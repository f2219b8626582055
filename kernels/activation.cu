// y = x·σ(x), or with GELU_ERF y = x/2·(1 + erf(x/√2)): x, y [R, D]; y may be x.
//
// A thread takes two vectors of up to 16 bytes. Bound by bandwidth.

#include "exp2.cuh"
#include "stream.cuh"

constexpr int kVector = VECTOR;
constexpr bool kGeluErf = GELU_ERF;
using X = Element<X_TYPE>;
using Y = Element<Y_TYPE>;

struct Params {
  const X* x;
  Y* y;
  u32 rows;
  u32 cols;
  u32 x_stride;
  u32 y_stride;
};
static_assert(sizeof(Params) == 32, "as in src/ops/activation.rs");

__device__ __forceinline__ float activate(float x) {
  return kGeluErf ? 0.5f * x * (1.0f + erff(x * 0.707106781f)) : silu(x);
}

extern "C" __global__ void __launch_bounds__(kThreads) activation(const __grid_constant__ Params p) {
  const Places<kVector> at(p.rows, p.cols);
  if (!at.inside[0]) return;
  Vec<X, kVector> x[kItems];
#pragma unroll
  for (int i = 0; i < kItems; i++) {
    x[i] = Vec<X, kVector>::load(p.x + (size_t)at.row[i] * p.x_stride + at.column[i]);
  }
#pragma unroll
  for (int i = 0; i < kItems; i++) {
    Vec<Y, kVector> y;
#pragma unroll
    for (int j = 0; j < kVector; j++) y.v[j] = from_f32<Y>(activate(to_f32(x[i].v[j])));
    if (at.inside[i]) y.store(p.y + (size_t)at.row[i] * p.y_stride + at.column[i]);
  }
}
