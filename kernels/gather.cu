// y[r] = table[index[r]], zeros where the index is negative: table [V, D], index [R] i32, y [R, D] of the table's type.
//
// A thread copies one vector of up to 16 bytes. Bound by bandwidth.

#include "types.cuh"

constexpr int kVector = VECTOR;
using X = Element<X_TYPE>;

struct Params {
  const X* table;
  const int* index;
  X* y;
  u32 vectors;         // in all
  u32 vectors_of_row;  // D / kVector
  u32 table_stride;
  u32 y_stride;
};
static_assert(sizeof(Params) == 40, "as in src/ops/gather.rs");

extern "C" __global__ void gather(const __grid_constant__ Params p) {
  const u32 vector = blockIdx.x * blockDim.x + threadIdx.x;
  if (vector >= p.vectors) return;
  const size_t row = vector / p.vectors_of_row, column = vector % p.vectors_of_row * kVector;
  const int index = p.index[row];
  Vec<X, kVector> copied = {};
  if (index >= 0) copied = Vec<X, kVector>::load(p.table + (size_t)index * p.table_stride + column);
  copied.store(p.y + row * p.y_stride + column);
}
