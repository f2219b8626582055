// faults = how many values of x are not finite: x [R, D], faults [1] i32, zero before.
//
// A thread takes one vector of up to 16 bytes, a warp adds up and writes only what it found. Bound by bandwidth. Sums of
// integers are the same in any order.

#include "types.cuh"

constexpr int kVector = VECTOR;
using X = Element<X_TYPE>;

struct Params {
  const X* x;
  u32* faults;
  u32 vectors;         // in all
  u32 vectors_of_row;  // D / kVector
  u32 x_stride;
  u32 unused;
};
static_assert(sizeof(Params) == 32, "as in src/ops/count_faults.rs");

extern "C" __global__ void count_faults(const __grid_constant__ Params p) {
  const u32 vector = blockIdx.x * blockDim.x + threadIdx.x;
  u32 faults = 0;
  if (vector < p.vectors) {
    const size_t row = vector / p.vectors_of_row, column = vector % p.vectors_of_row * kVector;
    const auto x = Vec<X, kVector>::load(p.x + row * p.x_stride + column);
#pragma unroll
    for (int i = 0; i < kVector; i++) faults += !isfinite(to_f32(x.v[i]));
  }
  faults = __reduce_add_sync(0xffffffffu, faults);
  if (faults > 0 && threadIdx.x % 32 == 0) atomicAdd(p.faults, faults);
}
