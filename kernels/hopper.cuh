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

// The L2 cache lets go of what it fetches under this policy before anything else.
__device__ __forceinline__ u64 evict_first() {
  u64 policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
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

// How an operand lies in shared memory, from its first panel on. Groups of 8 rows are 1024 bytes apart. Where the rows are
// the dimension summed over, the panels that hold further columns are `panel` bytes apart; otherwise `panel` is not used.
__device__ __forceinline__ u64 wgmma_operand(u32 address, u32 panel) {
  constexpr u64 kSwizzle128 = 1ull << 62;
  return kSwizzle128 | (u64)(1024 >> 4) << 32 | (u64)(panel >> 4) << 16 | (address & 0x3ffff) >> 4;
}

#define ACCUMULATORS_64(d)                                                                                              \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),            \
      "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),             \
      "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),            \
      "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]),            \
      "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]),            \
      "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),            \
      "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]),            \
      "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define REGISTERS_64                                                                                                     \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, " \
  "%25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "  \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"

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
