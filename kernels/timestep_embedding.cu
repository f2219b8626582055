// y = [cos(a) | sin(a)], a = (1000·t)·f_k, f_k = 10000^(-k/128): t [N] f32, y [N, 256].
//
// One block a time, one thread a frequency. A few kilobytes: bound by the launch.

#include "types.cuh"

constexpr int kHalf = 128;
using Y = Element<Y_TYPE>;

struct Params {
  const float* t;
  Y* y;
  u32 y_stride;
  u32 unused;
};
static_assert(sizeof(Params) == 24, "as in src/ops/timestep_embedding.rs");

extern "C" __global__ void __launch_bounds__(kHalf) timestep_embedding(const __grid_constant__ Params p) {
  const int k = threadIdx.x;
  // The roundings of this order matter: an angle near 1000 turns the last bit into 6e-5.
  const float frequency = expf(-9.21034037f * (float)k / (float)kHalf);
  const float angle = 1000.0f * p.t[blockIdx.x] * frequency;
  float sine, cosine;
  sincosf(angle, &sine, &cosine);
  Y* const y = p.y + (size_t)blockIdx.x * p.y_stride;
  y[k] = from_f32<Y>(cosine);
  y[kHalf + k] = from_f32<Y>(sine);
}
