// What sm_90a adds: barriers that count bytes, copies of whole tiles by the tensor memory accelerator (TMA), and products of
// a warpgroup (128 threads) whose operands lie in shared memory.
//
// Tiles are panels of 64 16-bit columns: rows of 128 bytes, in which TMA swaps 16-byte chunks by the row number modulo 8
// (the 128-byte swizzle). A panel starts at a multiple of 1024 bytes.

#pragma once

#include "mma.cuh"

// Where a tensor lies and how it is cut into boxes; the driver encodes it.
struct alignas(64) TensorMap {
  u64 words[16];
};

// Barriers in shared memory. A phase ends when `arrivals` have come and all bytes announced; the first has parity 0.
__device__ __forceinline__ void barrier_init(u64& barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
}
// Makes fresh barriers visible to TMA.
__device__ __forceinline__ void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ __forceinline__ void barrier_arrive(u64& barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory");
}
// Arrives and announces bytes that TMA will bring.
__device__ __forceinline__ void barrier_expect(u64& barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)), "r"(bytes) : "memory");
}
// Waits for the end of the phase of that parity; returns at once if it is the previous one.
__device__ __forceinline__ void barrier_wait(u64& barrier, u32 parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "wait:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra wait;\n"
      "finished:\n"
      "}" ::"r"(shared_address(&barrier)),
      "r"(parity)
      : "memory");
}

// A place in a ring of SIZE buffers and the parity of the phase in which it is filled.
template <int SIZE>
struct Ring {
  u32 at = 0, parity = 0;

  __device__ __forceinline__ void next() {
    if (++at == SIZE) at = 0, parity ^= 1;
  }
};

// Starts the copy of the box of a tensor at (column, row) to shared memory; rows past the end come as zeros.
__device__ __forceinline__ void tma_load(u32 to, const TensorMap& map, u32 column, u32 row, u64& barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(&map), "r"(column), "r"(row), "r"(shared_address(&barrier))
      : "memory");
}

// The same of a tensor of three dimensions, at (column, x, y); what lies outside of it, before its start too, comes as zeros.
// `policy`: what becomes of it in the L2 cache.
__device__ __forceinline__ void tma_load(u32 to, const TensorMap& map, u32 column, int x, int y, u64& barrier, u64 policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
      "l"(&map), "r"(column), "r"(x), "r"(y), "r"(shared_address(&barrier)), "l"(policy)
      : "memory");
}

// The same for every block of the cluster in `blocks` (bit i: block i): to the same place in each, and to its own barrier.
__device__ __forceinline__ void tma_load(u32 to, const TensorMap& map, u32 column, u32 row, u64& barrier, u16 blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(&map), "r"(column), "r"(row), "r"(shared_address(&barrier)), "h"(blocks)
      : "memory");
}

// Starts the copy of neighbouring bytes, a multiple of 16 at a multiple of 16.
__device__ __forceinline__ void bulk_load(u32 to, const void* from, u32 bytes, u64& barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(&barrier))
               : "memory");
}

// Starts the copy of a box to a tensor; what lies past its end is left out. Threads that wrote the box call `async_fence` before.
__device__ __forceinline__ void tma_store(const TensorMap& map, u32 column, u32 row, u32 from) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map), "r"(column),
               "r"(row), "r"(from)
               : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Makes ordinary writes to shared memory visible to TMA.
__device__ __forceinline__ void async_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Waits until all but the latest PENDING stores that this thread started have read their boxes.
template <int PENDING>
__device__ __forceinline__ void tma_store_wait() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}

// Which block of its cluster this is.
__device__ __forceinline__ u32 cluster_rank() {
  u32 rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// Waits for all threads of the cluster.
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
// Arrives at the same barrier of another block of the cluster.
__device__ __forceinline__ void barrier_arrive_at(u64& barrier, u32 rank) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}" ::"r"(shared_address(&barrier)),
      "r"(rank)
      : "memory");
}

// The L2 cache lets go of what it fetches under this policy before anything else.
__device__ __forceinline__ u64 evict_first() {
  u64 policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// The counterpart of `ldmatrix_x4`: lane l gives the address of row l % 8 of matrix l / 8, and the values that it would get
// from there.
__device__ __forceinline__ void stmatrix_x4(u32 address, const u32 (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(r[0]), "r"(r[1]), "r"(r[2]),
               "r"(r[3])
               : "memory");
}

// Hands registers from one role of a block to another; every warp of the warpgroup calls it.
template <int COUNT>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// Products run in the background: between `wgmma_begin` and the `wgmma_wait` that covers them their registers are not ours.
__device__ __forceinline__ void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most PENDING committed groups are under way.
template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Keeps the compiler from moving uses of the registers across this place.
template <int N>
__device__ __forceinline__ void pin(float (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(x[i]) : : "memory");
}
template <int N>
__device__ __forceinline__ void pin(int (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+r"(x[i]) : : "memory");
}

// How an operand lies in shared memory, from its first panel on. Groups of 8 rows are 1024 bytes apart. Where the rows are
// the dimension summed over, the panels that hold further columns are `panel` bytes apart; otherwise `panel` is not used.
__device__ __forceinline__ u64 wgmma_operand(u32 address, u32 panel) {
  constexpr u64 kSwizzle128 = 1ull << 62;
  return kSwizzle128 | (u64)(1024 >> 4) << 32 | (u64)(panel >> 4) << 16 | (address & 0x3ffff) >> 4;
}

#define EIGHT_OF(constraint, d, i)                                                                                 \
  constraint(d[i]), constraint(d[i + 1]), constraint(d[i + 2]), constraint(d[i + 3]), constraint(d[i + 4]),          \
      constraint(d[i + 5]), constraint(d[i + 6]), constraint(d[i + 7])
#define SIXTY_FOUR_OF(constraint, d, i)                                                                              \
  EIGHT_OF(constraint, d, i), EIGHT_OF(constraint, d, i + 8), EIGHT_OF(constraint, d, i + 16),                       \
      EIGHT_OF(constraint, d, i + 24), EIGHT_OF(constraint, d, i + 32), EIGHT_OF(constraint, d, i + 40),             \
      EIGHT_OF(constraint, d, i + 48), EIGHT_OF(constraint, d, i + 56)
#define ACCUMULATORS_64(d) SIXTY_FOUR_OF("+f", d, 0)
#define REGISTERS_0_TO_63 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, " \
  "%25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define REGISTERS_64_TO_127 \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, " \
  "%87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, " \
  "%108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, " \
  "%127"
#define REGISTERS_64 "{" REGISTERS_0_TO_63 "}"

// d [64, 128] (+)= a [64, 16] · b [128, 16]ᵀ: a in registers, warp w having rows 16w to 16w + 15 in the order of m16n8k16's A;
// b in shared memory, 16 columns of a panel; d is only added to if `add`.
// Accumulators of lane l: d[4n + i] = (16w + l / 4 + i / 2 * 8, 8n + l % 4 * 2 + i % 2), m16n8k16's C n times.
template <typename T>
__device__ __forceinline__ void wgmma_abt(float (&d)[64], const u32 (&a)[4], u64 b, bool add);

template <>
__device__ __forceinline__ void wgmma_abt<bf16>(float (&d)[64], const u32 (&a)[4], u64 b, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " REGISTERS_64 ", {%64, %65, %66, %67}, %68, add, 1, 1, 0;\n"
      "}"
      : ACCUMULATORS_64(d)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add));
}

template <>
__device__ __forceinline__ void wgmma_abt<f16>(float (&d)[64], const u32 (&a)[4], u64 b, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " REGISTERS_64 ", {%64, %65, %66, %67}, %68, add, 1, 1, 0;\n"
      "}"
      : ACCUMULATORS_64(d)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add));
}

// d [64, 128] += a [64, 16] · b [16, 128]: as above, but b is 16 rows of two panels.
__device__ __forceinline__ void wgmma_ab(float (&d)[64], const u32 (&a)[4], u64 b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " REGISTERS_64 ", {%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"
               : ACCUMULATORS_64(d)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// What products of a warpgroup multiply when both operands lie in shared memory, and what they add up.
enum Operand { kBf16 = 1, kInt8 = 5, kE4m3 = 6 };
template <Operand>
struct SummedOf {
  typedef float type;
};
template <>
struct SummedOf<kInt8> {
  typedef int type;
};
template <Operand OPERAND>
using Summed = typename SummedOf<OPERAND>::type;

// d [64, N] (+)= a [64, 32 bytes] · b [N, 32 bytes]ᵀ: 32 bytes of every row of a panel; accumulators as above.
template <Operand OPERAND, typename T, int SUMS>
__device__ __forceinline__ void wgmma_abt(T (&d)[SUMS], u64 a, u64 b, bool add);

#define WGMMA_SHARED(operand, SUM, shape, modifiers)                                                                         \
  template <>                                                                                                                \
  __device__ __forceinline__ void wgmma_abt<operand>(Summed<operand> (&d)[64], u64 a, u64 b, bool add) {                     \
    asm volatile(                                                                                                            \
        "{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"                                                                     \
        "wgmma.mma_async.sync.aligned.m64n128" shape " {" REGISTERS_0_TO_63 "}, %64, %65, add" modifiers ";\n}"              \
        : SIXTY_FOUR_OF(SUM, d, 0)                                                                                           \
        : "l"(a), "l"(b), "r"((int)add));                                                                                    \
  }                                                                                                                          \
  template <>                                                                                                                \
  __device__ __forceinline__ void wgmma_abt<operand>(Summed<operand> (&d)[128], u64 a, u64 b, bool add) {                    \
    asm volatile(                                                                                                            \
        "{\n.reg .pred add;\nsetp.ne.b32 add, %130, 0;\n"                                                                    \
        "wgmma.mma_async.sync.aligned.m64n256" shape " {" REGISTERS_0_TO_63 ", " REGISTERS_64_TO_127                         \
        "}, %128, %129, add" modifiers ";\n}"                                                                                \
        : SIXTY_FOUR_OF(SUM, d, 0), SIXTY_FOUR_OF(SUM, d, 64)                                                                \
        : "l"(a), "l"(b), "r"((int)add));                                                                                    \
  }
WGMMA_SHARED(kBf16, "+f", "k16.f32.bf16.bf16", ", 1, 1, 0, 0")
WGMMA_SHARED(kInt8, "+r", "k32.s32.s8.s8", "")
WGMMA_SHARED(kE4m3, "+f", "k32.f32.e4m3.e4m3", ", 1, 1")

// Lane i of a quad gets word i of all four.
__device__ __forceinline__ void transpose(u32 (&word)[4], u32 quad) {
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
    const bool upper = quad & bit;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (i & bit) continue;
      const u32 got = __shfl_xor_sync(0xffffffffu, upper ? word[i] : word[i | bit], bit);
      word[i] = upper ? got : word[i], word[i | bit] = upper ? word[i | bit] : got;
    }
  }
}
