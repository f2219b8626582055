// Pointwise kernels: vectors of N elements counted through all rows, a few neighbouring ones a block.

#pragma once

#include "types.cuh"

// As in src/ops/select.rs.
constexpr u32 kThreads = 256;
constexpr int kItems = 2;

// Where the thread's vectors lie, and which are inside the tensor. If the first is, all may be read: one that is not stands
// where the first does, so that all reads leave at once, without a branch around each.
template <int N>
struct Places {
  u32 row[kItems], column[kItems];
  bool inside[kItems];

  __device__ __forceinline__ Places(u32 rows, u32 cols) {
    const u32 vectors = cols / N;
#pragma unroll
    for (int i = 0; i < kItems; i++) {
      const u32 at = (blockIdx.x * kItems + i) * kThreads + threadIdx.x;
      inside[i] = at / vectors < rows;
      row[i] = i == 0 || inside[i] ? at / vectors : row[0];
      column[i] = i == 0 || inside[i] ? at % vectors * N : column[0];
    }
  }
};
