// Rotary embedding of half-split pairs: x, y [R, H·E], table [R, E] with (cos, sin) of pair k at 2k, 2k + 1; y may be x.
//
//   y[k] = x[k]·cos - x[k + E/2]·sin, y[k + E/2] = x[k + E/2]·cos + x[k]·sin, products rounded to the table's type
//
// A thread takes 8 neighbouring pairs of a head: 16 bytes of each half. Bound by bandwidth (by latency, at the model's
// few rows); the heads of a row find its table in cache.

#include "types.cuh"

constexpr int kThreads = 128;
constexpr u32 kHalf = HEAD_WIDTH / 2, kParts = kHalf / 8;  // threads of a head
using X = Element<X_TYPE>;
using Table = Element<TABLE_TYPE>;
constexpr int kTableVector = 16 / sizeof(Table);
static_assert(HEAD_WIDTH % 16 == 0, "a thread takes 8 pairs");

struct Params {
  const X* x;
  const Table* table;
  X* y;
  u32 rows;
  u32 heads;
  u32 x_stride;
  u32 table_stride;
  u32 y_stride;
  u32 items;  // threads with work: rows · heads · kParts
};
static_assert(sizeof(Params) == 48, "as in src/ops/rope_half.rs");

// Without contraction: the product is rounded before the sum also where the table is f32.
__device__ __forceinline__ float product(float a, float b) { return round_to<Table>(__fmul_rn(a, b)); }

extern "C" __global__ void __launch_bounds__(kThreads) rope_half(const __grid_constant__ Params p) {
  const u32 item = blockIdx.x * kThreads + threadIdx.x;
  if (item >= p.items) return;
  const u32 k = item % kParts * 8, head = item / kParts % p.heads;
  const size_t row = item / kParts / p.heads;
  const size_t column = head * (2 * kHalf) + k;
  float rotation[16];
#pragma unroll
  for (int i = 0; i < 16; i += kTableVector) {
    const auto part = Vec<Table, kTableVector>::load(p.table + row * p.table_stride + 2 * k + i);
#pragma unroll
    for (int j = 0; j < kTableVector; j++) rotation[i + j] = to_f32(part.v[j]);
  }
  const auto first = Vec<X, 8>::load(p.x + row * p.x_stride + column);
  const auto second = Vec<X, 8>::load(p.x + row * p.x_stride + column + kHalf);
  Vec<X, 8> y_first, y_second;
#pragma unroll
  for (int j = 0; j < 8; j++) {
    const float a = to_f32(first.v[j]), b = to_f32(second.v[j]), cos = rotation[2 * j], sin = rotation[2 * j + 1];
    y_first.v[j] = from_f32<X>(__fsub_rn(product(a, cos), product(b, sin)));
    y_second.v[j] = from_f32<X>(__fadd_rn(product(b, cos), product(a, sin)));
  }
  y_first.store(p.y + row * p.y_stride + column);
  y_second.store(p.y + row * p.y_stride + column + kHalf);
}
