// Which row of a per-branch table a row of a stream uses; BranchRows of src/ops/branches.rs.

#pragma once

#include "types.cuh"

struct BranchRows {
  u32 period;    // rows of a step
  u32 branches;  // table rows of a step
  u32 ends[6];   // end of each run of rows within the period; unused runs end at the period
  u32 branch[6];  // the branch of each run

  __device__ __forceinline__ u32 table_row(u32 row) const {
    const u32 step = row / period, within = row % period;
    int run = 0;
#pragma unroll
    for (int i = 0; i < 5; i++) run += within >= ends[i];
    return step * branches + branch[run];
  }
};
static_assert(sizeof(BranchRows) == 56, "as in src/ops/branches.rs");
