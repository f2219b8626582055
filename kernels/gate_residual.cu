// y = x + gate·z, and with NORM n = round(1 + scale)·(y - mean)/sqrt(var + eps) + shift of y as it is stored.
//
//   x, z [R, D] or one period of it, repeated; gate, scale, shift one row a step and branch; y, n [R, D]; y may be x
//
// One block a row; x, z and y stay in registers in vectors of up to 16 bytes, so that the norm reads nothing again. Bound
// by bandwidth: two rows read, one or two written; gate, scale and shift stay in cache.

#include "branches.cuh"
#include "row.cuh"

constexpr int kVector = VECTOR, kWarps = ROW_WARPS, kVectors = ROW_VECTORS;
constexpr bool kRoundProduct = ROUND_PRODUCT, kNorm = NORM;
using X = Element<X_TYPE>;
using Y = Element<Y_TYPE>;
using RowX = Row<X, kWarps, kVectors, kVector>;
using RowY = Row<Y, kWarps, kVectors, kVector>;

struct Params {
  const X* x;
  const X* z;
  const X* gate;
  const X* scale;
  const X* shift;
  Y* y;
  Y* n;
  u32 cols;
  u32 x_rows;
  u32 x_stride;
  u32 z_rows;
  u32 z_stride;
  u32 table_stride;  // of gate, scale and shift
  u32 y_stride;
  u32 n_stride;
  BranchRows rows;
};
static_assert(sizeof(Params) == 144, "as in src/ops/gate_residual.rs");

extern "C" __global__ void __launch_bounds__(32 * kWarps) gate_residual(const __grid_constant__ Params p) {
  __shared__ float scratch[kWarps];
  const size_t row = blockIdx.x, row_x = blockIdx.x % p.x_rows, row_z = blockIdx.x % p.z_rows;
  const size_t table = (size_t)p.rows.table_row(blockIdx.x) * p.table_stride;
  const RowX x = RowX::load(p.x + row_x * p.x_stride, p.cols);
  const RowX z = RowX::load(p.z + row_z * p.z_stride, p.cols);
  const RowX gate = RowX::load(p.gate + table, p.cols);
  RowY y;
#pragma unroll
  for (int i = 0; i < kVectors; i++) {
#pragma unroll
    for (int j = 0; j < kVector; j++) {
      const float product = gate.at(i, j) * z.at(i, j);
      y.set(i, j, x.at(i, j) + (kRoundProduct ? round_to<Y>(product) : product));
    }
  }
  y.store(p.y + row * p.y_stride, p.cols);
  if (kNorm) {
    layer_norm_row<Y, true>(y, p.scale + table, p.shift + table, p.cols, scratch).store(p.n + row * p.n_stride, p.cols);
  }
}
