// 2^x by the special function unit, with a relative error of about 2^-22; results below 2^-126 are zero.

#pragma once

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
