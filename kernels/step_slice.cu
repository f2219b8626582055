// y = table[step·R .. (step + 1)·R], the step read from the device: table [K·R, D], counter [1] i32, y [R, D] of the
// table's type.
//
// A thread copies one vector of up to 16 bytes. Bound by bandwidth.

#include "types.cuh"

constexpr int kVector = VECTOR;
using X = Element<X_TYPE>;

struct Params {
  const X* table;
  const int* counter;
  X* y;
  u32 rows;
  u32 vectors_of_row;  // D / kVector
  u32 table_stride;
  u32 y_stride;
};
static_assert(sizeof(Params) == 40, "as in src/ops/step_slice.rs");

extern "C" __global__ void step_slice(const __grid_constant__ Params p) {
  const u32 vector = blockIdx.x * blockDim.x + threadIdx.x;
  if (vector >= p.rows * p.vectors_of_row) return;
  const size_t row = vector / p.vectors_of_row, column = vector % p.vectors_of_row * kVector;
  const size_t from = (size_t)*p.counter * p.rows + row;
  Vec<X, kVector>::load(p.table + from * p.table_stride + column).store(p.y + row * p.y_stride + column);
}
