// y = round(w + sum of factor·(up · down)), each product added to rows of its own: w, y [R, D], up [R, K], down [K, D].
//
// What is added to an element is one chain of fused multiply-adds in the order of the ranks, then times the factor, as the host
// computes it: no tensor cores, no other order. A block takes a tile of 64 rows and 128 columns, a thread 4 rows and twice 4
// columns; 16 ranks of both factors at a time pass through shared memory. Bound by the fused multiply-adds.

#include "types.cuh"

constexpr int kVector = VECTOR, kTall = 64, kWide = 128, kRanks = 16, kThreads = 256, kRows = 4, kHalf = 4;
using W = Element<W_TYPE>;
using F = Element<F_TYPE>;
using R = Element<R_TYPE>;
using Y = Element<Y_TYPE>;

struct Product {
  u32 first_row, end_row, first_rank, end_rank;
  float factor;
};

struct Params {
  const W* w;
  const F* up;
  const F* down;
  Y* y;
  const Product* products;
  u32 count;
  u32 rows;
  u32 cols;
  u32 w_stride;
  u32 up_stride;
  u32 down_stride;
  u32 y_stride;
  u32 unused;
};
static_assert(sizeof(Params) == 72, "as in src/ops/add_low_rank.rs");

struct Tiles {
  float up[kRanks][kTall + 4];  // neighbouring ranks of a row lie in other banks
  float down[kRanks][kWide];
};

// Brings ranks [rank, rank + count) of both factors; rows and columns beyond the end are zeros.
__device__ __forceinline__ void load(Tiles& tiles, const Params& p, u32 row, u32 column, u32 rank, u32 count) {
  for (u32 i = threadIdx.x; i < kTall * kRanks; i += kThreads) {
    const u32 r = i / kRanks, k = i % kRanks;
    if (k < count) tiles.up[k][r] = row + r < p.rows ? to_f32(p.up[(size_t)(row + r) * p.up_stride + rank + k]) : 0.0f;
  }
  for (u32 i = threadIdx.x; i < kWide * kRanks / kVector; i += kThreads) {
    const u32 c = i % (kWide / kVector) * kVector, k = i / (kWide / kVector);
    if (k < count) {
      Vec<F, kVector> from = {};
      if (column + c < p.cols) from = Vec<F, kVector>::load(p.down + (size_t)(rank + k) * p.down_stride + column + c);
#pragma unroll
      for (int j = 0; j < kVector; j++) tiles.down[k][c + j] = to_f32(from.v[j]);
    }
  }
}

// One rank of the thread's products.
__device__ __forceinline__ void multiply(float (&product)[kRows][2 * kHalf], const Tiles& tiles, u32 k, u32 row, u32 column) {
  const auto up = Vec<float, kRows>::load(&tiles.up[k][row]);
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const auto down = Vec<float, kHalf>::load(&tiles.down[k][column + half * kWide / 2]);
#pragma unroll
    for (int i = 0; i < kRows; i++) {
#pragma unroll
      for (int j = 0; j < kHalf; j++) {
        float& sum = product[i][half * kHalf + j];
        sum = __fmaf_rn(up.v[i], down.v[j], sum);
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(kThreads) add_low_rank(const __grid_constant__ Params p) {
  __shared__ __align__(16) Tiles tiles;
  const u32 row = blockIdx.x * kTall, column = blockIdx.y * kWide;
  const u32 own_row = threadIdx.x / 16 * kRows, own_column = threadIdx.x % 16 * kHalf;

  float sum[kRows][2 * kHalf] = {};
#pragma unroll
  for (int i = 0; i < kRows; i++) {
#pragma unroll
    for (int j = 0; j < 2 * kHalf; j += kVector) {
      const u32 r = row + own_row + i, c = column + own_column + j / kHalf * kWide / 2 + j % kHalf;
      if (r < p.rows && c < p.cols) {
        const auto w = Vec<W, kVector>::load(p.w + (size_t)r * p.w_stride + c);
#pragma unroll
        for (int v = 0; v < kVector; v++) sum[i][j + v] = to_f32(w.v[v]);
      }
    }
  }

  for (u32 number = 0; number < p.count; number++) {
    const Product own = p.products[number];
    if (own.end_row <= row || own.first_row >= row + kTall) continue;
    float product[kRows][2 * kHalf] = {};
    for (u32 rank = own.first_rank; rank < own.end_rank; rank += kRanks) {
      const u32 count = min(own.end_rank - rank, kRanks);
      __syncthreads();
      load(tiles, p, row, column, rank, count);
      __syncthreads();
      if (count == kRanks) {
#pragma unroll
        for (int k = 0; k < kRanks; k++) multiply(product, tiles, k, own_row, own_column);
      } else {
        for (u32 k = 0; k < count; k++) multiply(product, tiles, k, own_row, own_column);
      }
    }
#pragma unroll
    for (int i = 0; i < kRows; i++) {
      const u32 r = row + own_row + i;
      if (r < own.first_row || r >= own.end_row) continue;
#pragma unroll
      for (int j = 0; j < 2 * kHalf; j++) sum[i][j] = __fadd_rn(sum[i][j], __fmul_rn(own.factor, product[i][j]));
    }
  }

#pragma unroll
  for (int i = 0; i < kRows; i++) {
#pragma unroll
    for (int j = 0; j < 2 * kHalf; j += kVector) {
      const u32 r = row + own_row + i, c = column + own_column + j / kHalf * kWide / 2 + j % kHalf;
      if (r < p.rows && c < p.cols) {
        Vec<Y, kVector> y;
#pragma unroll
        for (int v = 0; v < kVector; v++) y.v[v] = from_f32<Y>(round_to<R>(sum[i][j + v]));
        y.store(p.y + (size_t)r * p.y_stride + c);
      }
    }
  }
}
