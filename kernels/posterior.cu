// y = scale·(mean + e^(logvar/2)·ε - shift), without SAMPLE the mean alone: moments [P, 2C] (mean, then logvar), ε [P, C],
// y [P, C] f32.
//
// A thread makes one value. A megabyte or two: bound by the launch.

#include "types.cuh"

constexpr bool kSample = SAMPLE;
using X = Element<X_TYPE>;
using Noise = Element<NOISE_TYPE>;
using Y = Element<Y_TYPE>;

struct Params {
  const X* moments;
  const Noise* noise;  // null if not sampled
  Y* y;
  u32 values;
  u32 channels;  // C
  float scale;
  float shift;
};
static_assert(sizeof(Params) == 40, "as in src/ops/posterior.rs");

extern "C" __global__ void posterior(const __grid_constant__ Params p) {
  const u32 at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= p.values) return;
  const X* const moments = p.moments + (size_t)(at / p.channels) * 2 * p.channels + at % p.channels;
  float latent = to_f32(moments[0]);
  // Sums and products of their own, as the official code rounds them.
  if (kSample) {
    const float deviation = expf(0.5f * to_f32(moments[p.channels]));
    latent = __fadd_rn(latent, __fmul_rn(deviation, to_f32(p.noise[at])));
  }
  p.y[at] = from_f32<Y>(__fmul_rn(p.scale, __fadd_rn(latent, -p.shift)));
}
