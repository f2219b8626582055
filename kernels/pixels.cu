// IN = 1, pixels_in: y = x/255·2 - 1, x u8. IN = 0, pixels_out: y = (clamp(x, -1, 1)·0.5 + 0.5)·255 as u8,
// truncated or to the NEAREST, and `faults` counts the values that are not finite; it is zero before. x and y of any one shape, without gaps.
//
// A thread takes one vector of up to 16 bytes. Bound by bandwidth. Halving and doubling are exact, so that fused
// multiply-adds change nothing.

#include "types.cuh"

constexpr int kVector = VECTOR;
using X = Element<X_TYPE>;
using Y = Element<Y_TYPE>;

struct Params {
  const X* x;
  Y* y;
  u32* faults;  // pixels_out alone
  u32 vectors;
  u32 unused;
};
static_assert(sizeof(Params) == 32, "as in src/ops/pixels.rs");

#if IN

extern "C" __global__ void pixels_in(const __grid_constant__ Params p) {
  const size_t vector = blockIdx.x * blockDim.x + threadIdx.x;
  if (vector >= p.vectors) return;
  const auto x = Vec<X, kVector>::load(p.x + vector * kVector);
  Vec<Y, kVector> y;
#pragma unroll
  for (int i = 0; i < kVector; i++) y.v[i] = from_f32<Y>((float)x.v[i] / 255.0f * 2.0f - 1.0f);
  y.store(p.y + vector * kVector);
}

#else

extern "C" __global__ void pixels_out(const __grid_constant__ Params p) {
  const size_t vector = blockIdx.x * blockDim.x + threadIdx.x;
  u32 faults = 0;
  if (vector < p.vectors) {
    const auto x = Vec<X, kVector>::load(p.x + vector * kVector);
    Vec<Y, kVector> y;
#pragma unroll
    for (int i = 0; i < kVector; i++) {
      const float value = to_f32(x.v[i]);
      faults += !isfinite(value);
      // fmaxf takes the number of a number and a NaN: a NaN becomes -1, black.
      const float level = (fminf(fmaxf(value, -1.0f), 1.0f) * 0.5f + 0.5f) * 255.0f;
      y.v[i] = (Y)(NEAREST ? __float2int_rn(level) : (int)level);
    }
    y.store(p.y + vector * kVector);
  }
  if (faults > 0) atomicAdd(p.faults, faults);
}

#endif
