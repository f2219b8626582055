// y = x in another float type: x, y [R, D].
//
// A thread takes one vector of up to 16 bytes. Bound by bandwidth.

#include "types.cuh"

constexpr int kVector = VECTOR;
using X = Element<X_TYPE>;
using Y = Element<Y_TYPE>;

struct Params {
  const X* x;
  Y* y;
  u32 vectors;         // in all
  u32 vectors_of_row;  // D / kVector
  u32 x_stride;
  u32 y_stride;
};
static_assert(sizeof(Params) == 32, "as in src/ops/cast.rs");

extern "C" __global__ void cast(const __grid_constant__ Params p) {
  const u32 vector = blockIdx.x * blockDim.x + threadIdx.x;
  if (vector >= p.vectors) return;
  const size_t row = vector / p.vectors_of_row, column = vector % p.vectors_of_row * kVector;
  const auto x = Vec<X, kVector>::load(p.x + row * p.x_stride + column);
  Vec<Y, kVector> y;
#pragma unroll
  for (int i = 0; i < kVector; i++) y.v[i] = from_f32<Y>(to_f32(x.v[i]));
  y.store(p.y + row * p.y_stride + column);
}
