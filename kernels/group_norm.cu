// y = (x - mean)/sqrt(var + eps)·weight + bias, with SWISH then y·σ(y): x, y [P, C] (P pixels), weight, bias [C] f32; mean
// and variance over all pixels and the neighbouring channels of each of 32 groups.
//
// Three passes: `group_norm_moments` leaves every block's moments of each group in scratch, `group_norm_combine` combines
// them, `group_norm` applies them. A block takes neighbouring pixels; a thread takes the same vector of up to 16 bytes of
// every kLanes-th of them, so that what belongs to its channels stays in registers. Bound by bandwidth: x is read twice,
// y written once.
//
// Deviations are summed, never squares of x: a large mean does not cancel. No sum depends on timing.

#include "reduce.cuh"
#include "types.cuh"

constexpr int kVector = VECTOR, kChannels = CHANNELS, kThreads = 256, kGroups = 32;
constexpr bool kSwish = SWISH;
constexpr int kVectors = kChannels / kVector;  // of a pixel
constexpr int kLanes = kThreads / kVectors;    // pixels at a time
constexpr int kWidth = kChannels / kGroups;    // channels of a group
constexpr int kBatch = 4;                      // vectors that a thread reads ahead
constexpr float kEps = 1e-6f;
static_assert(kLanes * kVectors == kThreads && kChannels % kGroups == 0, "threads divide among whole pixels");
using X = Element<X_TYPE>;
using Y = Element<Y_TYPE>;

// Mean, and the sum of squared deviations from it; after `group_norm_combine` 1/σ instead of the sum.
struct alignas(8) Moments {
  float mean, deviations;
};

struct Params {
  const X* x;
  Y* y;
  const float* weight;
  const float* bias;
  Moments* partial;   // [kGroups, blocks]
  Moments* combined;  // [kGroups]
  u32 pixels;
  u32 pixels_of_block;
  u32 blocks;
  u32 x_stride;
  u32 y_stride;
  u32 unused;
};
static_assert(sizeof(Params) == 72, "as in src/ops/group_norm.rs");

// Pixels of a block, and where its threads stand in them.
struct Tile {
  u32 begin, end, lane, channel;

  __device__ __forceinline__ Tile(const Params& p, u32 block)
      : begin(block * p.pixels_of_block),
        end(min(begin + p.pixels_of_block, p.pixels)),
        lane(threadIdx.x / kVectors),
        channel(threadIdx.x % kVectors * kVector) {}

  __device__ __forceinline__ u32 pixels() const { return end - begin; }
  // Pixels of a lane.
  __device__ __forceinline__ u32 share(u32 of) const { return (pixels() + kLanes - 1 - of) / kLanes; }

  // Calls `use(pixel, values)` for every pixel of this thread, a batch of reads at a time.
  template <typename Use>
  __device__ __forceinline__ void each(const Params& p, Use use) const {
    for (u32 first = begin + lane; first < end; first += kBatch * kLanes) {
      Vec<X, kVector> x[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; i++) {
        const u32 pixel = first + i * kLanes;
        if (pixel < end) x[i] = Vec<X, kVector>::load(p.x + (size_t)pixel * p.x_stride + channel);
      }
#pragma unroll
      for (int i = 0; i < kBatch; i++) {
        const u32 pixel = first + i * kLanes;
        if (pixel < end) use(pixel, x[i]);
      }
    }
  }
};

// Sum over the 8 threads that share a group.
__device__ __forceinline__ float sum_of_8(float x) {
  for (int offset = 4; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

extern "C" __global__ void __launch_bounds__(kThreads) group_norm_moments(const __grid_constant__ Params p) {
  __shared__ Moments moments[kLanes][kChannels];
  const Tile tile(p, blockIdx.x);

  // Of each channel by itself, about the first value, which stands in for the mean.
  float about[kVector] = {}, sum[kVector] = {}, squares[kVector] = {};
  if (tile.begin + tile.lane < tile.end) {
    const auto x = Vec<X, kVector>::load(p.x + (size_t)(tile.begin + tile.lane) * p.x_stride + tile.channel);
#pragma unroll
    for (int i = 0; i < kVector; i++) about[i] = to_f32(x.v[i]);
  }
  tile.each(p, [&](u32, const Vec<X, kVector>& x) {
#pragma unroll
    for (int i = 0; i < kVector; i++) {
      const float d = to_f32(x.v[i]) - about[i];
      sum[i] += d;
      squares[i] += d * d;
    }
  });
  const float of_one = 1.0f / fmaxf((float)tile.share(tile.lane), 1.0f);
#pragma unroll
  for (int i = 0; i < kVector; i++) {
    const float mean = sum[i] * of_one;
    moments[tile.lane][tile.channel + i] = {about[i] + mean, squares[i] - sum[i] * mean};
  }
  __syncthreads();

  // Of each group by 8 threads, which take every 8th of its lanes' channels.
  const u32 group = threadIdx.x / 8;
  float total = 0.0f;
  for (u32 i = threadIdx.x % 8; i < kLanes * kWidth; i += 8) {
    total += (float)tile.share(i / kWidth) * moments[i / kWidth][group * kWidth + i % kWidth].mean;
  }
  const float mean = sum_of_8(total) / (float)(tile.pixels() * kWidth);
  float deviations = 0.0f;
  for (u32 i = threadIdx.x % 8; i < kLanes * kWidth; i += 8) {
    const Moments m = moments[i / kWidth][group * kWidth + i % kWidth];
    deviations += m.deviations + (float)tile.share(i / kWidth) * (m.mean - mean) * (m.mean - mean);
  }
  deviations = sum_of_8(deviations);
  if (threadIdx.x % 8 == 0) p.partial[(size_t)group * p.blocks + blockIdx.x] = {mean, deviations};
}

// One block a group.
extern "C" __global__ void __launch_bounds__(kThreads) group_norm_combine(const __grid_constant__ Params p) {
  __shared__ float scratch[kThreads / 32];
  const Moments* const partial = p.partial + (size_t)blockIdx.x * p.blocks;
  const float count = (float)p.pixels * kWidth;
  float total = 0.0f;
  for (u32 i = threadIdx.x; i < p.blocks; i += kThreads) total += (float)Tile(p, i).pixels() * kWidth * partial[i].mean;
  const float mean = block_sum<kThreads / 32>(total, scratch) / count;
  float deviations = 0.0f;
  for (u32 i = threadIdx.x; i < p.blocks; i += kThreads) {
    const Moments m = partial[i];
    deviations += m.deviations + (float)Tile(p, i).pixels() * kWidth * (m.mean - mean) * (m.mean - mean);
  }
  deviations = block_sum<kThreads / 32>(deviations, scratch);
  if (threadIdx.x == 0) p.combined[blockIdx.x] = {mean, 1.0f / sqrtf(deviations / count + kEps)};
}

extern "C" __global__ void __launch_bounds__(kThreads) group_norm(const __grid_constant__ Params p) {
  // The last pixels first: they were read last and may still be in the cache.
  const Tile tile(p, p.blocks - 1 - blockIdx.x);
  float mean[kVector], factor[kVector], bias[kVector];
#pragma unroll
  for (int i = 0; i < kVector; i++) {
    const Moments m = p.combined[(tile.channel + i) / kWidth];
    mean[i] = m.mean;
    factor[i] = m.deviations * p.weight[tile.channel + i];
    bias[i] = p.bias[tile.channel + i];
  }
  tile.each(p, [&](u32 pixel, const Vec<X, kVector>& x) {
    Vec<Y, kVector> y;
#pragma unroll
    for (int i = 0; i < kVector; i++) {
      const float n = (to_f32(x.v[i]) - mean[i]) * factor[i] + bias[i];
      y.v[i] = from_f32<Y>(kSwish ? __fdividef(n, 1.0f + expf(-n)) : n);
    }
    y.store(p.y + (size_t)pixel * p.y_stride + tile.channel);
  });
}
