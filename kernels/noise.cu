// y = normals as torch.randn draws them on a CUDA device, rounded to bf16: seed [2] (low, high), y [n, 64] f32, packed
// latents.
//
// Philox4x32-10 with the seed as key; of [16, H, W] in flat order element e is normal number e / P of thread e % P, four
// normals a draw, sine first. A thread makes one value: bound by integer arithmetic, a few microseconds.

#include "types.cuh"

struct Params {
  float* y;
  const u32* seed;
  u64 offset;   // of the generator, in draws
  u32 values;   // 16·H·W
  u32 threads;  // P
  u32 height;
  u32 width;
};
static_assert(sizeof(Params) == 40, "as in src/ops/noise.rs");

// Where value `at` of the packed tokens stands in [16, H, W]: a token's channel is c·4 + row·2 + column.
__device__ __forceinline__ u32 drawn_at(u32 at, u32 height, u32 width) {
  const u32 token = at / 64, channel = at % 64;
  const u32 row = token / (width / 2) * 2 + channel / 2 % 2, column = token % (width / 2) * 2 + channel % 2;
  return (channel / 4 * height + row) * width + column;
}

// Ten rounds of Philox4x32; c is the counter, then the four words.
__device__ __forceinline__ void philox(u32 (&c)[4], u32 key0, u32 key1) {
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const u32 low0 = 0xD2511F53u * c[0], high0 = __umulhi(0xD2511F53u, c[0]);
    const u32 low1 = 0xCD9E8D57u * c[2], high1 = __umulhi(0xCD9E8D57u, c[2]);
    c[0] = high1 ^ c[1] ^ key0;
    c[1] = low1;
    c[2] = high0 ^ c[3] ^ key1;
    c[3] = low0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

extern "C" __global__ void noise(const __grid_constant__ Params p) {
  const u32 at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= p.values) return;
  const u32 element = drawn_at(at, p.height, p.width), thread = element % p.threads, count = element / p.threads;
  const u64 draw = p.offset + count / 4;
  u32 words[4] = {(u32)draw, (u32)(draw >> 32), thread, 0};
  philox(words, p.seed[0], p.seed[1]);

  // Box-Muller with the very instructions of the official draw: fused multiply-adds, the accurate logarithm, the fast
  // sine and cosine.
  constexpr float kStep = 2.3283064e-10f, kAngleStep = kStep * 6.2831855f;
  const bool second = count % 4 >= 2;
  const float u = __fmaf_rn((float)(second ? words[2] : words[0]), kStep, kStep / 2.0f);
  const float v = __fmaf_rn((float)(second ? words[3] : words[1]), kAngleStep, kAngleStep / 2.0f);
  const float radius = sqrtf(-2.0f * logf(u));
  float sine, cosine;
  __sincosf(v, &sine, &cosine);
  p.y[at] = round_to<bf16>(radius * (count % 2 == 0 ? sine : cosine));
}
