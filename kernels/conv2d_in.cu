// y[Y, X, o] = bias[o] + sum over ky, kx, c of x[Y + ky - 1, X + kx - 1, c] · w[o, ky, kx, c] for pictures of few channels: all
// taps of all channels are the depth of one product. x [H, W, C], w [O, 3, 3, C], bias [O], y [H, W, O].
//
// A block takes tiles of kTileH x kTileW pixels, one after the other, and N_TILE channels. The weights stay in shared memory, with
// zeros up to a multiple of 16 values; of a tile it holds the inputs with their border, from which each lane gathers its fragments.
// 4 warps share a tile's rows. Bound by the bandwidth of y.

#include "mma.cuh"

using T = Element<X_TYPE>;
using Y = Element<Y_TYPE>;

constexpr u32 kChannels = CHANNELS, kTaps = 9 * kChannels, kSteps = (kTaps + 15) / 16;
constexpr bool kEights = kChannels % 8 == 0;  // 8 values of one tap neighbour each other, at multiples of 16 bytes
static_assert(sizeof(T) == 2 && (kEights || kTaps <= 32), "few channels");
constexpr u32 kTileN = N_TILE, kTileH = 4, kTileW = 32, kTiles = TILES, kThreads = 128;
constexpr u32 kHaloW = (kTileW + 2) * kChannels, kHalo = (kTileH + 2) * kHaloW;  // values
constexpr u32 kPitch = 16 * kSteps + 8;  // of the weights, in values: eight rows' 16 bytes lie in different banks

// Stores of 16 bytes: the weights' rows are ordered so that what a lane holds of kRun column groups is neighbours in y.
constexpr u32 kRun = 8 / sizeof(Y), kGroup = 8 * kRun;
static_assert(kTileN % kGroup == 0, "whole groups");

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
static_assert(sizeof(Params) == 48, "as in src/ops/conv2d/thin_in.rs");

// Row 8j + 2t + e of a group holds channel 2·kRun·t + 2j + e.
__device__ __forceinline__ u32 channel_of(u32 row) {
  return row / kGroup * kGroup + row / 2 % 4 * 2 * kRun + row % kGroup / 8 * 2 + row % 2;
}

// Where value `k` of a pixel's taps lies in the halo, from the pixel's first.
__device__ __forceinline__ u32 under(u32 k) { return k / (3 * kChannels) * kHaloW + k % (3 * kChannels); }

extern "C" __global__ void __launch_bounds__(kThreads, 4) conv2d_in(const __grid_constant__ Params p) {
  __shared__ __align__(128) u16 weights[kTileN * kPitch];
  __shared__ __align__(128) u16 pixels[kHalo];
  __shared__ float bias[kTileN];
  const u32 thread = threadIdx.x % kThreads, lane = thread % 32, warp = thread / 32, group = lane / 4, t = lane % 4;
  const u32 first_channel = blockIdx.x * kTileN;

  if (kEights) {
    constexpr u32 kPieces = kTaps / 8;
#pragma unroll 4
    for (u32 i = thread; i < kTileN * kPieces; i += kThreads) {
      const u32 row = i / kPieces, k = i % kPieces * 8;
      cp_async16(shared_address(weights + row * kPitch + k), p.w + (first_channel + channel_of(row)) * kTaps + k);
    }
    cp_async_commit();
  } else {
#pragma unroll 4
    for (u32 i = thread; i < kTileN * 16 * kSteps; i += kThreads) {
      const u32 row = i / (16 * kSteps), k = i % (16 * kSteps);
      weights[row * kPitch + k] = k < kTaps ? p.w[(first_channel + channel_of(row)) * kTaps + k].bits : 0;
    }
  }
  for (u32 i = thread; i < kTileN; i += kThreads) bias[i] = to_f32(p.bias[first_channel + i]);

  // The lane's values of k, two by two: 2t, 8 more, and so on.
  u32 offset[2 * kSteps][2];
#pragma unroll
  for (u32 i = 0; i < 4 * kSteps; i++) {
    const u32 k = i / 2 * 8 + 2 * t + i % 2;
    offset[i / 2][i % 2] = kEights ? under(i / 2 * 8) + 2 * t + i % 2 : under(min(k, kTaps - 1));
  }

#pragma unroll 1
  for (u32 tile = 0; tile < kTiles; tile++) {
    const u32 left = (blockIdx.y * kTiles + tile) * kTileW, top = blockIdx.z * kTileH;
    if (left >= p.width) break;
    __syncthreads();
    using Piece = Vec<T, kEights ? 8 : 1>;
    constexpr u32 kPiece = sizeof(Piece) / sizeof(T);
#pragma unroll
    for (u32 first = 0; first < kHalo; first += kPiece * kThreads) {
      const u32 i = first + kPiece * thread;
      const u32 row = top + i / kHaloW - 1, at = i % kHaloW, column = left + at / kChannels - 1;  // huge before the first
      if (i < kHalo) {
        const bool inside = row < p.height && column < p.width;
        const T* const from = p.x + ((size_t)row * p.width + column) * kChannels + at % kChannels;
        (inside ? Piece::load(from) : Piece{}).store(reinterpret_cast<T*>(pixels + i));
      }
    }
    cp_async_wait<0>();
    __syncthreads();

    // A warp's row of the tile: two fragments of 16 pixels, each of all steps of 16 values.
    u32 a[2][kSteps][4];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
#pragma unroll
      for (u32 i = 0; i < 4 * kSteps; i++) {
        const u32 high = i / 2 % 2, below = i % 2, pair = i / 4 * 2 + high;  // a0, a1, a2, a3 of a step
        const u16* const pixel = pixels + warp * kHaloW + (half * 16 + group + 8 * below) * kChannels;
        u32& word = a[half][i / 4][2 * high + below];
        if (kEights) {
          word = *reinterpret_cast<const u32*>(pixel + offset[pair][0]);
        } else {
          const u32 k = pair * 8 + 2 * t;
          const u32 first = k < kTaps ? pixel[offset[pair][0]] : 0, second = k + 1 < kTaps ? pixel[offset[pair][1]] : 0;
          word = first | second << 16;
        }
      }
    }

    // Two groups of 8 channels at a time, 16 values of each.
    const u32 y = top + warp, weight_place = shared_address(weights + (lane / 16 * 8 + lane % 8) * kPitch + lane / 8 % 2 * 8);
#pragma unroll 1
    for (u32 n = 0; n < kTileN; n += kGroup) {
      float sums[2][kRun][4] = {};
#pragma unroll
      for (u32 step = 0; step < kSteps; step++) {
#pragma unroll
        for (u32 j = 0; j < kRun; j += 2) {
          u32 b[4];
          ldmatrix_x4(b, weight_place + ((n + 8 * j) * kPitch + 16 * step) * 2);
#pragma unroll
          for (u32 half = 0; half < 2; half++) {
            mma_m16n8k16<T>(sums[half][j], a[half][step], b[0], b[1]);
            mma_m16n8k16<T>(sums[half][j + 1], a[half][step], b[2], b[3]);
          }
        }
      }
      const u32 channel = n + t * 2 * kRun;
#pragma unroll
      for (u32 i = 0; i < 4; i++) {
        const u32 x = left + i * 8 + group;
        Vec<Y, 2 * kRun> values;
#pragma unroll
        for (u32 v = 0; v < 2 * kRun; v++) values.v[v] = from_f32<Y>(sums[i / 2][v / 2][i % 2 * 2 + v % 2] + bias[channel + v]);
        if (y < p.height && x < p.width) {
          const size_t pixel = (size_t)y * p.width + x;
          Y* const to = p.y + pixel * p.channels + first_channel + channel;
          const u32(&word)[4] = reinterpret_cast<const u32(&)[4]>(values);
          // A picture's results exceed the L2 cache, latents' fit in it.
          kEights ? store_words(to, word) : stream_words(to, word);
        }
      }
    }
  }
}
