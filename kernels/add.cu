// y = a + b: a, y [R, D]; b [r, D], repeated down the rows; y may be a or b.
//
// A thread takes two vectors of up to 16 bytes. Bound by bandwidth.

#include "stream.cuh"

constexpr int kVector = VECTOR;
using X = Element<X_TYPE>;
using Y = Element<Y_TYPE>;

struct Params {
  const X* a;
  const X* b;
  Y* y;
  u32 rows;
  u32 cols;
  u32 a_stride;
  u32 b_rows;
  u32 b_stride;
  u32 y_stride;
};
static_assert(sizeof(Params) == 48, "as in src/ops/add.rs");

extern "C" __global__ void __launch_bounds__(kThreads) add(const __grid_constant__ Params p) {
  const Places<kVector> at(p.rows, p.cols);
  if (!at.inside[0]) return;
  Vec<X, kVector> a[kItems], b[kItems];
#pragma unroll
  for (int i = 0; i < kItems; i++) {
    a[i] = Vec<X, kVector>::load(p.a + (size_t)at.row[i] * p.a_stride + at.column[i]);
    b[i] = Vec<X, kVector>::load(p.b + (size_t)(at.row[i] % p.b_rows) * p.b_stride + at.column[i]);
  }
#pragma unroll
  for (int i = 0; i < kItems; i++) {
    Vec<Y, kVector> y;
#pragma unroll
    for (int j = 0; j < kVector; j++) y.v[j] = from_f32<Y>(to_f32(a[i].v[j]) + to_f32(b[i].v[j]));
    if (at.inside[i]) y.store(p.y + (size_t)at.row[i] * p.y_stride + at.column[i]);
  }
}
