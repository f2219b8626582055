// y[Y, X, o] = bias[o] + sum over ky, kx, c of x[Y + ky - 1, X + kx - 1, c] · w[o, ky, kx, c] for few channels o. x [H, W, C],
// w [O, 3, 3, C], bias [O], y [H, W, O].
//
// Every pixel is multiplied once, by the weights of all taps of all outputs side by side (9·O of them, at most 32), and an
// output sums what its neighbours gave for it. A block takes kTileH x kTileW outputs: first its warps multiply the pixels under
// them, border included, and leave 9·O values of each in shared memory; then its threads sum. Bound by the bandwidth of x.
//
// A lane reads 16 bytes of a pixel: channels 8t.. of 32. They are columns 2t, 2t + 1, 2t + 8, 2t + 9 of two steps of 16, and the
// weights are read in the same order.

#include "mma.cuh"

using T = Element<X_TYPE>;
using Y = Element<Y_TYPE>;

constexpr u32 kChannels = CHANNELS, kOutputs = OUTPUTS, kParts = 9 * kOutputs, kColumns = (kParts + 7) / 8;
static_assert(kParts <= 32 && kChannels % 32 == 0 && sizeof(T) == 2, "steps of 32 channels");
constexpr u32 kHaloH = 16, kHaloW = 32, kTileH = kHaloH - 2, kTileW = kHaloW - 2;
constexpr u32 kWarps = 8, kThreads = 32 * kWarps;
constexpr u32 kPitch = kChannels + 32;  // of the weights, in values: two rows' 64 bytes lie in different banks
constexpr u32 kWeightBytes = 8 * kColumns * kPitch * 2, kPartBytes = kHaloH * kHaloW * kParts * 4;
static_assert(kWeightBytes + kPartBytes == SHARED_BYTES, "as in src/ops/conv2d/thin_out.rs");

struct Params {
  const T* x;
  const T* w;
  const Y* bias;
  Y* y;
  u32 height;
  u32 width;
  u32 channels;  // of y
  u32 unused;
};
static_assert(sizeof(Params) == 48, "as in src/ops/conv2d/thin_out.rs");

extern "C" __global__ void __launch_bounds__(kThreads, 3) conv2d_out(const __grid_constant__ Params p) {
  extern __shared__ __align__(128) u8 shared[];
  u16* const weights = reinterpret_cast<u16*>(shared);
  float* const parts = reinterpret_cast<float*>(shared + kWeightBytes);
  const u32 thread = threadIdx.x % kThreads, lane = thread % 32, warp = thread / 32, group = lane / 4, t = lane % 4;
  const u32 left = blockIdx.x * kTileW - 1, top = blockIdx.y * kTileH - 1;  // of the border: huge before the first

  using Piece = Vec<T, 8>;
  using Words = Vec<u32, 4>;
  for (u32 i = thread; i < 8 * kColumns * kChannels / 8; i += kThreads) {
    const u32 row = i / (kChannels / 8), piece = i % (kChannels / 8) * 8;
    const Piece from = row < kParts ? Piece::load(p.w + row * kChannels + piece) : Piece{};
    from.store(reinterpret_cast<T*>(weights + row * kPitch + piece));
  }
  __syncthreads();

#pragma unroll 1
  for (u32 first = warp * 16; first < kHaloH * kHaloW; first += 16 * kWarps) {
    // Two rows of a fragment: pixels `group` and 8 after it.
    u32 words[2][kChannels / 32][4];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
      const u32 pixel = first + group + 8 * half, row = top + pixel / kHaloW, column = left + pixel % kHaloW;
      const bool inside = row < p.height && column < p.width;
      const T* const from = p.x + (inside ? ((size_t)row * p.width + column) * kChannels + 8 * t : 0);
#pragma unroll
      for (u32 i = 0; i < kChannels / 32; i++) {
        const Words piece = inside ? Words::load(reinterpret_cast<const u32*>(from + 32 * i)) : Words{};
#pragma unroll
        for (u32 word = 0; word < 4; word++) words[half][i][word] = piece.v[word];
      }
    }
    float sums[kColumns][4] = {};
#pragma unroll
    for (u32 i = 0; i < kChannels / 32; i++) {
#pragma unroll
      for (u32 j = 0; j < kColumns; j++) {
        const Words b = Words::load(reinterpret_cast<const u32*>(weights + (8 * j + group) * kPitch + 32 * i + 8 * t));
        const u32(&above)[4] = words[0][i];
        const u32(&below)[4] = words[1][i];
        mma_m16n8k16<T>(sums[j], {above[0], below[0], above[1], below[1]}, b.v[0], b.v[1]);
        mma_m16n8k16<T>(sums[j], {above[2], below[2], above[3], below[3]}, b.v[2], b.v[3]);
      }
    }
#pragma unroll
    for (u32 j = 0; j < kColumns; j++) {
#pragma unroll
      for (u32 i = 0; i < 4; i++) {
        const u32 part = 8 * j + 2 * t + i % 2;
        if (part < kParts) parts[(first + group + i / 2 * 8) * kParts + part] = sums[j][i];
      }
    }
  }
  __syncthreads();

  for (u32 i = thread; i < kTileH * kTileW; i += kThreads) {
    const u32 row = i / kTileW, column = i % kTileW, y = top + 1 + row, x = left + 1 + column;
    if (y >= p.height || x >= p.width) continue;
#pragma unroll
    for (u32 o = 0; o < kOutputs; o++) {
      float sum = to_f32(p.bias[o]);
#pragma unroll
      for (u32 tap = 0; tap < 9; tap++) {
        sum += parts[((row + tap / 3) * kHaloW + column + tap % 3) * kParts + o * 9 + tap];
      }
      p.y[((size_t)y * p.width + x) * kOutputs + o] = from_f32<Y>(sum);
    }
  }
}
