// y = scale·(mean + e^(logvar/2)·ε - shift), without SAMPLE the mean alone; logvar within [-30, 20] where BOUNDED: moments [P, 2C] (mean, then logvar), ε [P, C],
// y [P, C] f32.
//
// A thread makes one vector of a pixel's channels. A megabyte or two: bound by the launch.

#include "types.cuh"

constexpr bool kSample = SAMPLE;
constexpr int kVector = VECTOR;
using X = Element<X_TYPE>;
using Noise = Element<NOISE_TYPE>;
using Y = Element<Y_TYPE>;

struct Params {
  const X* moments;
  const Noise* noise;  // null if not sampled
  Y* y;
  u32 vectors;
  u32 channels;  // C
  float scale;
  float shift;
};
static_assert(sizeof(Params) == 40, "as in src/ops/posterior.rs");

extern "C" __global__ void posterior(const __grid_constant__ Params p) {
  const u32 vector = blockIdx.x * blockDim.x + threadIdx.x;
  if (vector >= p.vectors) return;
  const u32 at = vector * kVector;
  const X* const moments = p.moments + (size_t)(at / p.channels) * 2 * p.channels + at % p.channels;
  const auto mean = Vec<X, kVector>::load(moments);
  Vec<X, kVector> logvar = {};
  Vec<Noise, kVector> noise = {};
  if (kSample) {
    logvar = Vec<X, kVector>::load(moments + p.channels);
    noise = Vec<Noise, kVector>::load(p.noise + at);
  }
  Vec<Y, kVector> y;
#pragma unroll
  for (int i = 0; i < kVector; i++) {
    float latent = to_f32(mean.v[i]);
    // Sums and products of their own, as the official code rounds them.
    float variance = to_f32(logvar.v[i]);
    if (BOUNDED) variance = fminf(fmaxf(variance, -30.0f), 20.0f);
    if (kSample) latent = __fadd_rn(latent, __fmul_rn(expf(0.5f * variance), to_f32(noise.v[i])));
    y.v[i] = from_f32<Y>(__fmul_rn(p.scale, __fadd_rn(latent, -p.shift)));
  }
  y.store(p.y + at);
}
