// RMS norm of each head of 128, then rotary embedding of interleaved pairs; y may be x.
//
//   x, y [R, H·128]; rope [R, 128] f32 with (cos, sin) of pair k at 2k, 2k + 1; one scale [128] for every H/SCALES heads
//   n = round(x/sqrt(mean(x²) + eps)·scale); y[2k] = cos·n[2k] - sin·n[2k+1], y[2k+1] = sin·n[2k] + cos·n[2k+1]
//
// One block a row, one half-warp a head: a lane has 8 neighbouring channels, 16 bytes, which are 4 whole pairs and, in
// rope, their 8 numbers. These stay in registers for all heads of the row. A half-warp has three heads under way. Bound by
// bandwidth: x is read and written once.

#include "types.cuh"

constexpr int kWidth = 128, kThreads = 128;
constexpr int kGroups = kThreads / 16;  // half-warps
constexpr int kHeads = 3;               // of a half-warp at a time
constexpr int kScales = SCALES;
using X = Element<X_TYPE>;
using Channels = Vec<X, 8>;

struct Params {
  const X* x;
  const float* rope;
  const X* scales[2];  // twice the same if there is one
  X* y;
  u32 heads;  // with one scale
  u32 x_stride;
  u32 rope_stride;
  u32 y_stride;
};
static_assert(sizeof(Params) == 56, "as in src/ops/qk_norm_rope.rs");

__device__ __forceinline__ float half_warp_sum(float x) {
#pragma unroll
  for (int offset = 8; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

// y: the channels, packed two a word.
__device__ __forceinline__ void norm_and_rotate(u32 (&y)[4], const Channels& x, const Channels& scale,
                                                const float (&rope)[8]) {
  float square = 0.0f, n[8];
#pragma unroll
  for (int j = 0; j < 8; j++) square += to_f32(x.v[j]) * to_f32(x.v[j]);
  const float inverse = 1.0f / sqrtf(half_warp_sum(square) / kWidth + 1e-6f);
#pragma unroll
  for (int j = 0; j < 8; j++) n[j] = round_to<X>(to_f32(x.v[j]) * inverse * to_f32(scale.v[j]));
#pragma unroll
  for (int j = 0; j < 8; j += 2) {
    const float cos = rope[j], sin = rope[j + 1];
    y[j / 2] = pack2<X>(cos * n[j] - sin * n[j + 1], sin * n[j] + cos * n[j + 1]);
  }
}

extern "C" __global__ void __launch_bounds__(kThreads) qk_norm_rope(const __grid_constant__ Params p) {
  const u32 group = threadIdx.x / 16, channel = threadIdx.x % 16 * 8;
  const size_t row = blockIdx.x;
  const X* row_x = p.x + row * p.x_stride + channel;
  X* row_y = p.y + row * p.y_stride + channel;
  float rope[8];
#pragma unroll
  for (int j = 0; j < 8; j += 4) {
    const auto part = Vec<float, 4>::load(p.rope + row * p.rope_stride + channel + j);
#pragma unroll
    for (int k = 0; k < 4; k++) rope[j + k] = part.v[k];
  }
#pragma unroll
  for (int s = 0; s < kScales; s++) {
    const Channels scale = Channels::load(p.scales[s] + channel);
    const u32 end = (s + 1) * p.heads;
    // Whole warps go round: both half-warps take part in the sums, whether their head exists or not.
    for (u32 first = s * p.heads; first < end; first += kGroups * kHeads) {
      Channels x[kHeads];
#pragma unroll
      for (int i = 0; i < kHeads; i++) {
        const u32 head = first + i * kGroups + group;
        x[i] = Channels::load(row_x + (head < end ? head : end - 1) * kWidth);
      }
#pragma unroll
      for (int i = 0; i < kHeads; i++) {
        const u32 head = first + i * kGroups + group;
        u32 y[4];
        norm_and_rotate(y, x[i], scale, rope);
        if (head < end) store_words(row_y + head * kWidth, y);
      }
    }
  }
}
