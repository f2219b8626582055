// softmax(q·kᵀ·scale + bias)·v for heads of 128 columns in bf16, on sm_90a: what attention.cu computes, by the instructions that
// Hopper brought.
//
// A block has three warpgroups. One produces: a thread has TMA bring tiles of keys and values into rings of buffers. Two
// consume: each holds 64 query rows in registers, and starts the scores of a tile and the weighted sum of the tile before
// together, so that the sum runs while it looks for maxima. One's exponentials run beside the other's products. Blocks stay and
// take tile after tile of queries.
//
// Scores stay unscaled, so that a weight is 2^(c·score - c·maximum) with c = scale·log2 e; the bias is divided by the scale
// before it joins them. Keys past the end of a range have a bias of -∞, and zeros for values, since 0 · NaN would not be 0.
// Tiles that may have biases come first, in a loop of their own; the loop over all others knows nothing of biases.

#include "exp2.cuh"
#include "hopper.cuh"

constexpr int kWidth = 128, kQueries = 128, kKeys = 128, kStages = 2;
constexpr int kConsumers = 2, kRows = kQueries / kConsumers;
constexpr int kThreads = 128 * (1 + kConsumers), kConsumerWarps = 4 * kConsumers;

// Queries, keys and values of a range of rows, in boxes of a panel's columns and a tile's rows.
struct Maps {
  TensorMap q, k, v;
};

// Neighbouring rows of a segment, as queries and as keys.
struct Range {
  u32 q_first, q_count, k_first, k_count;
};

// Of two segments, of two ranges each; what is not there has no rows. A segment's second range has rows if the segment has.
struct Params {
  Maps maps[2][2];
  Range ranges[2][2];
  const float* bias;
  bf16* y;
  u32 y_stride;
  u32 heads;
  u32 group;         // query heads that share a key head
  float scale_log2;  // scale · log2 e
  float inverse_scale;
  u32 biases;  // of the first rows of keys
  u32 padding[6];
};
static_assert(sizeof(Params) == 1664, "as in src/ops/attention/hopper.rs");

constexpr u32 kPanelColumns = 64;
constexpr u32 kQueryPanel = kQueries * 128, kKeyPanel = kKeys * 128;  // bytes

struct Shared {
  u8 q[2 * kQueryPanel];
  u8 k[kStages][2 * kKeyPanel];
  u8 v[kStages][2 * kKeyPanel];
  u64 q_full, q_empty, k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
};
static_assert(sizeof(Shared) == 163920, "as in src/ops/attention/hopper.rs");

// The bias of a key that nobody sees; and a first maximum, above it but below all scores, so that weights of rows without a
// visible key so far are 0 and not NaN.
constexpr float kHidden = -3e38f, kLowest = -1e30f;

extern __shared__ __align__(1024) u8 shared_bytes[];

// The biases, divided by the scale, of all rows that have any, and the 0 of the others.
__device__ __forceinline__ float* shared_biases() { return reinterpret_cast<float*>(shared_bytes + sizeof(Shared)); }

__device__ __forceinline__ u32 tiles_of(u32 count, u32 size) { return (count + size - 1) / size; }

// The queries of one head that a block takes at a time, by number: heads of the first segment, then of the second; tiles of
// a head follow each other, so that blocks at work share keys and values in the cache.
struct Work {
  u32 segment, range, head, first;

  __device__ __forceinline__ static u32 tiles(const Params& p, u32 segment) {
    return tiles_of(p.ranges[segment][0].q_count, kQueries) + tiles_of(p.ranges[segment][1].q_count, kQueries);
  }

  __device__ __forceinline__ Work(const Params& p, u32 number) {
    const u32 of_first = p.heads * tiles(p, 0);
    segment = number >= of_first;
    if (segment) number -= of_first;
    const u32 each = tiles(p, segment), tile = number % each, in_first = tiles_of(p.ranges[segment][0].q_count, kQueries);
    head = number / each;
    range = tile >= in_first;
    first = (range ? tile - in_first : tile) * kQueries;
  }
};

// A tile of keys by number: the last of the second range, which may end within; those of the first range; the others of the
// second. So all that may have biases other than 0 come first.
struct Keys {
  u32 range, first;

  __device__ __forceinline__ Keys(const Range (&ranges)[2], u32 number) {
    const u32 of_first = tiles_of(ranges[0].k_count, kKeys), of_second = tiles_of(ranges[1].k_count, kKeys);
    range = number == 0 || number > of_first;
    first = (number == 0 ? of_second - 1 : range ? number - 1 - of_first : number - 1) * kKeys;
  }
  __device__ __forceinline__ static u32 tiles(const Range (&ranges)[2]) {
    return tiles_of(ranges[0].k_count, kKeys) + tiles_of(ranges[1].k_count, kKeys);
  }
  // From this number on no tile has biases.
  __device__ __forceinline__ static u32 biased(const Params& p, const Range (&ranges)[2]) {
    const u32 rows = p.biases > ranges[1].k_first ? p.biases - ranges[1].k_first : 0;
    return min(1 + tiles_of(ranges[0].k_count, kKeys) + tiles_of(rows, kKeys), tiles(ranges));
  }
};

__device__ __forceinline__ void load_tile(u32 to, u32 panel_bytes, const TensorMap& map, u32 head, u32 row, u64& barrier) {
  barrier_expect(barrier, 2 * panel_bytes);
  tma_load(to, map, head * kWidth, row, barrier);
  tma_load(to + panel_bytes, map, head * kWidth + kPanelColumns, row, barrier);
}

// Brings the tiles, in the order in which they are read: k0, k1, v0, k2, v1, ...
__device__ __forceinline__ void produce_tiles(const Params& p, Shared& s, u32 total) {
  Ring<kStages> k, v;
  u32 q_parity = 1;
  for (u32 number = blockIdx.x; number < total; number += gridDim.x) {
    const Work work(p, number);
    const Range(&ranges)[2] = p.ranges[work.segment];
    const Maps(&maps)[2] = p.maps[work.segment];
    const u32 key_head = work.head / p.group, tiles = Keys::tiles(ranges);
    barrier_wait(s.q_empty, q_parity);
    q_parity ^= 1;
    load_tile(shared_address(s.q), kQueryPanel, maps[work.range].q, work.head, work.first, s.q_full);
#pragma unroll 1
    for (u32 i = 0; i <= tiles; i++) {
      if (i < tiles) {
        const Keys keys(ranges, i);
        barrier_wait(s.k_empty[k.at], k.parity ^ 1);
        load_tile(shared_address(s.k[k.at]), kKeyPanel, maps[keys.range].k, key_head, keys.first, s.k_full[k.at]);
        k.next();
      }
      if (i > 0) {
        const Keys keys(ranges, i - 1);
        barrier_wait(s.v_empty[v.at], v.parity ^ 1);
        load_tile(shared_address(s.v[v.at]), kKeyPanel, maps[keys.range].v, key_head, keys.first, s.v_full[v.at]);
        v.next();
      }
    }
  }
}

// 64 query rows: a thread holds values of two of them, 8 apart, as do the three other lanes of its quad.
struct Consumer {
  const Params& p;
  Shared& s;
  u32 number;  // of the consumer
  Ring<kStages> k, v;
  u32 q[kWidth / 16][4];
  float o[64], top[2], sum[2], factor[2];

  __device__ __forceinline__ Consumer(const Params& p, Shared& s, u32 number) : p(p), s(s), number(number) {}

  // Says that this warp is done with a buffer.
  __device__ __forceinline__ static void release(u64& barrier) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(barrier);
  }

  __device__ __forceinline__ void load_queries(u32 parity) {
    const u32 lane = threadIdx.x % 32, row = number * kRows + threadIdx.x % 128 / 32 * 16 + lane % 16;
    barrier_wait(s.q_full, parity);
#pragma unroll
    for (int step = 0; step < kWidth / 16; step++) {
      const u32 panel = step / 4, chunk = step % 4 * 2 + lane / 16;
      ldmatrix_x4(q[step], shared_address(s.q) + panel * kQueryPanel + row * 128 + (chunk ^ row % 8) * 16);
    }
    release(s.q_empty);
  }

  // Starts scores = q·kᵀ.
  __device__ __forceinline__ void multiply_qk(float (&scores)[64]) const {
    const u64 b = wgmma_operand(shared_address(s.k[k.at]), 0);
    wgmma_begin();
#pragma unroll
    for (int step = 0; step < kWidth / 16; step++) {
      wgmma_abt<bf16>(scores, q[step], b + (step / 4 * kKeyPanel + step % 4 * 32) / 16, step > 0);
    }
    wgmma_commit();
  }

  // Starts o += weights·v.
  __device__ __forceinline__ void multiply_pv(const u32 (&weights)[kKeys / 16][4]) {
    const u64 b = wgmma_operand(shared_address(s.v[v.at]), kKeyPanel);
    wgmma_begin();
#pragma unroll
    for (int step = 0; step < kKeys / 16; step++) wgmma_ab(o, weights[step], b + step * 16 * 128 / 16);
    wgmma_commit();
  }

  // Waits for the scores but not for a sum that was started after them, and frees the keys.
  template <int PENDING>
  __device__ __forceinline__ void finish_qk(float (&scores)[64]) {
    wgmma_wait<PENDING>();
    pin(scores);
    release(s.k_empty[k.at]);
    k.next();
  }

  __device__ __forceinline__ void add_biases(float (&scores)[64], const Range (&ranges)[2], u32 number) const {
    const Keys keys(ranges, number);
    const Range& range = ranges[keys.range];
#pragma unroll
    for (int i = 0; i < 64; i++) {
      const u32 key = keys.first + i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2;
      const float bias = shared_biases()[min(range.k_first + key, p.biases)];
      scores[i] += key < range.k_count ? bias : kHidden;
    }
  }

  // Waits for the sum and frees the values.
  __device__ __forceinline__ void finish_pv() {
    wgmma_wait<0>();
    pin(o);
    release(s.v_empty[v.at]);
    v.next();
  }

  // Turns scores into weights; `factor` is what earlier sums shrink by. The maximum is exact in every tile: with one that may
  // stay behind, the largest weights would no longer be exactly 1, and a peaked row's error a sixth larger.
  __device__ __forceinline__ void soften(float (&scores)[64]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float x = top[half];
#pragma unroll
      for (int n = 0; n < kKeys / 8; n++) x = fmaxf(x, fmaxf(scores[n * 4 + half * 2], scores[n * 4 + half * 2 + 1]));
      x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
      x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
      const float shift = x * p.scale_log2;
      factor[half] = exp2_approx(top[half] * p.scale_log2 - shift);
      top[half] = x;
      sum[half] *= factor[half];
#pragma unroll
      for (int n = 0; n < kKeys / 8; n++) {
#pragma unroll
        for (int i = n * 4 + half * 2; i < n * 4 + half * 2 + 2; i++) {
          scores[i] = exp2_approx(scores[i] * p.scale_log2 - shift);
          sum[half] += scores[i];
        }
      }
    }
  }

  __device__ __forceinline__ void pack(u32 (&weights)[kKeys / 16][4], const float (&scores)[64]) const {
#pragma unroll
    for (int i = 0; i < kKeys / 4; i++) weights[i / 4][i % 4] = pack2<bf16>(scores[2 * i], scores[2 * i + 1]);
  }

  // The products of a tile of keys and of the values before it.
  template <bool BIASED>
  __device__ __forceinline__ void step(u32 (&weights)[kKeys / 16][4], const Range (&ranges)[2], u32 number) {
    float scores[64];
    barrier_wait(s.k_full[k.at], k.parity);
    multiply_qk(scores);
    barrier_wait(s.v_full[v.at], v.parity);
    multiply_pv(weights);
    finish_qk<1>(scores);
    if (BIASED) add_biases(scores, ranges, number);
    // The compiler puts the exponentials behind the end of the sum; forced before it, they made the kernel 3 to 5 % slower.
    soften(scores);
    finish_pv();
    pack(weights, scores);
#pragma unroll
    for (int i = 0; i < 64; i++) o[i] *= factor[i / 2 % 2];
  }

  // o = sum of weights·v over all keys, not yet divided by `sum`.
  __device__ __forceinline__ void consume(const Range (&ranges)[2], u32 q_parity) {
    const u32 tiles = Keys::tiles(ranges), biased = Keys::biased(p, ranges);
    u32 weights[kKeys / 16][4];
    top[0] = top[1] = kLowest;
    sum[0] = sum[1] = 0.0f;
#pragma unroll
    for (int i = 0; i < 64; i++) o[i] = 0.0f;
    load_queries(q_parity);
    {
      float scores[64];
      barrier_wait(s.k_full[k.at], k.parity);
      multiply_qk(scores);
      finish_qk<0>(scores);
      add_biases(scores, ranges, 0);
      soften(scores);
      pack(weights, scores);
    }
#pragma unroll 1
    for (u32 i = 1; i < biased; i++) step<true>(weights, ranges, i);
#pragma unroll 1
    for (u32 i = biased; i < tiles; i++) step<false>(weights, ranges, i);
    barrier_wait(s.v_full[v.at], v.parity);
    multiply_pv(weights);
    finish_pv();
  }

  // Divides by the sums and writes the rows: the four lanes of a quad swap words, so that each has 16 neighbouring bytes.
  __device__ __forceinline__ void write(const Range& range, const Work& work) {
    const u32 lane = threadIdx.x % 32, quad = lane % 4;
    const u32 row = work.first + number * kRows + threadIdx.x % 128 / 32 * 16 + lane / 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float total = sum[half];
      total += __shfl_xor_sync(0xffffffffu, total, 1);
      total += __shfl_xor_sync(0xffffffffu, total, 2);
      const float inverse = total > 0.0f ? 1.0f / total : 0.0f;
      bf16* const to = p.y + (size_t)(range.q_first + row + half * 8) * p.y_stride + work.head * kWidth + quad * 8;
#pragma unroll
      for (int n = 0; n < kWidth / 8; n += 4) {
        u32 word[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int at = (n + i) * 4 + half * 2;
          word[i] = pack2<bf16>(o[at] * inverse, o[at + 1] * inverse);
        }
        transpose(word, quad);
        if (row + half * 8 < range.q_count) store_words(to + n * 8, word);
      }
    }
  }
};

extern "C" __global__ void __launch_bounds__(kThreads, 1) attention(const __grid_constant__ Params p) {
  Shared& s = *reinterpret_cast<Shared*>(shared_bytes);
  if (threadIdx.x == 0) {
    barrier_init(s.q_full, 1);
    barrier_init(s.q_empty, kConsumerWarps);
    for (int i = 0; i < kStages; i++) {
      barrier_init(s.k_full[i], 1);
      barrier_init(s.v_full[i], 1);
      barrier_init(s.k_empty[i], kConsumerWarps);
      barrier_init(s.v_empty[i], kConsumerWarps);
    }
    barrier_init_fence();
  }
  for (u32 i = threadIdx.x; i <= p.biases; i += kThreads) {
    shared_biases()[i] = i < p.biases ? p.bias[i] * p.inverse_scale : 0.0f;
  }
  __syncthreads();
  const u32 total = p.heads * (Work::tiles(p, 0) + Work::tiles(p, 1));
  if (threadIdx.x < 128) {
    give_registers<24>();
    if (threadIdx.x == 0) produce_tiles(p, s, total);
  } else {
    take_registers<240>();
    Consumer consumer(p, s, threadIdx.x / 128 - 1);
    u32 parity = 0;
    for (u32 number = blockIdx.x; number < total; number += gridDim.x, parity ^= 1) {
      const Work work(p, number);
      consumer.consume(p.ranges[work.segment], parity);
      consumer.write(p.ranges[work.segment][work.range], work);
    }
  }
}
