// y = factor·(x - mean)/sqrt(var + eps) + shift over rows of any width that a block's registers hold.
//
//   x, y [R, D]; scale, shift [D], or one row a step and branch (MODULATED, factor 1 + scale)
//
// One block a row. All loads are issued before the first sum, in vectors of up to 16 bytes; the mean and then the squared
// deviations are summed from registers. Bound by bandwidth: x is read once, y written once; scale and shift stay in cache.

#include "branches.cuh"
#include "row.cuh"

constexpr int kVector = VECTOR, kWarps = ROW_WARPS, kVectors = ROW_VECTORS;
constexpr bool kModulated = MODULATED;
using X = Element<X_TYPE>;
using Y = Element<Y_TYPE>;
using RowX = Row<X, kWarps, kVectors, kVector>;

struct Params {
  const X* x;
  const X* scale;
  const X* shift;
  Y* y;
  u32 cols;
  u32 x_stride;
  u32 table_stride;  // of scale and shift
  u32 y_stride;
  BranchRows rows;  // one run of branch 0 if not modulated
};
static_assert(sizeof(Params) == 104, "as in src/ops/layer_norm.rs");

extern "C" __global__ void __launch_bounds__(32 * kWarps) layer_norm(const __grid_constant__ Params p) {
  __shared__ float scratch[kWarps];
  const size_t row = blockIdx.x, table = p.rows.table_row(blockIdx.x);
  const RowX x = RowX::load(p.x + row * p.x_stride, p.cols);
  const X* const scale = p.scale + table * p.table_stride;
  const X* const shift = p.shift + table * p.table_stride;
  layer_norm_row<Y, kModulated>(x, scale, shift, p.cols, scratch).store(p.y + row * p.y_stride, p.cols);
}
