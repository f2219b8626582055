// Element types without toolkit headers: NVRTC compiles these alone.
//
// bf16 is the upper half of an f32, f16 the IEEE half. Rounding is to nearest even, as the reference executor rounds; a
// NaN stays one.

#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct bf16 {
  u16 bits;
};
struct f16 {
  u16 bits;
};

// The element types that constants name: -DX_TYPE=1 makes Element<X_TYPE> a bf16. Same numbers as DType::code.
template <int CODE>
struct ElementOf;
template <>
struct ElementOf<0> {
  typedef float type;
};
template <>
struct ElementOf<1> {
  typedef bf16 type;
};
template <>
struct ElementOf<2> {
  typedef f16 type;
};
template <>
struct ElementOf<3> {
  typedef int type;
};
template <>
struct ElementOf<4> {
  typedef u8 type;
};
template <int CODE>
using Element = typename ElementOf<CODE>::type;

// Widening is exact.
__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
__device__ __forceinline__ float to_f32(f16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

// One rounding, by the instruction that sm_80 brought.
template <typename T>
__device__ __forceinline__ T from_f32(float x);
template <>
__device__ __forceinline__ float from_f32<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bf16 from_f32<bf16>(float x) {
  bf16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
template <>
__device__ __forceinline__ f16 from_f32<f16>(float x) {
  f16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}

// Two values in one instruction: `low` in the lower half of the word.
template <typename T>
__device__ __forceinline__ u32 pack2(float low, float high);
template <>
__device__ __forceinline__ u32 pack2<bf16>(float low, float high) {
  u32 y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
template <>
__device__ __forceinline__ u32 pack2<f16>(float low, float high) {
  u32 y;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}

// What a tensor of type T would hold of x; where official code rounds between two operations.
template <typename T>
__device__ __forceinline__ float round_to(float x) {
  return to_f32(from_f32<T>(x));
}
// The upper of two halves is at once the widened value, and the conversion of two is the faster one.
template <>
__device__ __forceinline__ float round_to<bf16>(float x) {
  return __uint_as_float(pack2<bf16>(0.0f, x));
}

// N neighbouring elements, moved in one access of up to 16 bytes; the address is a multiple of their size.
template <typename T, int N>
struct alignas(sizeof(T) * N) Vec {
  static_assert(sizeof(T) * N <= 16, "an access moves at most 16 bytes");
  T v[N];

  __device__ __forceinline__ static Vec load(const T* from) { return *reinterpret_cast<const Vec*>(from); }
  __device__ __forceinline__ void store(T* to) const { *reinterpret_cast<Vec*>(to) = *this; }
};

// The 16 bytes of four words in one access, also where the compiler would split a Vec's store.
__device__ __forceinline__ void store_words(void* to, const u32 (&word)[4]) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(word[0]), "r"(word[1]),
               "r"(word[2]), "r"(word[3])
               : "memory");
}
// The same of what is not read again soon: the L2 cache lets go of it first.
__device__ __forceinline__ void stream_words(void* to, const u32 (&word)[4]) {
  __stcs(reinterpret_cast<uint4*>(to), make_uint4(word[0], word[1], word[2], word[3]));
}
