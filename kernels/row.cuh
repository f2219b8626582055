// Rows held in registers: a block works on one row, reads it once and keeps it between its statistics and its result.

#pragma once

#include "reduce.cuh"
#include "types.cuh"

// One row of `cols` elements. Thread t of 32·WARPS holds the vectors t, t + 32·WARPS, ... of N elements that lie within.
template <typename T, int WARPS, int VECTORS, int N>
struct Row {
  Vec<T, N> part[VECTORS];

  // Where the thread's vector i begins.
  static __device__ __forceinline__ u32 column(int i) { return (i * 32 * WARPS + threadIdx.x) * N; }

  static __device__ __forceinline__ Row load(const T* from, u32 cols) {
    Row row;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
      if (column(i) < cols) row.part[i] = Vec<T, N>::load(from + column(i));
    }
    return row;
  }

  __device__ __forceinline__ void store(T* to, u32 cols) const {
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
      if (column(i) < cols) part[i].store(to + column(i));
    }
  }

  __device__ __forceinline__ float at(int i, int j) const { return to_f32(part[i].v[j]); }
  __device__ __forceinline__ void set(int i, int j, float x) { part[i].v[j] = from_f32<T>(x); }

  // The sum of f(element) over the row, the same in every thread; `scratch` holds one float a warp.
  template <typename F>
  __device__ __forceinline__ float sum(u32 cols, float* scratch, F f) const {
    float own = 0.0f;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
      if (column(i) < cols) {
#pragma unroll
        for (int j = 0; j < N; j++) own += f(at(i, j));
      }
    }
    return block_sum<WARPS>(own, scratch);
  }
};

// Layer norm of one row: factor·(x - mean)/sqrt(var + 1e-6) + shift. The factor is `scale`, or, ONE_PLUS, 1 + scale as
// a tensor of its type holds it. Scale and shift, which many rows share, are read after the statistics: held before, they
// would take the registers of blocks that could fetch further rows.
template <typename Y, bool ONE_PLUS, typename X, typename T, int WARPS, int VECTORS, int N>
__device__ __forceinline__ Row<Y, WARPS, VECTORS, N> layer_norm_row(const Row<X, WARPS, VECTORS, N>& x, const T* scale,
                                                                    const T* shift, u32 cols, float* scratch) {
  const float mean = x.sum(cols, scratch, [](float v) { return v; }) / cols;
  const float variance = x.sum(cols, scratch, [=](float v) { return (v - mean) * (v - mean); }) / cols;
  const float inverse = 1.0f / sqrtf(variance + 1e-6f);
  Row<Y, WARPS, VECTORS, N> y;
#pragma unroll
  for (int i = 0; i < VECTORS; i++) {
    const u32 column = x.column(i);
    if (column >= cols) continue;
    const Vec<T, N> factors = Vec<T, N>::load(scale + column), shifts = Vec<T, N>::load(shift + column);
#pragma unroll
    for (int j = 0; j < N; j++) {
      const float stored = to_f32(factors.v[j]), factor = ONE_PLUS ? round_to<T>(1.0f + stored) : stored;
      y.set(i, j, factor * ((x.at(i, j) - mean) * inverse) + to_f32(shifts.v[j]));
    }
  }
  return y;
}
