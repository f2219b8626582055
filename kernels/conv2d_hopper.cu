// y[Y, X, o] = bias[o] + sum over ky, kx, c of x[row(Y, ky), column(X, kx), c] · w[o, ky, kx, c], as conv2d.cu computes it, of 16-bit
// values on sm_90a: same size (STRIDE 1, a border of zeros) or half of it (STRIDE 2, zeros at the right and at the bottom).
//
// A block has three warpgroups. One produces: a thread has TMA bring the inputs under a tile of 16 x 16 outputs, border
// included, 64 channels at a time (a chunk); another the weights of the taps for 128 channels, one by one. Two consume: each
// owns 8 rows of the tile. A lane's row of a product is a pixel, which ldmatrix reads shifted by the tap; weights stay in
// shared memory. While the products of 32 channels run, the pixels of the next are read. Blocks stay and take tile after tile.
//
// Halving has inputs of even and odd rows and columns in four planes of their own, so that the 16 pixels of a fragment always
// lie side by side; a plane comes, and goes, by itself. Rows of shared memory have 128 bytes in eight pieces; piece p of row r
// lies at p ^ r % 8, TMA's 128-byte swizzle.
//
// The L2 cache is told to let go of pixels and results first: both pass by, weights are what every tile reads again.

#include "hopper.cuh"

using T = Element<X_TYPE>;
using Y = Element<Y_TYPE>;

constexpr u32 kStride = STRIDE, kTile = 16, kTileN = 128, kChunk = 64, kRowBytes = 128;
constexpr u32 kHalo = kTile + 2 / kStride, kPlanes = kStride * kStride;  // inputs of a plane: kHalo x kHalo
constexpr u32 kPlaneBytes = (kHalo * kHalo * kRowBytes + 1023) / 1024 * 1024, kWeightBytes = kTileN * kRowBytes;
constexpr u32 kPixelStages = kStride == 1 ? 2 : 4, kWeightStages = 4, kTaps = 9;
constexpr int kPad = kStride == 1;
constexpr u32 kConsumers = 2, kThreads = 128 * (1 + kConsumers), kConsumerWarps = 4 * kConsumers;

// Taps in the order of their planes, four bits each, and which of them are the last of a plane.
constexpr u64 kOrder = kStride == 1 ? 0x876543210 : 0x453718620;
constexpr u32 kEnds = kStride == 1 ? 0x100 : 0x1a8;
__device__ __forceinline__ constexpr u32 tap_at(u32 i) { return kOrder >> 4 * i & 15; }

struct Params {
  TensorMap x;  // [H, W, C] in boxes of a chunk and a plane
  TensorMap w;  // [O, 9·C] in boxes of a chunk and kTileN rows
  const Y* bias;
  Y* y;
  u32 height;  // of y
  u32 width;
  u32 channels;
  u32 chunks;   // of x's channels
  u32 tiles_x;  // in a row of tiles
  u32 tiles_n;  // of channels
  u32 tiles;    // in all
  u32 above;    // rows of zeros before the first of x: none if x is a strip that begins inside the picture
  u32 padding[4];
};
static_assert(sizeof(Params) == 320, "as in src/ops/conv2d/hopper.rs");

struct Shared {
  u8 pixels[kPixelStages][kPlaneBytes];
  u8 weights[kWeightStages][kWeightBytes];
  u64 pixels_full[kPixelStages], pixels_empty[kPixelStages], weights_full[kWeightStages], weights_empty[kWeightStages];
};
static_assert(sizeof(Shared) == SHARED_BYTES, "as in src/ops/conv2d/hopper.rs");

extern __shared__ __align__(1024) u8 shared_bytes[];

// Tiles by number: all channels of a place follow each other, so that blocks at work share its inputs in the cache.
struct Work {
  u32 channel, x, y;

  __device__ __forceinline__ Work(const Params& p, u32 number) {
    const u32 place = number / p.tiles_n;
    channel = number % p.tiles_n * kTileN;
    x = place % p.tiles_x * kTile;
    y = place / p.tiles_x * kTile;
  }
};

__device__ __forceinline__ u32 place(u32 row, u32 piece) { return row * kRowBytes + (piece ^ row % 8) * 16; }

__device__ __forceinline__ void produce_pixels(const Params& p, Shared& s) {
  Ring<kPixelStages> ring;
  const u64 policy = evict_first();
  for (u32 number = blockIdx.x; number < p.tiles; number += gridDim.x) {
    const Work work(p, number);
#pragma unroll 1
    for (u32 chunk = 0; chunk < p.chunks; chunk++) {
#pragma unroll
      for (u32 plane = 0; plane < kPlanes; plane++) {
        u64& full = s.pixels_full[ring.at];
        barrier_wait(s.pixels_empty[ring.at], ring.parity ^ 1);
        barrier_expect(full, kHalo * kHalo * kRowBytes);
        const int x = (int)(work.x * kStride + plane % kStride) - kPad;
        const int y = (int)(work.y * kStride + plane / kStride) - (int)p.above;
        tma_load(shared_address(s.pixels[ring.at]), p.x, chunk * kChunk, x, y, full, policy);
        ring.next();
      }
    }
  }
}

__device__ __forceinline__ void produce_weights(const Params& p, Shared& s) {
  Ring<kWeightStages> ring;
  for (u32 number = blockIdx.x; number < p.tiles; number += gridDim.x) {
    const Work work(p, number);
#pragma unroll 1
    for (u32 chunk = 0; chunk < p.chunks; chunk++) {
#pragma unroll 1
      for (u32 i = 0; i < kTaps; i++) {
        u64& full = s.weights_full[ring.at];
        barrier_wait(s.weights_empty[ring.at], ring.parity ^ 1);
        barrier_expect(full, kWeightBytes);
        tma_load(shared_address(s.weights[ring.at]), p.w, (tap_at(i) * p.chunks + chunk) * kChunk, work.channel, full);
        ring.next();
      }
    }
  }
}

// 8 rows of 16 pixels by 128 channels: warp w has rows w and 4 + w, fragments of 16 pixels.
struct Consumer {
  const Params& p;
  Shared& s;
  u32 first_row;  // of the warp, in the tile
  Ring<kPixelStages> pixels;
  Ring<kWeightStages> weights;
  float sums[2][64];
  float bias[2][2];   // of channels 2 · lane and 2 · lane + 1 of the tile, and of those 64 further
  u32 a[2][2][2][4];  // of this step (32 channels of a tap) and of the next: rows, 16 channels each

  __device__ __forceinline__ Consumer(const Params& p, Shared& s, u32 number)
      : p(p), s(s), first_row(number * 8 + threadIdx.x % 128 / 32) {}

  // Says that this warp is done with a buffer.
  __device__ __forceinline__ static void release(u64& barrier) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(barrier);
  }

  __device__ __forceinline__ void load(u32 (&to)[2][2][4], u32 step) const {
    const u32 lane = threadIdx.x % 32, tap = tap_at(step / 2), ky = tap / 3, kx = tap % 3;
    const u32 plane = shared_address(s.pixels[pixels.at]);
    u32 first = first_row * kHalo + lane % 16;
    asm volatile("" : "+r"(first));  // or the compiler keeps the places of all taps, and registers spill
#pragma unroll
    for (u32 m = 0; m < 2; m++) {
      const u32 row = first + (4 * m + ky / kStride) * kHalo + kx / kStride;
#pragma unroll
      for (u32 k = 0; k < 2; k++) ldmatrix_x4(to[m][k], plane + place(row, step % 2 * 4 + 2 * k + lane / 16));
    }
  }

  // A chunk's taps; the pixels of the first step are in a[0]. `add`: to what is there.
  __device__ __forceinline__ void multiply(bool add, bool last) {
#pragma unroll
    for (u32 step = 0; step < 2 * kTaps; step++) {
      const u32 now = step % 2;
      const bool begins_tap = now == 0, ends_plane = !begins_tap && (kEnds >> step / 2 & 1), none = step + 1 == 2 * kTaps && last;
      if (begins_tap) barrier_wait(s.weights_full[weights.at], weights.parity);
      const u64 b = wgmma_operand(shared_address(s.weights[weights.at]), 0) + now * 4;
      wgmma_begin();
#pragma unroll
      for (u32 m = 0; m < 2; m++) {
#pragma unroll
        for (u32 k = 0; k < 2; k++) wgmma_abt<T>(sums[m], a[now][m][k], b + k * 2, add || step > 0 || k > 0);
      }
      wgmma_commit();
      // The step before this one is done with its registers and, if it was a tap's second, with its weights.
      wgmma_wait<1>();
      if (begins_tap && (add || step > 0)) release(s.weights_empty[(weights.at + kWeightStages - 1) % kWeightStages]);
      if (!begins_tap) weights.next();
      if (ends_plane) {
        release(s.pixels_empty[pixels.at]);
        pixels.next();
        if (!none) barrier_wait(s.pixels_full[pixels.at], pixels.parity);
      }
      if (!none) load(a[now ^ 1], (step + 1) % (2 * kTaps));
    }
  }

  __device__ __forceinline__ void consume(const Work& work) {
    // Early: at the end of a tile they would be waited for.
#pragma unroll
    for (u32 v = 0; v < 4; v++) bias[v / 2][v % 2] = to_f32(p.bias[work.channel + v / 2 * 64 + threadIdx.x % 32 * 2 + v % 2]);
    barrier_wait(s.pixels_full[pixels.at], pixels.parity);
    load(a[0], 0);
#pragma unroll 1
    for (u32 chunk = 0; chunk < p.chunks; chunk++) multiply(chunk > 0, chunk + 1 == p.chunks);
    wgmma_wait<0>();
    pin(sums[0]);
    pin(sums[1]);
    release(s.weights_empty[(weights.at + kWeightStages - 1) % kWeightStages]);
  }

  __device__ __forceinline__ void write(const Work& work) const {
    const u32 lane = threadIdx.x % 32, quad = lane % 4;
#pragma unroll
    for (u32 n = 0; n < kTileN / 8; n += 4) {
      float bias_of[8];
#pragma unroll
      for (u32 v = 0; v < 8; v++) {
        const u32 pair = (n + v / 2) * 4 + quad;  // of channels
        bias_of[v] = __shfl_sync(0xffffffffu, bias[pair / 32][v % 2], pair % 32);
      }
#pragma unroll
      for (u32 i = 0; i < 4; i++) {
        const u32 m = i / 2, half = i % 2, y = work.y + first_row + 4 * m, x = work.x + lane / 4 + 8 * half;
        float values[8];
#pragma unroll
        for (u32 v = 0; v < 8; v++) values[v] = sums[m][(n + v / 2) * 4 + half * 2 + v % 2] + bias_of[v];
        Y* const to = p.y + ((size_t)y * p.width + x) * p.channels + work.channel + n * 8;
        put(to, values, quad, y < p.height && x < p.width);
      }
    }
  }

  // Four groups of 8 channels of a pixel, of which a lane holds two neighbours each.
  __device__ __forceinline__ static void put(bf16* to, const float (&values)[8], u32 quad, bool inside) {
    u32 word[4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) word[i] = pack2<bf16>(values[2 * i], values[2 * i + 1]);
    transpose(word, quad);
    if (inside) stream_words(to + quad * 8, word);
  }
  __device__ __forceinline__ static void put(float* to, const float (&values)[8], u32 quad, bool inside) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
      if (inside) __stcs(reinterpret_cast<float2*>(to + i * 8 + quad * 2), make_float2(values[2 * i], values[2 * i + 1]));
    }
  }
};

extern "C" __global__ void __launch_bounds__(kThreads, 1) conv2d(const __grid_constant__ Params p) {
  Shared& s = *reinterpret_cast<Shared*>(shared_bytes);
  const u32 warpgroup = threadIdx.x / 128;
  if (threadIdx.x == 0) {
    for (u32 i = 0; i < kPixelStages; i++) barrier_init(s.pixels_full[i], 1), barrier_init(s.pixels_empty[i], kConsumerWarps);
    for (u32 i = 0; i < kWeightStages; i++) barrier_init(s.weights_full[i], 1), barrier_init(s.weights_empty[i], kConsumerWarps);
    barrier_init_fence();
  }
  __syncthreads();
  if (warpgroup == 0) {
    give_registers<24>();
    if (threadIdx.x == 0) produce_pixels(p, s);
    if (threadIdx.x == 32) produce_weights(p, s);
  } else {
    take_registers<240>();
    Consumer consumer(p, s, warpgroup - 1);
    for (u32 number = blockIdx.x; number < p.tiles; number += gridDim.x) {
      const Work work(p, number);
      consumer.consume(work);
      consumer.write(work);
    }
  }
}
