// y = f(x·wᵀ): x [M, K], w [N, K], y [M, N] on sm_90a, of bf16, e4m3 or signed eight-bit integers; y is bf16.
//
// Eight-bit operands have a scale for each row of x and each row of w, so that a sum s stands for s · x_scale[m] · w_scale[n].
// f adds a bias and ends in one of four ways (ENDING): y as it is; GELU of it, by its tanh form; a residual stream plus a gate
// times y, which is rounded before the gate as an op of its own would; or GELU and then integers for the next product.
// Sums of integers are exact: every order of them gives the same bytes. Sums of e4m3 keep about 14 bits where the tensor cores
// add them up; PROMOTE adds those of each 128 columns in f32 instead.
//
// A block has three warpgroups. One produces: a thread has TMA bring 128 bytes of every row of a tile (a slice). Two consume,
// each with half of the tile's rows. Blocks stay and take tile after tile; while one consumer writes, the other multiplies, and
// the producer is ahead by up to STAGES slices. Two blocks may form a cluster: their tiles lie below each other, each brings
// half of the slice of w that both need, and a slice is replaced when the consumers of both are done with it.
//
// A warp writes 16 rows by 64 columns at a time (a panel) and needs no other warp for it: fragments go to shared memory, where
// 16-byte pieces of rows are swapped as TMA swaps them, and leave as whole rows of 128 bytes.
//
// The integers of a row need its largest magnitude, which no tile knows. So bf16 rows are written first, each warp adds its
// maxima to `most`, and three warps that would idle turn rows into integers, out of the L2 cache, as soon as all tiles of a
// group of rows are done: beside the products of the group after it.

#include "branches.cuh"
#include "hopper.cuh"
#include "quantize.cuh"

enum Ending { kPlain, kGelu, kResidual, kGeluInt8 };

constexpr Operand kOperand = (Operand)X_TYPE;
constexpr Ending kEnding = (Ending)ENDING;
constexpr bool kPromote = PROMOTE, kRoundProduct = ROUND_PRODUCT;
constexpr u32 kTileM = TILE_M, kTileN = TILE_N, kStages = STAGES, kCluster = CLUSTER;
constexpr u32 kGroup = GROUP / kCluster;  // tiles below each other, of a cluster, that are computed at a time
constexpr u32 kSliceBytes = 128, kSlice = kSliceBytes / (kOperand == kBf16 ? 2 : 1);
constexpr u32 kConsumers = 2, kThreads = 128 * (1 + kConsumers), kConsumerWarps = 4 * kConsumers;
constexpr u32 kWaves = kTileM / (64 * kConsumers);  // products of 64 rows that a consumer has side by side
constexpr u32 kPanel = 64, kPanelRows = 16, kPanels = kTileN / kPanel;
static_assert(!kPromote || (kOperand == kE4m3 && kTileN == 128), "sums beside sums need room");

// What becomes of column n's sums.
struct Column {
  float scale, bias;
};

struct Params {
  TensorMap x;  // in boxes of a slice and a tile's rows
  TensorMap w;  // in boxes of a slice and a block's share of a tile's rows
  TensorMap y;  // in boxes of a panel
  const float* x_scales;
  const Column* columns;
  const bf16* residual;
  const bf16* gate;
  bf16* out;  // y, where TMA does not write it; it may be `residual`
  // Of kGeluInt8: rows whose last columns are y's, as integers with a scale each.
  u8* integers;
  float* scales;
  u32* most;  // of each row, as the bits of an f32; at first of its columns before y's
  u32* done;  // warps that wrote their part of a tile, by group; zeros at first
  u32 rows;
  u32 slices;   // of x's columns, past whose end zeros come; more than kStages
  u32 tiles_m;  // of a cluster
  u32 tiles_n;
  u32 residual_stride;
  u32 gate_stride;
  u32 out_stride;
  u32 row_columns;  // of `integers`
  u32 integers_stride;
  BranchRows branches;  // which row of `gate` a row has
  u32 columns_count;    // of y; even
  u32 padding[6];
};
static_assert(sizeof(Params) == 576, "as in src/ops/linear_int8/hopper.rs");

struct Shared {
  u8 x[kStages][kTileM * kSliceBytes];
  u8 w[kStages][kTileN * kSliceBytes];
  u8 panels[kConsumerWarps][2][kPanelRows * kPanel * 2];
  Column columns[kTileN];
  u64 full[kStages], empty[kStages];
};
static_assert(sizeof(Shared) == SHARED_BYTES, "as in src/ops/linear_int8/hopper.rs");

extern __shared__ __align__(1024) u8 shared_bytes[];

// A block's tile, by the number of its cluster's: those of kGroup follow each other down, then from left to right, so that
// blocks at work share rows of both operands in the cache.
struct Work {
  u32 group, row, column;

  __device__ __forceinline__ Work(const Params& p, u32 number) {
    const u32 of_group = kGroup * p.tiles_n, within = number % of_group;
    group = number / of_group;
    const u32 first = group * kGroup;
    const u32 rows = min(kGroup, p.tiles_m - first);
    row = (first + within % rows) * kCluster * kTileM + (kCluster > 1 ? cluster_rank() * kTileM : 0);
    column = within / rows * kTileN;
  }
};

__device__ __forceinline__ void produce(const Params& p, Shared& s) {
  constexpr u32 kShare = kTileN / kCluster;  // rows of w that a block brings
  const u32 first = kCluster > 1 ? cluster_rank() * kShare : 0, total = p.tiles_m * p.tiles_n;
  Ring<kStages> ring;
#pragma unroll 1
  for (u32 number = blockIdx.x / kCluster; number < total; number += gridDim.x / kCluster) {
    const Work work(p, number);
#pragma unroll 1
    for (u32 slice = 0; slice < p.slices; slice++) {
      u64& full = s.full[ring.at];
      barrier_wait(s.empty[ring.at], ring.parity ^ 1);
      // The columns of the tile before are out of use as soon as all consumers have left this tile's first slice.
      const u32 columns = slice == kStages ? min(kTileN, p.columns_count - work.column) * (u32)sizeof(Column) : 0;
      barrier_expect(full, (kTileM + kTileN) * kSliceBytes + columns);
      tma_load(shared_address(s.x[ring.at]), p.x, slice * kSlice, work.row, full);
      const u32 to = shared_address(s.w[ring.at]) + first * kSliceBytes;
      if (kCluster > 1) {
        tma_load(to, p.w, slice * kSlice, work.column + first, full, (u16)((1 << kCluster) - 1));
      } else {
        tma_load(to, p.w, slice * kSlice, work.column, full);
      }
      if (columns > 0) bulk_load(shared_address(s.columns), p.columns + work.column, columns, full);
      ring.next();
    }
  }
}

using Sum = Summed<kOperand>;
constexpr u32 kSums = kTileN / 2;  // of a thread, a wave

// tanh's error is below 2⁻¹⁰·⁹.
__device__ __forceinline__ float gelu_tanh(float x) {
  float tanh;
  asm("tanh.approx.f32 %0, %1;" : "=f"(tanh) : "f"(0.797884561f * (x + 0.044715f * x * x * x)));
  return 0.5f * x * (1.0f + tanh);
}

struct Consumer {
  const Params& p;
  Shared& s;
  u32 number, warp, lane;  // of the consumer; of its warp; of the thread in it
  Ring<kStages> ring;
  Sum sums[kWaves][kSums];
  float x_scales[kWaves][2];

  __device__ __forceinline__ Consumer(const Params& p, Shared& s, u32 number)
      : p(p), s(s), number(number), warp(threadIdx.x % 128 / 32), lane(threadIdx.x % 32) {}

  // The first of 16 rows that this warp has of a wave, within the tile.
  __device__ __forceinline__ u32 first_row(u32 wave) const { return (number * kWaves + wave) * 64 + warp * 16; }

  // Says, to both blocks of a cluster, that this warp is done with a stage.
  __device__ __forceinline__ void release(u32 stage) const {
    __syncwarp();
    if (kCluster == 1) {
      if (lane == 0) barrier_arrive(s.empty[stage]);
    } else if (lane < kCluster) {
      barrier_arrive_at(s.empty[stage], lane);
    }
  }

  __device__ __forceinline__ u64 operand_x(u32 wave) const {
    return wgmma_operand(shared_address(s.x[ring.at]) + (number * kWaves + wave) * 64 * kSliceBytes, 0);
  }
  __device__ __forceinline__ u64 operand_w() const { return wgmma_operand(shared_address(s.w[ring.at]), 0); }

  // Starts the products of a slice.
  __device__ __forceinline__ void start(Sum (&d)[kSums], u32 wave, bool add) const {
    const u64 x = operand_x(wave), w = operand_w();
#pragma unroll
    for (u32 step = 0; step < kSliceBytes / 32; step++) wgmma_abt<kOperand>(d, x + step * 2, w + step * 2, add || step > 0);
  }

  __device__ __forceinline__ void consume() {
    u32 before = 0;
#pragma unroll 1
    for (u32 slice = 0; slice < p.slices; slice++) {
      barrier_wait(s.full[ring.at], ring.parity);
      wgmma_begin();
#pragma unroll
      for (u32 wave = 0; wave < kWaves; wave++) start(sums[wave], wave, slice > 0);
      wgmma_commit();
      wgmma_wait<1>();
      if (slice > 0) release(before);
      before = ring.at;
      ring.next();
    }
    wgmma_wait<0>();
#pragma unroll
    for (u32 wave = 0; wave < kWaves; wave++) pin(sums[wave]);
    release(before);
  }

  // The same, each slice summed by itself. The other consumer's products run meanwhile.
  __device__ __forceinline__ void consume_promoting() {
#pragma unroll
    for (u32 i = 0; i < kWaves * kSums; i++) sums[i / kSums][i % kSums] = 0;
#pragma unroll 1
    for (u32 slice = 0; slice < p.slices; slice++) {
      Sum part[kSums];
      barrier_wait(s.full[ring.at], ring.parity);
#pragma unroll
      for (u32 wave = 0; wave < kWaves; wave++) {
        wgmma_begin();
        start(part, wave, false);
        wgmma_commit();
        wgmma_wait<0>();
        pin(part);
        if (wave + 1 == kWaves) release(ring.at);
#pragma unroll
        for (u32 i = 0; i < kSums; i++) sums[wave][i] += part[i];
      }
      ring.next();
    }
  }

  // Scales of the rows, early: at the end of a tile they would be waited for.
  __device__ __forceinline__ void load_scales(const Work& work) {
#pragma unroll
    for (u32 i = 0; i < 2 * kWaves; i++) {
      const u32 row = work.row + first_row(i / 2) + lane / 4 + i % 2 * 8;
      x_scales[i / 2][i % 2] = kOperand == kBf16 ? 1.0f : p.x_scales[min(row, p.rows - 1)];
    }
  }

  __device__ __forceinline__ float end(Sum sum, float x_scale, float w_scale, float bias) const {
    const float y = fmaf((float)sum, x_scale * w_scale, bias);
    return kEnding == kGelu || kEnding == kGeluInt8 ? gelu_tanh(y) : y;
  }

  // A panel to shared memory, as rows of 128 bytes; `most` gets the largest magnitudes, of both halves of a word.
  __device__ __forceinline__ void stage(u32 to, u32 wave, u32 panel, u32 (&most)[2]) const {
#pragma unroll
    for (u32 chunk = 0; chunk < 8; chunk += 2) {  // of 8 columns
      u32 word[4];
#pragma unroll
      for (u32 i = 0; i < 2; i++) {
        const u32 eight = panel * 8 + chunk + i;
        const float4 columns = *reinterpret_cast<const float4*>(&s.columns[eight * 8 + lane % 4 * 2]);
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
          const float scale = x_scales[wave][half];
          const Sum* const pair = &sums[wave][eight * 4 + half * 2];
          word[i * 2 + half] =
              pack2<bf16>(end(pair[0], scale, columns.x, columns.y), end(pair[1], scale, columns.z, columns.w));
          if (kEnding == kGeluInt8) most[half] = __vmaxu2(most[half], word[i * 2 + half] & 0x7fff7fff);
        }
      }
      stmatrix_x4(to + lane % 16 * 128 + ((chunk + lane / 16) ^ lane % 8) * 16, word);
    }
  }

  __device__ __forceinline__ void write(const Work& work) const {
    u32 most[2];
#pragma unroll
    for (u32 i = 0; i < kWaves * kPanels; i++) {
      const u32 wave = i / kPanels, panel = i % kPanels;
      const u32 from = shared_address(s.panels[number * 4 + warp][i % 2]);
      if (lane == 0) tma_store_wait<1>();
      __syncwarp();
      stage(from, wave, panel, most);
      async_fence();
      __syncwarp();
      if (lane == 0) tma_store(p.y, work.column + panel * kPanel, work.row + first_row(wave), from);
    }
  }

  // Adds the gated panels to the residual stream: a lane has 8 columns of every fourth row.
  __device__ __forceinline__ void write_residual(const Work& work) const {
    using Eight = Vec<bf16, 8>;
    constexpr u32 kRows = kPanelRows / 4;
    u32 most[2];
    Eight x[2][kRows];  // of the stream, fetched a panel ahead
    const auto fetch = [&](u32 i) {
      const u32 first = work.row + first_row(i / kPanels) + lane / 8, column = work.column + i % kPanels * kPanel + lane % 8 * 8;
#pragma unroll
      for (u32 r = 0; r < kRows; r++) {
        const u32 row = min(first + 4 * r, p.rows - 1);
        x[i % 2][r] = Eight::load(p.residual + (size_t)row * p.residual_stride + column);
      }
    };
    const bf16* gates[kRows];
    fetch(0);
#pragma unroll
    for (u32 i = 0; i < kWaves * kPanels; i++) {
      const u32 wave = i / kPanels, panel = i % kPanels, column = work.column + panel * kPanel + lane % 8 * 8;
      const u8* const from = s.panels[number * 4 + warp][i % 2];
      if (i + 1 < kWaves * kPanels) fetch(i + 1);
#pragma unroll
      for (u32 r = 0; r < kRows && panel == 0; r++) {
        const u32 row = min(work.row + first_row(wave) + lane / 8 + 4 * r, p.rows - 1);
        gates[r] = p.gate + (size_t)p.branches.table_row(row) * p.gate_stride + work.column + lane % 8 * 8;
      }
      stage(shared_address(from), wave, panel, most);
      __syncwarp();
#pragma unroll
      for (u32 r = 0; r < kRows; r++) {
        const u32 in_panel = lane / 8 + 4 * r, row = work.row + first_row(wave) + in_panel;
        if (row >= p.rows) continue;
        const Eight y = Eight::load(reinterpret_cast<const bf16*>(from + in_panel * 128 + (lane % 8 ^ in_panel % 8) * 16));
        const Eight gate = Eight::load(gates[r] + panel * kPanel);
        u32 word[4];
#pragma unroll
        for (u32 j = 0; j < 8; j += 2) {
          float sum[2];
#pragma unroll
          for (u32 v = 0; v < 2; v++) {
            const float product = to_f32(gate.v[j + v]) * to_f32(y.v[j + v]);
            sum[v] = to_f32(x[i % 2][r].v[j + v]) + (kRoundProduct ? round_to<bf16>(product) : product);
          }
          word[j / 2] = pack2<bf16>(sum[0], sum[1]);
        }
        store_words(p.out + (size_t)row * p.out_stride + column, word);
      }
    }
  }

  // Writes y and its maxima and says so; `quantize` goes on from there.
  __device__ __forceinline__ void write_to_quantize(const Work& work) const {
    u32 most[2];
#pragma unroll
    for (u32 i = 0; i < kWaves * kPanels; i++) {
      const u32 wave = i / kPanels, panel = i % kPanels, first = work.row + first_row(wave);
      const u8* const from = s.panels[number * 4 + warp][i % 2];
      if (panel == 0) most[0] = most[1] = 0;
      stage(shared_address(from), wave, panel, most);
      __syncwarp();
#pragma unroll
      for (u32 in_panel = lane / 8; in_panel < kPanelRows; in_panel += 4) {
        const uint4 eight = *reinterpret_cast<const uint4*>(from + in_panel * 128 + (lane % 8 ^ in_panel % 8) * 16);
        const u32 word[4] = {eight.x, eight.y, eight.z, eight.w};
        bf16* const to = p.out + (size_t)(first + in_panel) * p.out_stride + work.column + panel * kPanel + lane % 8 * 8;
        if (first + in_panel < p.rows) store_words(to, word);
      }
      if (panel + 1 < kPanels) continue;
#pragma unroll
      for (u32 half = 0; half < 2; half++) {
        u32 x = max(most[half] & 0xffff, most[half] >> 16) << 16;
        x = max(x, __shfl_xor_sync(0xffffffffu, x, 1));
        x = max(x, __shfl_xor_sync(0xffffffffu, x, 2));
        const u32 row = first + lane / 4 + half * 8;
        if (lane % 4 == 0 && row < p.rows) atomicMax(p.most + row, x);
      }
    }
    __threadfence();
    __syncwarp();
    if (lane == 0) atomicAdd(p.done + work.group, 1);
  }
};

constexpr u32 kQuantizers = 3;  // warps of a block

// Makes integers of the rows of group after group; warps of all blocks take rows in turns.
__device__ __forceinline__ void quantize(const Params& p, u32 warp) {
  const u32 lane = threadIdx.x % 32;
  const bf16* const rows = p.out + p.tiles_n * kTileN - p.row_columns;
#pragma unroll 1
  for (u32 first = 0; first < p.tiles_m; first += kGroup) {
    const u32 tiles = min(kGroup, p.tiles_m - first), end = min((first + tiles) * kCluster * kTileM, p.rows);
    const u32 all = tiles * kCluster * p.tiles_n * kConsumerWarps;
    u32 done = lane > 0 ? all : 0;
    while (done < all) {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(done) : "l"(p.done + first / kGroup) : "memory");
      if (done < all) __nanosleep(500);
    }
    __syncwarp();
    u32 row = first * kCluster * kTileM + blockIdx.x * kQuantizers + warp;
#pragma unroll 1
    for (; row < end; row += gridDim.x * kQuantizers) {
      const float most = __uint_as_float(__ldcg(p.most + row));
      quantize_row(rows + (size_t)row * p.out_stride, p.integers + (size_t)row * p.integers_stride, p.row_columns,
                   quantizing_factor(most));
      if (lane == 0) p.scales[row] = quantized_scale(most);
    }
  }
}

#if CLUSTER > 1
#define CLUSTERS __cluster_dims__(CLUSTER, 1, 1)
#else
#define CLUSTERS
#endif
extern "C" __global__ void CLUSTERS __launch_bounds__(kThreads, 1) product(const __grid_constant__ Params p) {
  Shared& s = *reinterpret_cast<Shared*>(shared_bytes);
  if (threadIdx.x == 0) {
    for (u32 i = 0; i < kStages; i++) barrier_init(s.full[i], 1), barrier_init(s.empty[i], kConsumerWarps * kCluster);
    barrier_init_fence();
  }
  if (kCluster > 1) cluster_sync();
  else __syncthreads();
  if (threadIdx.x < 128) {
    give_registers<56>();
    if (threadIdx.x == 0) produce(p, s);
    if (kEnding == kGeluInt8 && threadIdx.x >= 32) quantize(p, threadIdx.x / 32 - 1);
    __syncwarp();
  } else {
    take_registers<224>();
    Consumer consumer(p, s, __shfl_sync(0xffffffffu, threadIdx.x / 128 - 1, 0));  // the compiler sees that it is uniform
    const u32 total = p.tiles_m * p.tiles_n;
#pragma unroll 1
    for (u32 number = blockIdx.x / kCluster; number < total; number += gridDim.x / kCluster) {
      const Work work(p, number);
      consumer.load_scales(work);
      if (kPromote) consumer.consume_promoting();
      else consumer.consume();
      if (kEnding == kResidual) consumer.write_residual(work);
      else if (kEnding == kGeluInt8) consumer.write_to_quantize(work);
      else consumer.write(work);
    }
    if ((kEnding == kPlain || kEnding == kGelu) && threadIdx.x % 32 == 0) tma_store_wait<0>();
  }
  // A block stays as long as another may write into it.
  if (kCluster > 1) cluster_sync();
}
