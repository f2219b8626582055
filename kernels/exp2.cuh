// 2^x and x·σ(x) by the special function unit.

#pragma once

// A relative error of about 2^-22; results below 2^-126 are zero.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// x·σ(x) with a relative error below 2^-21 + |x|·2^-23; zero where σ(x) is below 2^-126.
__device__ __forceinline__ float silu(float x) {
  float sigmoid;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(sigmoid) : "f"(1.0f + exp2_approx(-1.44269504f * x)));
  return x * sigmoid;
}
