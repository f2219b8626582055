// Latents [H, W, C] to tokens [H/2·W/2, 4C] (PACK = 1), or tokens to latents as x / divisor + shift (PACK = 0). Channel
// c·4 + row·2 + column of a token is channel c of pixel (row, column) of its 2x2 square.
//
// A thread moves one value; values of tokens neighbour each other. A megabyte or two: bound by the launch.

#include "types.cuh"

constexpr bool kPack = PACK;
using X = Element<X_TYPE>;
using Y = Element<Y_TYPE>;

struct Params {
  const X* x;
  Y* y;
  u32 values;
  u32 width;     // W
  u32 channels;  // C
  float divisor;
  float shift;
  u32 unused;
};
static_assert(sizeof(Params) == 40, "as in src/ops/patchify.rs");

extern "C" __global__ void patchify(const __grid_constant__ Params p) {
  const u32 at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= p.values) return;
  const u32 token = at / (4 * p.channels), channel = at % (4 * p.channels);
  const u32 row = token / (p.width / 2) * 2 + channel / 2 % 2, column = token % (p.width / 2) * 2 + channel % 2;
  const u32 place = (row * p.width + column) * p.channels + channel / 4;
  if (kPack) {
    p.y[at] = from_f32<Y>(to_f32(p.x[place]));
  } else {
    p.y[place] = from_f32<Y>(to_f32(p.x[at]) / p.divisor + p.shift);
  }
}
