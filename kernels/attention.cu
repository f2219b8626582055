// softmax(q·kᵀ·scale + bias)·v for one head and one tile of queries a block; the scores never leave the chip.
//
// Keys come in tiles, copied in the background. A running maximum of each row's scores scales its weights; when it grows,
// what is summed so far shrinks accordingly. Scores stay unscaled, so that a weight is 2^(c·score - c·maximum): one
// multiply-add and one ex2, with c = scale·log2 e. The bias is divided by the scale before it joins them.
//
// Heads of up to 128 columns: four warps, each with its own query rows and all their output columns in registers.
// Wider heads: eight warps share the rows of the block; each computes scores of some rows and keys, hands its weights to the
// others through shared memory, and sums a slice of the output columns.

#include "exp2.cuh"
#include "mma.cuh"

using X = Element<X_TYPE>;
constexpr int kWidth = HEAD_WIDTH;
constexpr int kQueries = QUERIES;  // of a tile
constexpr int kKeys = KEYS;
constexpr bool kCausal = CAUSAL;
constexpr bool kWide = kWidth > 128;
constexpr int kWarps = kWide ? 8 : 4;
constexpr int kThreads = kWarps * 32;
static_assert(kWidth % 16 == 0 && kQueries % (kWide ? 64 : 16 * kWarps) == 0 && kKeys % 16 == 0, "whole fragments");

// Rows of a segment: its row i lies at i + low before `split` and at i + high from there on, modulo 2^32.
struct Rows {
  u32 count, split, low, high;

  __device__ __forceinline__ u32 operator[](u32 i) const { return i + (i < split ? low : high); }
};

struct Tile {
  u32 first;  // query of the segment
  Rows q, k;
};
static_assert(sizeof(Tile) == 36, "as in src/ops/attention/portable.rs");

struct Params {
  const X *q, *k, *v;
  const float* bias;
  X* y;
  const Tile* tiles;
  u32 q_stride, k_stride, v_stride, y_stride;
  u32 group;         // query heads that share a key head
  float scale_log2;  // scale · log2 e
  float inverse_scale;
  u32 biases;  // of the first rows of keys
};
static_assert(sizeof(Params) == 80, "as in src/ops/attention/portable.rs");

// A tile in shared memory: rows of 16-byte chunks, laid out so that the eight rows of a matrix start in different banks.
constexpr int kChunks = kWidth / 8;
constexpr bool kSwizzled = kChunks % 8 == 0;
constexpr int kPitch = (kSwizzled ? kChunks : kChunks | 1) * 16;
static_assert(kSwizzled || (kPitch / 16) % 2 == 1, "an odd number of chunks visits all banks");

__device__ __forceinline__ u32 at(u32 row, u32 chunk) { return row * kPitch + (kSwizzled ? chunk ^ (row & 7) : chunk) * 16; }

constexpr int kTileBytes = kKeys * kPitch;
constexpr int kQueryBytes = kQueries * kPitch;

// Starts the copy of ROWS rows from row `first` of a segment; zeros past its end, since 0 · NaN would not be 0.
template <int ROWS>
__device__ __forceinline__ void copy_rows(u32 to, const X* from, u32 stride, Rows rows, u32 first) {
  constexpr int kAcross = kChunks % 16 == 0 ? 16 : 2;  // threads side by side in a row
  constexpr int kDown = kThreads / kAcross;
  const u32 end = first + ROWS;
  if (end <= rows.count && (end <= rows.split || first >= rows.split)) {
    const u32 row = threadIdx.x / kAcross, chunk = threadIdx.x % kAcross;
    const X* source = from + (size_t)rows[first + row] * stride + chunk * 8;
#pragma unroll
    for (int i = 0; i < ROWS / kDown; i++, source += (size_t)stride * kDown) {
#pragma unroll
      for (int c = 0; c < kChunks; c += kAcross) cp_async16(to + at(row + i * kDown, c + chunk), source + c * 8);
    }
  } else {
#pragma unroll 1
    for (u32 item = threadIdx.x; item < ROWS * kChunks; item += kThreads) {
      const u32 row = item / kChunks, chunk = item % kChunks;
      const bool valid = first + row < rows.count;
      cp_async16(to + at(row, chunk), from + (size_t)rows[valid ? first + row : 0] * stride + chunk * 8, valid);
    }
  }
}

// Writes rows [begin, begin + ROWS) of the tile of results in shared memory, by `threads` threads of which this is `thread`.
template <int ROWS, int THREADS>
__device__ __forceinline__ void write_rows(const Params& p, const Tile& tile, const u8* from, u32 begin, u32 thread) {
  for (u32 item = thread; item < ROWS * kChunks; item += THREADS) {
    const u32 row = begin + item / kChunks, chunk = item % kChunks, query = tile.first + row;
    if (query >= tile.q.count) continue;
    const auto values = Vec<X, 8>::load(reinterpret_cast<const X*>(from + at(row, chunk)));
    values.store(p.y + (size_t)tile.q[query] * p.y_stride + blockIdx.y * kWidth + chunk * 8);
  }
}

// Keys that query i of the segment sees; all queries of a tile see those that its first one does.
__device__ __forceinline__ u32 visible(const Tile& tile, u32 i) {
  return kCausal ? min(tile.k.count, tile.k.count - tile.q.count + i + 1) : tile.k.count;
}

// The maximum and the sum over the four lanes that hold a row.
__device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float row_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// The score of a key that a query does not see; and a first maximum, above it and a bias of -∞ but below all scores, so that
// weights of rows without a visible key so far are 0 and not NaN.
constexpr float kHidden = -3e38f, kLowest = -1e30f;

// Where lane l points ldmatrix: at rows in the order of A and of a transposed B, or of B.
struct Lane {
  u32 a_row, a_chunk, b_row, b_chunk;

  __device__ __forceinline__ explicit Lane(u32 lane)
      : a_row(lane % 16), a_chunk(lane / 16), b_row(lane / 16 * 8 + lane % 8), b_chunk(lane / 8 % 2) {}
};

// scores [M · 16, N · 8] += q · kᵀ over the head's columns.
template <int M, int N>
__device__ __forceinline__ void multiply_qk(float (&scores)[M][N][4], u32 q, u32 k, const Lane& lane) {
#pragma unroll
  for (int step = 0; step < kWidth / 16; step++) {
    u32 a[M][4];
#pragma unroll
    for (int m = 0; m < M; m++) ldmatrix_x4(a[m], q + at(m * 16 + lane.a_row, step * 2 + lane.a_chunk));
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      u32 b[4];
      ldmatrix_x4(b, k + at(n * 8 + lane.b_row, step * 2 + lane.b_chunk));
#pragma unroll
      for (int m = 0; m < M; m++) {
        mma_m16n8k16<X>(scores[m][n], a[m], b[0], b[1]);
        mma_m16n8k16<X>(scores[m][n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

extern __shared__ uint4 shared[];

#if HEAD_WIDTH <= 128

constexpr bool kKeyBias = KEY_BIAS;

extern "C" __global__ void __launch_bounds__(kThreads, 2) attention(const __grid_constant__ Params p) {
  const Tile& tile = p.tiles[blockIdx.x];
  constexpr int M = kQueries / kWarps / 16, N = kKeys / 8, D = kWidth / 8;
  const u32 warp = threadIdx.x / 32, thread = threadIdx.x % 32, group = thread / 4, pair = thread % 4 * 2;
  const Lane lane(thread);
  u8* const results = reinterpret_cast<u8*>(shared);  // in place of the queries
  float(*const biases)[kKeys] = reinterpret_cast<float(*)[kKeys]>(results + kQueryBytes + 4 * kTileBytes);
  const u32 q = shared_address(shared), stages = q + kQueryBytes;
  const u32 own_rows = warp * M * 16;

  const u32 key_column = blockIdx.y / p.group * kWidth;
  const u32 end = visible(tile, min(tile.first + kQueries, tile.q.count) - 1);
  const u32 seen_by_all = visible(tile, tile.first);

  float next_bias = 0.0f;  // of key threadIdx.x in the tile under way
  auto copy_tile = [&](u32 first) {
    const u32 to = stages + (first / kKeys & 1) * 2 * kTileBytes;
    copy_rows<kKeys>(to, p.k + key_column, p.k_stride, tile.k, first);
    copy_rows<kKeys>(to + kTileBytes, p.v + key_column, p.v_stride, tile.k, first);
    cp_async_commit();
    const u32 key = first + threadIdx.x;
    if (kKeyBias && threadIdx.x < kKeys) {
      const u32 row = tile.k[key];
      next_bias = key < tile.k.count && row < p.biases ? p.bias[row] * p.inverse_scale : 0.0f;
    }
  };
  copy_rows<kQueries>(q, p.q + blockIdx.y * kWidth, p.q_stride, tile.q, tile.first);
  copy_tile(0);

  float o[M][D][4] = {}, top[M][2], sum[M][2] = {};
#pragma unroll
  for (int m = 0; m < M; m++) top[m][0] = top[m][1] = kLowest;

  for (u32 first = 0; first < end; first += kKeys) {
    const u32 stage = first / kKeys & 1;
    const u32 k = stages + stage * 2 * kTileBytes, v = k + kTileBytes;
    cp_async_wait<0>();
    bool biased = false;
    if (kKeyBias) {
      if (threadIdx.x < kKeys) biases[stage][threadIdx.x] = next_bias;
      biased = __syncthreads_or(next_bias != 0.0f);
    } else {
      __syncthreads();
    }
    // Everybody has left the tile before this one: its place is free.
    if (first + kKeys < end) copy_tile(first + kKeys);

    float s[M][N][4] = {};
    multiply_qk(s, q + own_rows * kPitch, k, lane);
    if (biased) {
#pragma unroll
      for (int n = 0; n < N; n++) {
        const float2 bias = *reinterpret_cast<const float2*>(&biases[stage][n * 8 + pair]);
#pragma unroll
        for (int m = 0; m < M; m++) {
          s[m][n][0] += bias.x, s[m][n][1] += bias.y;
          s[m][n][2] += bias.x, s[m][n][3] += bias.y;
        }
      }
    }
    if (first + kKeys > seen_by_all) {
#pragma unroll
      for (int m = 0; m < M; m++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const u32 limit = visible(tile, tile.first + own_rows + m * 16 + group + i / 2 * 8);
          const int room = (int)(limit - first - pair);
#pragma unroll
          for (int n = 0; n < N; n++) {
            if (n * 8 + i % 2 >= room) s[m][n][i] = kHidden;
          }
        }
      }
    }

    // A maximum may stay behind by a factor of 2^8 in the weights, which is exact; so most tiles rescale nothing.
    float tile_top[M][2];
    bool grown = false;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float x = kHidden;
#pragma unroll
        for (int n = 0; n < N; n++) x = fmaxf(x, fmaxf(s[m][n][half * 2], s[m][n][half * 2 + 1]));
        tile_top[m][half] = row_max(x);
        grown |= (tile_top[m][half] - top[m][half]) * p.scale_log2 > 8.0f;
      }
    }
    if (__any_sync(0xffffffffu, grown)) {
#pragma unroll
      for (int m = 0; m < M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const float x = fmaxf(top[m][half], tile_top[m][half]);
          const float factor = exp2_approx((top[m][half] - x) * p.scale_log2);
          top[m][half] = x;
          sum[m][half] *= factor;
#pragma unroll
          for (int d = 0; d < D; d++) o[m][d][half * 2] *= factor, o[m][d][half * 2 + 1] *= factor;
        }
      }
    }

    // Weights of 16 keys at a time, so that the exponentials of some run beside the products of others.
#pragma unroll
    for (int step = 0; step < kKeys / 16; step++) {
      u32 a[M][4];
#pragma unroll
      for (int m = 0; m < M; m++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int half = i % 2, n = step * 2 + i / 2;
          const float shift = top[m][half] * p.scale_log2;
          const float low = exp2_approx(s[m][n][half * 2] * p.scale_log2 - shift);
          const float high = exp2_approx(s[m][n][half * 2 + 1] * p.scale_log2 - shift);
          sum[m][half] += low + high;
          a[m][i] = pack2<X>(low, high);
        }
      }
#pragma unroll
      for (int d = 0; d < D; d += 2) {
        u32 b[4];
        ldmatrix_x4_trans(b, v + at(step * 16 + lane.a_row, d + lane.a_chunk));
#pragma unroll
        for (int m = 0; m < M; m++) {
          mma_m16n8k16<X>(o[m][d], a[m], b[0], b[1]);
          mma_m16n8k16<X>(o[m][d + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  // Through shared memory, so that rows are written in whole sectors; a warp's results take the place of its own queries.
  __syncwarp();
#pragma unroll
  for (int m = 0; m < M; m++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float total = row_sum(sum[m][half]), inverse = total > 0.0f ? 1.0f / total : 0.0f;
      const u32 row = own_rows + m * 16 + half * 8 + group;
#pragma unroll
      for (int d = 0; d < D; d++) {
        *reinterpret_cast<u32*>(results + at(row, d) + pair * 2) =
            pack2<X>(o[m][d][half * 2] * inverse, o[m][d][half * 2 + 1] * inverse);
      }
    }
  }
  __syncwarp();
  write_rows<M * 16, 32>(p, tile, results, own_rows, thread);
}

#else

static_assert(!CAUSAL && !KEY_BIAS, "the autoencoder needs neither");

extern "C" __global__ void __launch_bounds__(kThreads, 1) attention(const __grid_constant__ Params p) {
  const Tile& tile = p.tiles[blockIdx.x];
  constexpr int kSlice = kWidth / kWarps;                      // output columns of a warp
  constexpr int M = kQueries / 16, D = kSlice / 8;             // of the output slice
  constexpr int kParts = kWarps / M < kKeys / 16 ? kWarps / M : kKeys / 16;  // warps on the same rows
  constexpr int kPart = kKeys / kParts;  // keys of each; further warps have none
  constexpr int N = kPart / 8;
  constexpr int kWeightPitch = kKeys * 2 + (kKeys > 16 ? 16 : 0);  // the smallest tile lets banks collide to fit 99 KB
  static_assert(kPart % 16 == 0 && D % 2 == 0, "whole fragments");
  const u32 warp = threadIdx.x / 32, thread = threadIdx.x % 32, group = thread / 4, pair = thread % 4 * 2;
  const u32 own_rows = warp % M * 16, part = warp / M;
  const bool scoring = part < kParts;
  const Lane lane(thread);
  u8* const results = reinterpret_cast<u8*>(shared);  // in place of the queries
  u8* const weights = results + kQueryBytes + 2 * kTileBytes;
  float(*const partial)[kQueries] = reinterpret_cast<float(*)[kQueries]>(weights + kQueries * kWeightPitch);
  float* const factors = partial[kParts];
  const u32 q = shared_address(shared), k = q + kQueryBytes, v = k + kTileBytes;

  const X* const keys = p.k + blockIdx.y / p.group * kWidth;
  const X* const values = p.v + blockIdx.y / p.group * kWidth;
  copy_rows<kQueries>(q, p.q + blockIdx.y * kWidth, p.q_stride, tile.q, tile.first);
  copy_rows<kKeys>(k, keys, p.k_stride, tile.k, 0);
  cp_async_commit();

  float o[M][D][4] = {}, top[2] = {kLowest, kLowest}, sum[2] = {};
  for (u32 first = 0; first < tile.k.count; first += kKeys) {
    cp_async_wait<0>();
    __syncthreads();
    copy_rows<kKeys>(v, values, p.v_stride, tile.k, first);
    cp_async_commit();

    float s[1][N][4] = {};
    if (scoring) multiply_qk(s, q + own_rows * kPitch, k + part * kPart * kPitch, lane);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float x = kHidden;
#pragma unroll
      for (int n = 0; n < N; n++) {
#pragma unroll
        for (int i = half * 2; i < half * 2 + 2; i++) {
          if (first + part * kPart + n * 8 + pair + i % 2 >= tile.k.count) s[0][n][i] = kHidden;
          x = fmaxf(x, s[0][n][i]);
        }
      }
      x = row_max(x);
      if (scoring && pair == 0) partial[part][own_rows + half * 8 + group] = x;
    }
    __syncthreads();
    if (first + kKeys < tile.k.count) copy_rows<kKeys>(k, keys, p.k_stride, tile.k, first + kKeys);
    cp_async_commit();

#pragma unroll
    for (int half = 0; half < 2; half++) {
      const u32 row = own_rows + half * 8 + group;
      float x = top[half];
#pragma unroll
      for (int i = 0; i < kParts; i++) x = fmaxf(x, partial[i][row]);
      const float factor = exp2_approx((top[half] - x) * p.scale_log2);
      if (part == 0 && pair == 0) factors[row] = factor;
      top[half] = x;
      sum[half] *= factor;
#pragma unroll
      for (int n = 0; n < N; n++) {
        const float low = exp2_approx(s[0][n][half * 2] * p.scale_log2 - x * p.scale_log2);
        const float high = exp2_approx(s[0][n][half * 2 + 1] * p.scale_log2 - x * p.scale_log2);
        sum[half] += low + high;
        u8* const to = weights + row * kWeightPitch + (part * kPart + n * 8 + pair) * 2;
        if (scoring) *reinterpret_cast<u32*>(to) = pack2<X>(low, high);
      }
    }
    cp_async_wait<1>();
    __syncthreads();

#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const float factor = factors[m * 16 + half * 8 + group];
#pragma unroll
        for (int d = 0; d < D; d++) o[m][d][half * 2] *= factor, o[m][d][half * 2 + 1] *= factor;
      }
    }
#pragma unroll
    for (int step = 0; step < kKeys / 16; step++) {
      u32 a[M][4];
#pragma unroll
      for (int m = 0; m < M; m++) {
        ldmatrix_x4(a[m], shared_address(weights) + (m * 16 + lane.a_row) * kWeightPitch + (step * 2 + lane.a_chunk) * 16);
      }
#pragma unroll
      for (int d = 0; d < D; d += 2) {
        u32 b[4];
        ldmatrix_x4_trans(b, v + at(step * 16 + lane.a_row, warp * D + d + lane.a_chunk));
#pragma unroll
        for (int m = 0; m < M; m++) {
          mma_m16n8k16<X>(o[m][d], a[m], b[0], b[1]);
          mma_m16n8k16<X>(o[m][d + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

#pragma unroll
  for (int half = 0; half < 2; half++) {
    const float total = row_sum(sum[half]);
    if (scoring && pair == 0) partial[part][own_rows + half * 8 + group] = total;
  }
  __syncthreads();
#pragma unroll
  for (int m = 0; m < M; m++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const u32 row = m * 16 + half * 8 + group;
      float total = 0.0f;
#pragma unroll
      for (int i = 0; i < kParts; i++) total += partial[i][row];
      const float inverse = total > 0.0f ? 1.0f / total : 0.0f;
#pragma unroll
      for (int d = 0; d < D; d++) {
        *reinterpret_cast<u32*>(results + at(row, warp * D + d) + pair * 2) =
            pack2<X>(o[m][d][half * 2] * inverse, o[m][d][half * 2 + 1] * inverse);
      }
    }
  }
  __syncthreads();
  write_rows<kQueries, kThreads>(p, tile, results, 0, threadIdx.x);
}

#endif
