// Element types without toolkit headers: NVRTC compiles these alone.
//
// bf16 is the upper half of an f32. Rounding is to nearest even, as the reference executor rounds; a NaN stays one.

#pragma once

typedef unsigned short bf16;
typedef unsigned int u32;
typedef unsigned long long u64;

// Widening is exact.
__device__ __forceinline__ float to_f32(bf16 x) { return __uint_as_float((u32)x << 16); }
__device__ __forceinline__ float to_f32(float x) { return x; }

// One rounding, by the instruction that sm_80 brought.
__device__ __forceinline__ bf16 to_bf16(float x) {
  bf16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}

// Two values in one instruction: `low` in the lower half of the word.
__device__ __forceinline__ u32 to_bf16x2(float low, float high) {
  u32 y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}

// What a bf16 tensor would hold of x; where official code rounds between two operations.
__device__ __forceinline__ float round_bf16(float x) { return to_f32(to_bf16(x)); }
