// y = round(x / scale), scale = max |x| / 127, row by row: x [R, D] bf16, y [R, D] signed eight-bit integers, scales [R] f32.
//
// Rounds to nearest even. A row of zeros has scale 0. One block a row, which stays in registers: x is read once. Bound by bandwidth.

#include "quantize.cuh"
#include "row.cuh"

constexpr int kWarps = ROW_WARPS, kVectors = ROW_VECTORS;
using RowX = Row<bf16, kWarps, kVectors, 8>;

struct Params {
  const bf16* x;
  u8* y;
  float* scales;
  u32 cols;
  u32 x_stride;
  u32 y_stride;
  u32 unused;
};
static_assert(sizeof(Params) == 40, "as in src/ops/quantize_rows.rs");

extern "C" __global__ void __launch_bounds__(32 * kWarps) quantize_rows(const __grid_constant__ Params p) {
  __shared__ u32 scratch[kWarps];
  const size_t row = blockIdx.x;
  const RowX x = RowX::load(p.x + row * p.x_stride, p.cols);
  u32 bits = 0;  // of the largest magnitude: a NaN is larger than all numbers, so that its row's scale becomes NaN
#pragma unroll
  for (int i = 0; i < kVectors; i++) {
    if (RowX::column(i) >= p.cols) continue;
#pragma unroll
    for (int j = 0; j < 8; j++) bits = max(bits, __float_as_uint(fabsf(x.at(i, j))));
  }
  const float most = __uint_as_float(block_max<kWarps>(bits, scratch));
  const float factor = quantizing_factor(most);
#pragma unroll
  for (int i = 0; i < kVectors; i++) {
    if (RowX::column(i) >= p.cols) continue;
    const auto four = [&](int j) { return quantize4(x.at(i, j), x.at(i, j + 1), x.at(i, j + 2), x.at(i, j + 3), factor); };
    *reinterpret_cast<uint2*>(p.y + row * p.y_stride + RowX::column(i)) = make_uint2(four(0), four(4));
  }
  if (threadIdx.x == 0) p.scales[row] = quantized_scale(most);
}
