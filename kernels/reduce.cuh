// Sums and maxima over a warp and over a block of whole warps. Every thread gets the result.

#pragma once

__device__ __forceinline__ float warp_sum(float x) {
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
  for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
  return x;
}

// `scratch` holds one float a warp; it may be reused at once after the call.
template <int WARPS>
__device__ __forceinline__ float block_sum(float x, float* scratch) {
  static_assert(WARPS >= 1 && WARPS <= 32, "a block has at most 32 warps");
  x = warp_sum(x);
  if (WARPS == 1) return x;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (lane == 0) scratch[warp] = x;
  __syncthreads();
  x = warp_sum(lane < WARPS ? scratch[lane] : 0.0f);
  __syncthreads();
  return x;
}

// The largest of whole numbers; `scratch` holds one a warp, and may be reused at once.
template <int WARPS>
__device__ __forceinline__ unsigned block_max(unsigned x, unsigned* scratch) {
  static_assert(WARPS >= 1 && WARPS <= 32, "a block has at most 32 warps");
  x = __reduce_max_sync(0xffffffffu, x);
  if (WARPS == 1) return x;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (lane == 0) scratch[warp] = x;
  __syncthreads();
  x = __reduce_max_sync(0xffffffffu, lane < WARPS ? scratch[lane] : 0);
  __syncthreads();
  return x;
}
