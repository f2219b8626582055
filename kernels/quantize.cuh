// bf16 to signed eight-bit integers, row by row: round(x · 127 / max |x|), to nearest even. A row of zeros stays one; one that is
// not finite gets a scale that is not.

#pragma once

#include "types.cuh"

// What the values of a row are multiplied by; `most` is the largest of their magnitudes. 0 where that is no finite number: of
// rows of zeros, of values too small to be told from them, and of rows that are not finite. Divisions round as the CPU's do.
__device__ __forceinline__ float quantizing_factor(float most) {
  const float factor = __fdiv_rn(127.0f, most);
  return factor <= __uint_as_float(0x7f7fffff) ? factor : 0.0f;
}
// What an integer of the row stands for.
__device__ __forceinline__ float quantized_scale(float most) { return __fdiv_rn(most, 127.0f); }

// Four integers, the first lowest.
__device__ __forceinline__ u32 quantize4(float a, float b, float c, float d, float factor) {
  const auto q = [=](float x) { return __float2int_rn(x * factor); };
  u32 upper, y;
  asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3;" : "=r"(upper) : "r"(q(d)), "r"(q(c)), "r"(0));
  asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3;" : "=r"(y) : "r"(q(b)), "r"(q(a)), "r"(upper));
  return y;
}
__device__ __forceinline__ u32 quantize4(u32 low, u32 high, float factor) {
  const auto first = [](u32 pair) { return __uint_as_float(pair << 16); };
  const auto second = [](u32 pair) { return __uint_as_float(pair & 0xffff0000u); };
  return quantize4(first(low), second(low), first(high), second(high), factor);
}

// 16 values that other blocks have just written: not through L1. Volatile, so that it leaves before what comes after it.
struct Sixteen {
  uint4 low, high;

  __device__ __forceinline__ void load(const bf16* from) { load(low, from), load(high, from + 8); }
  __device__ __forceinline__ static void load(uint4& to, const bf16* from) {
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to.x), "=r"(to.y), "=r"(to.z), "=r"(to.w)
                 : "l"(__cvta_generic_to_global(from)));
  }
  __device__ __forceinline__ uint4 quantized(float factor) const {
    return make_uint4(quantize4(low.x, low.y, factor), quantize4(low.z, low.w, factor), quantize4(high.x, high.y, factor),
                      quantize4(high.z, high.w, factor));
  }
};

// One row, by a warp, 1024 columns at a time; `cols` is a multiple of 512. The next are on their way while some are converted.
__device__ __forceinline__ void quantize_row(const bf16* x, u8* y, u32 cols, float factor) {
  constexpr u32 kStep = 32 * 16;
  const u32 first = threadIdx.x % 32 * 16;
  x += first, y += first;
  Sixteen now, next;
  now.load(x);
  for (u32 at = 0; at < cols; at += 2 * kStep) {
    if (at + kStep < cols) next.load(x + at + kStep);
    *reinterpret_cast<uint4*>(y + at) = now.quantized(factor);
    if (at + kStep >= cols) break;
    if (at + 2 * kStep < cols) now.load(x + at + 2 * kStep);
    *reinterpret_cast<uint4*>(y + at + kStep) = next.quantized(factor);
  }
}
