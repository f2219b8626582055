// x += Δt·v with v by guidance from the velocities c and u, or c alone; then the counter is raised and a fault noted.
//
//   velocity [2n, C] (branch c, then u) or [n, C] (c), x [n, C] f32, schedule [K, 3] f32 (Δt, whether the norm rule holds,
//   guidance scale), counter [1], fault [1] i32; new x, counter and fault may be the old ones
//
// guidance_euler: a warp a token. Every block leaves in `broken` whether any of its values is not finite.
// guidance_euler_advance: one block, after all others have read the counter. Both are bound by their launch.

#include "reduce.cuh"
#include "types.cuh"

constexpr int kChannels = CHANNELS, kWarps = 8, kThreads = 32 * kWarps;
constexpr bool kEach = ROUND_EACH;       // whether every operation is rounded to V, latents too
constexpr int kItems = kChannels / 32;  // channels of a lane
static_assert(kChannels % 32 == 0, "a lane takes every 32nd channel");
using V = Element<V_TYPE>;

struct Params {
  const V* velocity;
  const float* x;
  float* new_x;
  const float* schedule;
  const int* counter;
  int* new_counter;
  const int* fault;
  int* new_fault;
  u32* broken;  // one a block
  u32 tokens;
  u32 velocity_stride;
  u32 x_stride;
  u32 new_x_stride;
  u32 schedule_stride;
  u32 branches;  // 1 or 2
};
static_assert(sizeof(Params) == 96, "as in src/ops/guidance_euler.rs");

// Operations of their own: the official code rounds after each, so that none may fuse with the next.
__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float multiply(float a, float b) { return __fmul_rn(a, b); }
// What autocast leaves in f32.
__device__ __forceinline__ float uniform(float a) { return kEach ? round_to<V>(a) : a; }

extern "C" __global__ void __launch_bounds__(kThreads) guidance_euler(const __grid_constant__ Params p) {
  const u32 token = blockIdx.x * kWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
  const float* const schedule = p.schedule + (size_t)*p.counter * p.schedule_stride;
  const float dt = schedule[0];
  const bool limited = schedule[1] != 0.0f, guided = p.branches == 2;
  const float scale = schedule[2];

  bool finite = true;
  if (token < p.tokens) {
    const V* const c = p.velocity + (size_t)token * p.velocity_stride;
    const V* const u = guided ? c + (size_t)p.tokens * p.velocity_stride : c;
    float base[kItems], difference[kItems], squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kItems; i++) {
      base[i] = to_f32(u[lane + 32 * i]);
      difference[i] = round_to<V>(add(to_f32(c[lane + 32 * i]), -base[i]));
      squares += difference[i] * difference[i];
    }
    const float norm = uniform(sqrtf(warp_sum(squares)));
    const float limit = norm > 1.0f ? uniform(powf(norm, 0.4f)) : 1.0f;
#pragma unroll
    for (int i = 0; i < kItems; i++) {
      const float pull = round_to<V>(multiply(scale, difference[i]));
      const float velocity = guided ? round_to<V>(add(base[i], pull)) : base[i];
      const float move = guided && limited ? uniform(multiply(dt, uniform(add(base[i], uniform(pull / limit)))))
                                           : round_to<V>(multiply(dt, velocity));
      const float x = uniform(add(p.x[(size_t)token * p.x_stride + lane + 32 * i], move));
      finite = finite && isfinite(x);
      p.new_x[(size_t)token * p.new_x_stride + lane + 32 * i] = x;
    }
  }
  const u32 broken = __syncthreads_or(!finite);
  if (threadIdx.x == 0) p.broken[blockIdx.x] = broken;
}

extern "C" __global__ void __launch_bounds__(kThreads) guidance_euler_advance(const __grid_constant__ Params p) {
  const u32 blocks = (p.tokens + kWarps - 1) / kWarps;
  bool broken = false;
  for (u32 i = threadIdx.x; i < blocks; i += kThreads) broken = broken || p.broken[i] != 0;
  const bool any = __syncthreads_or(broken);
  if (threadIdx.x > 0) return;
  const int next = *p.counter + 1, fault = *p.fault;
  *p.new_counter = next;
  *p.new_fault = fault == 0 && any ? next : fault;
}
