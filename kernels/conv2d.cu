// y[Y, X, o] = bias[o] + sum over ky, kx, c of x[row(Y, ky), column(X, kx), c] · w[o, ky, kx, c], zero outside the picture.
// x [H, W, C], w [O, 3, 3, C], bias [O], y [H', W', O]; bias is of y's type, sums are f32, one rounding at the end.
//
// An implicit GEMM of pixels by output channels, bound by the tensor cores. A block owns kTileH x 16 output pixels and
// N_TILE channels. For 64 bytes of input channels at a time (a chunk: 32 channels, 16 in f32) it holds the tile's inputs
// with their border in shared memory once, and the nine taps read it shifted; the weights of a row of three taps come in
// beside it. A step is a chunk and a row of taps: while one multiplies, the next step's weights (and at a chunk's first
// step the next chunk's inputs) arrive by cp.async in the other half of the buffers.
//
// A strip of a picture has the rows above and below that its results read; zeros stand beyond the picture's edges alone.
//
// Doubling happens in the addresses: neighbouring outputs read the same input. Halving puts even columns before odd ones
// in shared memory, so that the 16 pixels of a fragment always lie side by side.
//
// Shared memory has rows of 64 bytes in four pieces; piece p of row r lies at p ^ (r / 2 % 4), so eight neighbouring rows
// at the same piece, which one ldmatrix reads, are in different banks.

#include "mma.cuh"

using T = Element<X_TYPE>;
using Y = Element<Y_TYPE>;

constexpr int kStride = STRIDE;
constexpr bool kUpsample = UPSAMPLE;
constexpr bool kVector = VECTOR;  // rows of C channels start at multiples of 16 bytes
constexpr int kTileN = N_TILE;
static_assert(kStride == 1 || (kStride == 2 && !kUpsample), "one size, half of it or twice");
static_assert(kTileN == 8 || kTileN % 32 == 0, "the weights' order repeats after 32 channels");

constexpr int kThreads = 128;
constexpr int kTileH = kStride == 2 ? 4 : 8, kTileW = 16;
constexpr int kRowBytes = 64, kPieces = 4;
constexpr int kPiece = 16 / sizeof(T), kChunk = kPieces * kPiece;

// The input rows and columns that a tile reads, from the first, which is Params.above rows and kPad columns before the tile's own.
constexpr int kHaloH = kUpsample ? kTileH / 2 + 2 : kStride * (kTileH - 1) + 3;
constexpr int kHaloW = kUpsample ? kTileW / 2 + 2 : kStride * (kTileW - 1) + 3;
constexpr int kPitch = (kHaloW + 1) / 2 * 2;  // even, so that the order of pieces depends on the column alone
constexpr int kPad = kStride == 1;

constexpr int kPixelBytes = kHaloH * kPitch * kRowBytes;
constexpr int kWeightBytes = 3 * kTileN * kRowBytes;
static_assert(2 * (kPixelBytes + kWeightBytes) == SHARED_BYTES, "as in src/ops/conv2d/portable.rs");

// Warps share out the tile: a warp has kRows rows of 16 pixels by kColumns times 8 channels.
constexpr int kWarpsM = kTileN == 128 ? kTileH / 4 : 4, kWarpsN = 4 / kWarpsM;
constexpr int kRows = kTileH / kWarpsM, kColumns = kTileN / kWarpsN / 8;
static_assert(!kUpsample || kRows % 2 == 0, "a warp's first row is even");

// Stores of 16 bytes: the weights' rows are ordered so that what a lane holds of kRun column groups is neighbours in y.
constexpr int kRun = kTileN == 8 ? 1 : 8 / sizeof(Y);

struct Params {
  const T* x;
  const T* w;
  const Y* bias;
  Y* y;
  u32 h, width, c;             // of x
  u32 y_h, y_width, channels;  // of y
  u32 above;                   // rows of zeros before the first of x: none if x is a strip that begins inside the picture
  u32 unused;
};
static_assert(sizeof(Params) == 64, "as in src/ops/conv2d/portable.rs");

template <typename U>
__device__ __forceinline__ void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  mma_m16n8k16<U>(c, a, b0, b1);
}
template <>
__device__ __forceinline__ void multiply<float>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  mma_m16n8k8_tf32(c, a, b0, b1);
}

// Four matrices of 8 rows by 16 bytes, rounded to what the product reads.
__device__ __forceinline__ void load_fragment(u32 (&r)[4], u32 address) {
  ldmatrix_x4(r, address);
  if (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < 4; i++) r[i] = to_tf32(__uint_as_float(r[i]));
  }
}

// Where piece `piece` of a row lies.
__device__ __forceinline__ u32 place(u32 row, u32 piece) { return row * kRowBytes + ((piece ^ (row / 2 % 4)) * 16); }

// The input row or column, counted from the tile's first, under tap `tap` of output row or column `at` of the tile.
__device__ __forceinline__ u32 halo(u32 at, u32 tap) { return kUpsample ? (at + tap + 1) / 2 : kStride * at + tap; }

// The place of an input column in its row of shared memory.
__device__ __forceinline__ u32 side_by_side(u32 column) {
  return kStride == 2 ? column % 2 * ((kHaloW + 1) / 2) + column / 2 : column;
}

// Channels c.. of the pixel or tap at `row`, 16 bytes of them; zeros past the last one, and if there is no such row.
template <typename Offset>
__device__ __forceinline__ void copy_piece(u8* to, const T* from, Offset row, u32 c, u32 channels, bool inside) {
  if (kVector) {
    const bool valid = inside && c < channels;
    cp_async16(shared_address(to), from + (valid ? row + c : 0), valid);
  } else {
    Vec<T, kPiece> piece;
#pragma unroll
    for (u32 i = 0; i < kPiece; i++) piece.v[i] = inside && c + i < channels ? from[row + c + i] : T{};
    piece.store(reinterpret_cast<T*>(to));
  }
}

// Inputs of a chunk: rows `top` on, columns `left` on.
__device__ __forceinline__ void load_pixels(const Params& p, u8* shared, u32 chunk, int top, int left) {
  constexpr u32 kTotal = kHaloH * kHaloW * kPieces;
  const u32 thread = threadIdx.x % kThreads, piece = thread % kPieces;  // the remainder tells the compiler the bound
  // Unrolled in full it would keep so many addresses that registers spill.
#pragma unroll 3
  for (u32 first = 0; first < kTotal; first += kThreads) {
    if (first + thread >= kTotal) break;
    const u32 pixel = (first + thread) / kPieces, row = pixel / kHaloW, column = pixel % kHaloW;
    const u32 y = top + row, x = left + column;  // above or left of the picture these are huge
    u8* const to = shared + row * kPitch * kRowBytes + place(side_by_side(column), piece);
    copy_piece(to, p.x, ((size_t)y * p.width + x) * p.c, chunk * kChunk + piece * kPiece, p.c, y < p.h && x < p.width);
  }
}

// Weights of a chunk and a row of taps.
__device__ __forceinline__ void load_weights(const Params& p, u8* shared, u32 chunk, u32 ky) {
  constexpr u32 kTotal = 3 * kTileN * kPieces;
  const u32 thread = threadIdx.x % kThreads, piece = thread % kPieces, slot = thread / kPieces, n = slot % kTileN;
  // Row 8j + 2t + e of a group holds channel 2·kRun·t + 2j + e: column group j of lane t, then the lane's next.
  constexpr u32 kGroup = 8 * kRun;
  const u32 order = n / kGroup * kGroup + n / 2 % 4 * 2 * kRun + n % kGroup / 8 * 2 + n % 2;
#pragma unroll
  for (u32 first = 0; first < kTotal; first += kThreads) {
    if (first + thread >= kTotal) break;
    const u32 row = first / kPieces + slot, kx = row / kTileN;
    const u32 channel = blockIdx.x * kTileN + first / kPieces % kTileN + order;
    u8* const to = shared + first / kPieces * kRowBytes + place(slot, piece);
    copy_piece(to, p.w, (channel * 9 + ky * 3 + kx) * p.c, chunk * kChunk + piece * kPiece, p.c, channel < p.channels);
  }
}

// The values of kRun column groups of one pixel.
__device__ __forceinline__ void store(const Params& p, Y* pixel, u32 channel, const Vec<Y, 2 * kRun>& values) {
  if (kTileN > 8) {
    if (channel < p.channels) values.store(pixel + channel);  // of a multiple of 8 channels: all or none
  } else {
#pragma unroll
    for (int i = 0; i < 2 * kRun; i++) {
      if (channel + i < p.channels) pixel[channel + i] = values.v[i];
    }
  }
}

extern "C" __global__ void __launch_bounds__(kThreads, kTileN == 128 ? 2 : 4) conv2d(const __grid_constant__ Params p) {
  extern __shared__ __align__(128) u8 shared[];
  u8* const pixels = shared;
  u8* const weights = shared + 2 * kPixelBytes;
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const u32 first_row = warp % kWarpsM * kRows, first_column = warp / kWarpsM * kColumns;  // of the warp, in the tile
  const u32 tile_x = blockIdx.y * kTileW, tile_y = blockIdx.z * kTileH;
  const int top = (int)(kUpsample ? tile_y / 2 : tile_y * kStride) - (int)p.above;
  const int left = (int)(kUpsample ? tile_x / 2 : tile_x * kStride) - kPad;

  // Where this lane's row of a fragment lies: pixels under each tap of a row, weights.
  u32 pixel_place[3];
#pragma unroll
  for (u32 kx = 0; kx < 3; kx++) {
    pixel_place[kx] = shared_address(pixels) + place(side_by_side(halo(lane % 16, kx)), lane / 16);
  }
  const u32 weight_place = shared_address(weights) + place(first_column * 8 + lane % 8, lane / 8);

  float sums[kRows][kColumns][4] = {};
  const u32 steps = (p.c + kChunk - 1) / kChunk * 3;
  const auto load = [&](u32 step) {
    if (step < steps) {
      if (step % 3 == 0) load_pixels(p, pixels + step / 3 % 2 * kPixelBytes, step / 3, top, left);
      load_weights(p, weights + step % 2 * kWeightBytes, step / 3, step % 3);
    }
    cp_async_commit();
  };
  load(0);
#pragma unroll 1
  for (u32 step = 0; step < steps; step++) {
    cp_async_wait<0>();
    __syncthreads();
    load(step + 1);  // where the step, or the chunk, before this one lay
    const u32 chunk = step / 3, ky = step % 3;

    u32 row_place[kRows];
#pragma unroll
    for (u32 i = 0; i < kRows; i++) {
      row_place[i] = chunk % 2 * kPixelBytes + halo(first_row + i, ky) * kPitch * kRowBytes;
    }
    const u32 weights_now = weight_place + step % 2 * kWeightBytes;

    // A fragment of pixels is 16 pixels by half a row's bytes; one of weights is 8 channels by the whole row. Each is
    // loaded while the one before it multiplies.
    u32 a[2][2 * kRows][4], b[2][4];
    const auto load_a = [&](u32 kx, u32 i) {
      load_fragment(a[kx % 2][i], (pixel_place[kx] + row_place[i / 2]) ^ (i % 2 * 32));
    };
    const auto load_b = [&](u32 i) {
      load_fragment(b[i % 2], weights_now + (i / kColumns * kTileN + i % kColumns * 8) * kRowBytes);
    };
#pragma unroll
    for (u32 i = 0; i < 2 * kRows; i++) load_a(0, i);
    load_b(0);
#pragma unroll
    for (u32 at = 0; at < 3 * kColumns; at++) {
      const u32 kx = at / kColumns, j = at % kColumns;
      if (at + 1 < 3 * kColumns) load_b(at + 1);
#pragma unroll
      for (u32 i = j; i < 2 * kRows; i += kColumns) {
        if (kx < 2) load_a(kx + 1, i);
      }
#pragma unroll
      for (u32 half = 0; half < 2; half++) {
#pragma unroll
        for (u32 i = 0; i < kRows; i++) {
          multiply<T>(sums[i][j], a[kx % 2][2 * i + half], b[at % 2][2 * half], b[at % 2][2 * half + 1]);
        }
      }
    }
  }

#pragma unroll
  for (u32 run = 0; run < kColumns; run += kRun) {
    const u32 channel = blockIdx.x * kTileN + (first_column + run) * 8 + lane % 4 * 2 * kRun;
    float bias[2 * kRun];
#pragma unroll
    for (u32 i = 0; i < 2 * kRun; i++) bias[i] = channel + i < p.channels ? to_f32(p.bias[channel + i]) : 0.0f;
#pragma unroll
    for (u32 i = 0; i < 2 * kRows; i++) {
      const u32 y = tile_y + first_row + i / 2, x = tile_x + lane / 4 + i % 2 * 8;
      Vec<Y, 2 * kRun> values;
#pragma unroll
      for (u32 v = 0; v < 2 * kRun; v++) {
        values.v[v] = from_f32<Y>(sums[i / 2][run + v / 2][i % 2 * 2 + v % 2] + bias[v]);
      }
      if (y < p.y_h && x < p.y_width) store(p, p.y + ((size_t)y * p.y_width + x) * p.channels, channel, values);
    }
  }
}
