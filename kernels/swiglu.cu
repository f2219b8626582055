// y = round(silu(gate))·up: x [R, 2·D] holds gate, then up; y [R, D]; the rounding is to y's type.
//
// A thread takes two vectors of each half, of up to 16 bytes. Bound by bandwidth.

#include "exp2.cuh"
#include "stream.cuh"

constexpr int kVector = VECTOR;
using X = Element<X_TYPE>;
using Y = Element<Y_TYPE>;

struct Params {
  const X* x;
  Y* y;
  u32 rows;
  u32 cols;  // of y
  u32 x_stride;
  u32 y_stride;
};
static_assert(sizeof(Params) == 32, "as in src/ops/swiglu.rs");

extern "C" __global__ void __launch_bounds__(kThreads) swiglu(const __grid_constant__ Params p) {
  const Places<kVector> at(p.rows, p.cols);
  if (!at.inside[0]) return;
  Vec<X, kVector> gate[kItems], up[kItems];
#pragma unroll
  for (int i = 0; i < kItems; i++) {
    const X* x = p.x + (size_t)at.row[i] * p.x_stride + at.column[i];
    gate[i] = Vec<X, kVector>::load(x);
    up[i] = Vec<X, kVector>::load(x + p.cols);
  }
#pragma unroll
  for (int i = 0; i < kItems; i++) {
    Vec<Y, kVector> y;
#pragma unroll
    for (int j = 0; j < kVector; j++) {
      y.v[j] = from_f32<Y>(round_to<Y>(silu(to_f32(gate[i].v[j]))) * to_f32(up[i].v[j]));
    }
    if (at.inside[i]) y.store(p.y + (size_t)at.row[i] * p.y_stride + at.column[i]);
  }
}
