// y[s] = mean of x's rows [start, end) of segment s, with SCALED times 1 + scale_factor: x [R, D], scale_factor [1],
// y [S, D].
//
// A block takes kLanes neighbouring vectors of one segment, so that a row's share fills a memory transaction of 128
// bytes; kRows threads share the rows of each and add up in a fixed tree. Bound by the latency of a few reads a thread.

#include "types.cuh"

constexpr int kVector = VECTOR, kLanes = 8, kRows = 32;
constexpr bool kScaled = SCALED;
using X = Element<X_TYPE>;
using Y = Element<Y_TYPE>;

struct Params {
  const X* x;
  const X* scale_factor;  // null if not scaled
  Y* y;
  const u32* segments;  // start and end of each
  u32 vectors;          // of a row
  u32 x_stride;
  u32 y_stride;
  u32 unused;
};
static_assert(sizeof(Params) == 48, "as in src/ops/segment_mean.rs");

extern "C" __global__ void __launch_bounds__(kLanes* kRows) segment_mean(const __grid_constant__ Params p) {
  __shared__ float sums[kVector][kRows][kLanes];
  const u32 lane = threadIdx.x % kLanes, share = threadIdx.x / kLanes, vector = blockIdx.x * kLanes + lane;
  const u32 start = p.segments[2 * blockIdx.y], end = p.segments[2 * blockIdx.y + 1];
  const size_t column = (size_t)vector * kVector;

  float sum[kVector] = {};
  if (vector < p.vectors) {
#pragma unroll 4
    for (u32 row = start + share; row < end; row += kRows) {
      const auto x = Vec<X, kVector>::load(p.x + (size_t)row * p.x_stride + column);
#pragma unroll
      for (int i = 0; i < kVector; i++) sum[i] += to_f32(x.v[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kVector; i++) sums[i][share][lane] = sum[i];
  for (u32 half = kRows / 2; half > 0; half /= 2) {
    __syncthreads();
    if (share < half) {
#pragma unroll
      for (int i = 0; i < kVector; i++) sums[i][share][lane] += sums[i][share + half][lane];
    }
  }
  if (share > 0 || vector >= p.vectors) return;

  const float factor = kScaled ? 1.0f + to_f32(*p.scale_factor) : 1.0f;
  Vec<Y, kVector> y;
#pragma unroll
  for (int i = 0; i < kVector; i++) y.v[i] = from_f32<Y>(sums[i][0][lane] / (float)(end - start) * factor);
  y.store(p.y + (size_t)blockIdx.y * p.y_stride + column);
}
