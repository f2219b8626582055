// Pointwise kernels: vectors of N elements counted through all rows, a few neighbouring ones a block.

#pragma once

#include "types.cuh"

// As in src/ops/mod.rs.
constexpr u32 kThreads = 256;
constexpr int kItems = 2;

// Where the thread's vector i lies; inside the tensor or not.
template <int N>
struct Place {
  u32 row, column;
  bool inside;

  __device__ __forceinline__ Place(int i, u32 rows, u32 cols) {
    const u32 vectors = cols / N, at = (blockIdx.x * kItems + i) * kThreads + threadIdx.x;
    row = at / vectors;
    column = at % vectors * N;
    inside = row < rows;
  }
};
