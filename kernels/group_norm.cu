// y = (x - mean)/sqrt(var + eps)·weight + bias, with SWISH then y·σ(y): x, y [P, C] (P pixels), weight, bias [C] f32; mean
// and variance over all pixels and the neighbouring channels of each of 32 groups.
//
// Two passes: `group_norm_moments` leaves every block's moments of each group in scratch; every block of `group_norm`
// combines them, which is little, as they are of few blocks, and done while its first pixels are on their way.
//
// Where a picture is normed strip by strip, `group_norm_statistics` combines the moments of all of it, with the same sums, and
// with GIVEN `group_norm` takes what that left, whatever part of the picture x is.
//
// A thread takes the same vector of up to 16 bytes of pixels that are equally far apart, so that what belongs to its
// channels stays in registers. All blocks sweep over the picture side by side, in the second pass from its end, which was
// read last and may still be in the cache. Bound by bandwidth: x is read twice, y written once.
//
// Deviations are summed, never squares of x: a large mean does not cancel. No sum depends on timing.

#include "exp2.cuh"
#include "types.cuh"

constexpr int kVector = VECTOR, kChannels = CHANNELS, kThreads = 512, kGroups = 32;
constexpr bool kSwish = SWISH, kGiven = GIVEN;
constexpr int kVectors = kChannels / kVector;               // of a pixel
constexpr int kLanes = kThreads / kVectors;                 // pixels of a block at a time
constexpr int kWidth = kChannels / kGroups;                 // channels of a group
constexpr int kSpan = kWidth < kVector ? kWidth : kVector;  // those of a group in a vector
constexpr int kParts = kVector / kSpan;                     // groups of a vector
constexpr int kShare = kWidth / kSpan;                      // vectors of a group
constexpr int kSlots = kLanes * kShare;                     // threads of a block that meet a group
constexpr int kTeam = kThreads / kGroups;                   // threads that combine a group
constexpr int kMostBlocks = 132;                            // of the first pass
constexpr float kEps = 1e-6f;
static_assert(kLanes * kVectors == kThreads && kChannels % kGroups == 0, "threads divide among whole pixels");
using X = Element<X_TYPE>;
using Y = Element<Y_TYPE>;

// A vector as it waits in registers: whole words, where the compiler would give every bf16 one of its own.
template <int BYTES>
struct WordsOf {
  typedef Vec<u32, BYTES / 4> type;
};
template <>
struct WordsOf<2> {
  typedef Vec<u16, 1> type;
};
using Words = typename WordsOf<sizeof(X) * kVector>::type;

// Mean, and the sum of squared deviations from it.
struct alignas(8) Moments {
  float mean, deviations;
};

struct Params {
  const X* x;
  Y* y;
  const float* weight;
  const float* bias;
  Moments* partial;  // [blocks, kGroups]
  u32 pixels;
  u32 blocks;  // of the first pass
  u32 rounds;  // pixels of each of its lanes
  u32 rest;    // its first lanes, which have one more
  u32 x_stride;
  u32 y_stride;
  float* statistics;  // of each group: mean, 1/σ, each as three values whose sum it is
};
static_assert(sizeof(Params) == 72, "as in src/ops/group_norm.rs");

// A thread's way over the picture, a batch of pixels at a time.
template <bool BACK, int BATCH>
struct Sweep {
  const Params& p;
  const u32 channel, step;
  u32 at;
  Words x[BATCH];

  // The first batch is on its way afterwards.
  __device__ __forceinline__ explicit Sweep(const Params& p)
      : p(p),
        channel(threadIdx.x % kVectors * kVector),
        step(gridDim.x * kLanes),
        at(blockIdx.x * kLanes + threadIdx.x / kVectors) {
    fetch();
  }

  __device__ __forceinline__ bool inside(int i) const { return at + i * step < p.pixels; }
  __device__ __forceinline__ size_t pixel(int i) const { return BACK ? p.pixels - 1 - (at + i * step) : at + i * step; }
  __device__ __forceinline__ void fetch() {
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
      if (inside(i)) x[i] = *reinterpret_cast<const Words*>(p.x + pixel(i) * p.x_stride + channel);
    }
  }

  // Calls `use(pixel, values)` for every pixel of this thread.
  template <typename Use>
  __device__ __forceinline__ void each(Use use) {
    while (at < p.pixels) {
#pragma unroll
      for (int i = 0; i < BATCH; i++) {
        if (inside(i)) use(pixel(i), __builtin_bit_cast(Vec<X, kVector>, x[i]));
      }
      at += BATCH * step;
      fetch();
    }
  }
};

// Sum over the threads that combine a group.
__device__ __forceinline__ float team_sum(float x) {
  for (int offset = kTeam / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

// Moments of the thread's group, threadIdx.x / kTeam, from its parts; the one in a slot stands for `count(slot)` values.
template <int SLOTS, typename Count>
__device__ __forceinline__ Moments combine(const Moments (&parts)[kGroups][SLOTS + 1], Count count) {
  static_assert(SLOTS % kTeam == 0, "each takes as many");
  const Moments* const own = parts[threadIdx.x / kTeam];
  float values = 0.0f, total = 0.0f, deviations = 0.0f;
#pragma unroll
  for (u32 begin = 0; begin < SLOTS; begin += kTeam) {
    const u32 slot = begin + threadIdx.x % kTeam;
    values += count(slot);
    total += count(slot) * own[slot].mean;
  }
  const float mean = team_sum(total) / team_sum(values);
#pragma unroll
  for (u32 begin = 0; begin < SLOTS; begin += kTeam) {
    const u32 slot = begin + threadIdx.x % kTeam;
    const float d = own[slot].mean - mean;
    deviations += own[slot].deviations + count(slot) * d * d;
  }
  return {mean, team_sum(deviations)};
}

extern "C" __global__ void __launch_bounds__(kThreads, 2) group_norm_moments(const __grid_constant__ Params p) {
  __shared__ Moments parts[kGroups][kSlots + 1];  // one more, for the banks
  Sweep<false, kParts <= 2 ? 8 : 4> sweep(p);
  const auto values = [&](u32 lane) { return (float)(kSpan * (p.rounds + (blockIdx.x * kLanes + lane < p.rest))); };

  // About the first value of each group, which stands in for the mean.
  float about[kParts] = {}, sum[kParts] = {}, squares[kParts] = {};
#pragma unroll
  for (int i = 0; i < kParts; i++) {
    if (sweep.inside(0)) about[i] = to_f32(__builtin_bit_cast(Vec<X, kVector>, sweep.x[0]).v[i * kSpan]);
  }
  sweep.each([&](size_t, const Vec<X, kVector>& x) {
#pragma unroll
    for (int i = 0; i < kVector; i++) {
      const float d = to_f32(x.v[i]) - about[i / kSpan];
      sum[i / kSpan] += d;
      squares[i / kSpan] += d * d;
    }
  });
  const u32 lane = threadIdx.x / kVectors, vector = threadIdx.x % kVectors;
  const float of_one = 1.0f / fmaxf(values(lane), 1.0f);
#pragma unroll
  for (int i = 0; i < kParts; i++) {
    const float mean = sum[i] * of_one;
    parts[vector / kShare * kParts + i][lane * kShare + vector % kShare] = {about[i] + mean, squares[i] - sum[i] * mean};
  }
  __syncthreads();
  const Moments moments = combine<kSlots>(parts, [&](u32 slot) { return values(slot / kShare); });
  if (threadIdx.x % kTeam == 0) p.partial[blockIdx.x * kGroups + threadIdx.x / kTeam] = moments;
}

// Of each group, the moments of the blocks that begin with `first`, kTeam apart: a thread a group, about the first block's
// mean. Gives their number of values.
__device__ __forceinline__ float slice(const Params& p, u32 group, u32 first, Moments& result) {
  constexpr int kBlocks = (kMostBlocks + kTeam - 1) / kTeam;
  const float about = p.partial[group].mean;
  Moments partial[kBlocks];
#pragma unroll
  for (int i = 0; i < kBlocks; i++) {
    const u32 block = first + i * kTeam;
    if (block < p.blocks) partial[i] = p.partial[block * kGroups + group];
  }
  float count = 0.0f, sum = 0.0f, squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kBlocks; i++) {
    const u32 block = first + i * kTeam;
    if (block < p.blocks) {
      const int longer = max(0, min(kLanes, (int)p.rest - (int)block * kLanes));  // lanes with one pixel more
      const float values = (float)(kWidth * (kLanes * p.rounds + longer)), d = partial[i].mean - about;
      count += values;
      sum += values * d;
      squares += partial[i].deviations + values * d * d;
    }
  }
  const float mean = sum / fmaxf(count, 1.0f);
  result = {about + mean, squares - sum * mean};
  return count;
}

// What the threads of a block share as they combine the moments of all blocks.
struct Shares {
  Moments parts[kGroups][kTeam + 1];
  float counts[kTeam];

  __device__ __forceinline__ void gather(const Params& p) {
    const u32 first = threadIdx.x / kGroups;
    counts[first] = slice(p, threadIdx.x % kGroups, first, parts[threadIdx.x % kGroups][first]);
  }

  // Of the thread's group, threadIdx.x / kTeam, once all have gathered: the mean, and 1/σ in place of the deviations.
  __device__ __forceinline__ Moments conclude(const Params& p) const {
    const Moments moments = combine<kTeam>(parts, [&](u32 slot) { return counts[slot]; });
    const float variance = moments.deviations / ((float)p.pixels * kWidth);
    return {moments.mean, 1.0f / sqrtf(variance + kEps)};
  }
};

extern "C" __global__ void __launch_bounds__(kThreads) group_norm_statistics(const __grid_constant__ Params p) {
  __shared__ Shares shares;
  shares.gather(p);
  __syncthreads();
  const Moments m = shares.conclude(p);
  if (threadIdx.x % kTeam == 0) {
    float* const to = p.statistics + threadIdx.x / kTeam * 6;
    to[0] = m.mean, to[1] = 0.0f, to[2] = 0.0f, to[3] = m.deviations, to[4] = 0.0f, to[5] = 0.0f;
  }
}

extern "C" __global__ void __launch_bounds__(kThreads, 2) group_norm(const __grid_constant__ Params p) {
  __shared__ Shares shares;
  __shared__ Moments statistics[kGroups];
  Sweep<true, 4> sweep(p);
  if (!kGiven) shares.gather(p);

  constexpr int kFloats = kVector < 4 ? kVector : 4;
  Vec<float, kFloats> weight[kVector / kFloats], bias[kVector / kFloats];
#pragma unroll
  for (int i = 0; i < kVector / kFloats; i++) {
    weight[i] = Vec<float, kFloats>::load(p.weight + sweep.channel + i * kFloats);
    bias[i] = Vec<float, kFloats>::load(p.bias + sweep.channel + i * kFloats);
  }
  if (kGiven) {
    const float* const of = p.statistics + threadIdx.x * 6;
    if (threadIdx.x < kGroups) statistics[threadIdx.x] = {of[0] + of[1] + of[2], of[3] + of[4] + of[5]};
  } else {
    __syncthreads();
    const Moments m = shares.conclude(p);
    if (threadIdx.x % kTeam == 0) statistics[threadIdx.x / kTeam] = m;
  }
  __syncthreads();
  float mean[kParts], factor[kVector];
#pragma unroll
  for (int i = 0; i < kVector; i++) {
    const Moments m = statistics[(sweep.channel + i) / kWidth];
    mean[i / kSpan] = m.mean;
    factor[i] = m.deviations * weight[i / kFloats].v[i % kFloats];
  }
  sweep.each([&](size_t pixel, const Vec<X, kVector>& x) {
    Vec<Y, kVector> y;
#pragma unroll
    for (int i = 0; i < kVector; i++) {
      const float n = (to_f32(x.v[i]) - mean[i / kSpan]) * factor[i] + bias[i / kFloats].v[i % kFloats];
      y.v[i] = from_f32<Y>(kSwish ? silu(n) : n);
    }
    y.store(p.y + pixel * p.y_stride + sweep.channel);
  });
}
