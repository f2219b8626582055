// y = round(x/sqrt(mean(x²) + eps))·weight: x, y [R, D], weight [D]; the rounding is to y's type.
//
// One block a row, held in registers in vectors of up to 16 bytes. Bound by bandwidth: x is read once, y written once.

#include "row.cuh"

constexpr int kVector = VECTOR, kWarps = ROW_WARPS, kVectors = ROW_VECTORS;
using X = Element<X_TYPE>;
using Y = Element<Y_TYPE>;
using RowX = Row<X, kWarps, kVectors, kVector>;
using RowY = Row<Y, kWarps, kVectors, kVector>;

struct Params {
  const X* x;
  const X* weight;
  Y* y;
  u32 cols;
  u32 rows;  // the grid's
  u32 x_stride;
  u32 y_stride;
};
static_assert(sizeof(Params) == 40, "as in src/ops/rms_norm.rs");

extern "C" __global__ void __launch_bounds__(32 * kWarps) rms_norm(const __grid_constant__ Params p) {
  __shared__ float scratch[kWarps];
  const size_t row = blockIdx.x;
  const RowX x = RowX::load(p.x + row * p.x_stride, p.cols);
  const RowX weight = RowX::load(p.weight, p.cols);
  const float square = x.sum(p.cols, scratch, [](float v) { return v * v; }) / p.cols;
  const float inverse = 1.0f / sqrtf(square + 1e-6f);
  RowY y;
#pragma unroll
  for (int i = 0; i < kVectors; i++) {
#pragma unroll
    for (int j = 0; j < kVector; j++) y.set(i, j, round_to<Y>(x.at(i, j) * inverse) * weight.at(i, j));
  }
  y.store(p.y + row * p.y_stride, p.cols);
}
