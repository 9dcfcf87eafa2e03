// CUDA C's words for a C++ compiler, so that the kernels run unchanged on the CPU, for the tests.
//
// A kernel file is compiled into a library of its own (as on the device, where it is a module of its own);
// this header declares what it needs of the runtime in runtime.cpp, which is compiled without the
// instrumentation that the kernels get: there every load and store calls a check first (memory.h).
//
// Left out on purpose, so that a kernel that uses them does not compile: atomics on floats (their order
// is not fixed) and __activemask (what it gives is up to the compiler).
#pragma once

#include <math.h>
#include <stddef.h>
#include <string.h>

#include <type_traits>
#include <utility>

#include "launch.h"

typedef unsigned char uint8;
typedef unsigned short uint16;
typedef unsigned int uint32;
typedef unsigned long long uint64;

// ---------------------------------------------------------------- qualifiers

#define __host__
#define __device__
#define __global__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define DEVICE __forceinline__
// CUDA's compilers take alignas behind __shared__ too, where C++ has no place for it.
#define alignas(bytes) __attribute__((aligned(bytes)))

// Static shared memory is the library's thread-local memory and nothing else is, which is how the runtime
// finds it: blocks run one at a time on an OS thread. What a block has in it is lost while it waits for others.
#define __shared__ static thread_local

#define DYNAMIC_SHARED(T, name) T* name = static_cast<T*>(twin::dynamic_shared())

// ---------------------------------------------------------------- vector types

#define TWIN_VECTOR_TYPE(T, name, align2, align4)                                \
  struct __align__(align2) name##2 { T x, y; };                                  \
  struct name##3 { T x, y, z; };                                                 \
  struct __align__(align4) name##4 { T x, y, z, w; };                            \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                     \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }             \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
TWIN_VECTOR_TYPE(unsigned char, uchar, 2, 4)
TWIN_VECTOR_TYPE(unsigned short, ushort, 4, 8)
TWIN_VECTOR_TYPE(int, int, 8, 16)
TWIN_VECTOR_TYPE(unsigned int, uint, 8, 16)
TWIN_VECTOR_TYPE(float, float, 8, 16)
#undef TWIN_VECTOR_TYPE

struct __align__(16) double2 { double x, y; };
inline double2 make_double2(double x, double y) { return {x, y}; }

// ---------------------------------------------------------------- the runtime (runtime.cpp)

namespace twin {

// The same in a fiber from start to end, which is all that a kernel's code sees.
__attribute__((const)) uint3 thread_index();
__attribute__((const)) uint3 block_index();
__attribute__((const)) uint3 block_size();
__attribute__((const)) uint3 grid_size();
__attribute__((const)) void* dynamic_shared();

// `where` is the source line, for messages and to tell one barrier from another.
void barrier(const char* where);
void warp_barrier(const char* where, uint32 mask);
uint32 ballot(const char* where, const char* op, uint32 mask, bool predicate);

// Lets other blocks of a cooperative launch run until they have counted *counter up to `count`.
void wait_for_count(const char* where, const uint32* counter, uint32 count);

enum class Shuffle { index, up, down, exclusive_or };
uint64 shuffle_bits(const char* where, Shuffle kind, uint32 mask, uint64 bits, int amount, int width);

// Bounds and alignment of an access that the kernel is about to make with one instruction.
void check_access(const void* address, size_t bytes, const char* what);

uint32 atomic_add(uint32* at, uint32 value);
uint32 atomic_max(uint32* at, uint32 value);
uint32 atomic_min(uint32* at, uint32 value);
uint32 atomic_or(uint32* at, uint32 value);
uint32 atomic_and(uint32* at, uint32 value);
uint32 atomic_exchange(uint32* at, uint32 value);
uint32 atomic_compare_and_swap(uint32* at, uint32 expected, uint32 value);
int atomic_max_signed(int* at, int value);
int atomic_min_signed(int* at, int value);

// By value, so that the fragments stay in registers here too.
struct Fragment {
  uint32 at[4];
};
struct Accumulator {
  float at[4];
};
// What a lane brings to an mma, already converted: its 8 elements of a and 4 of b, in register order.
struct Operands {
  float a[8], b[4];
};
Accumulator mma(Accumulator d, Operands operands);
Fragment ldmatrix(const void* row, int matrices, bool transposed);

void cp_async_16(void* shared, const void* global, bool in_range);
void cp_async_commit();
void cp_async_wait(int pending);

__attribute__((const)) float half_to_float(uint16 bits);
__attribute__((const)) uint16 float_to_half(float value);

// For a launch that rounds as a device does: `ulps` units in the last place above or below `value`.
float approximate(float value, uint32 ulps);

[[noreturn]] void trap();

}  // namespace twin

#define threadIdx twin::thread_index()
#define blockIdx twin::block_index()
#define blockDim twin::block_size()
#define gridDim twin::grid_size()
#define warpSize 32

// ---------------------------------------------------------------- barriers and warp operations

#define TWIN_TEXT_OF(x) #x
#define TWIN_TEXT(x) TWIN_TEXT_OF(x)
#define TWIN_HERE __FILE__ ":" TWIN_TEXT(__LINE__)

namespace twin {

// A call with or without a mask.
struct WarpBarrier {
  const char* where;
  DEVICE void operator()(uint32 mask = 0xffffffffu) const { warp_barrier(where, mask); }
};

template <class T>
DEVICE T shuffle(const char* where, Shuffle kind, uint32 mask, T value, int amount, int width = 32) {
  static_assert(std::is_arithmetic<T>::value && (sizeof(T) == 4 || sizeof(T) == 8),
                "CUDA shuffles 32-bit and 64-bit numbers");
  uint64 bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = shuffle_bits(where, kind, mask, bits, amount, width);
  memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace twin

#define __syncthreads() twin::barrier(TWIN_HERE)
#define __syncwarp(...) twin::WarpBarrier{TWIN_HERE}(__VA_ARGS__)
#define __shfl_sync(...) twin::shuffle(TWIN_HERE, twin::Shuffle::index, __VA_ARGS__)
#define __shfl_up_sync(...) twin::shuffle(TWIN_HERE, twin::Shuffle::up, __VA_ARGS__)
#define __shfl_down_sync(...) twin::shuffle(TWIN_HERE, twin::Shuffle::down, __VA_ARGS__)
#define __shfl_xor_sync(...) twin::shuffle(TWIN_HERE, twin::Shuffle::exclusive_or, __VA_ARGS__)
#define __ballot_sync(mask, p) twin::ballot(TWIN_HERE, "__ballot_sync", mask, (p) != 0)
#define __any_sync(mask, p) int(twin::ballot(TWIN_HERE, "__any_sync", mask, (p) != 0) != 0)
#define __all_sync(mask, p) int(twin::ballot(TWIN_HERE, "__all_sync", mask, (p) == 0) == 0)

// Blocks run one after another, so what a fence orders is in order already.
inline void __threadfence() {}
inline void __threadfence_block() {}

// ---------------------------------------------------------------- atomics, on 32-bit integers only

inline uint32 atomicAdd(uint32* at, uint32 value) { return twin::atomic_add(at, value); }
inline uint32 atomicMax(uint32* at, uint32 value) { return twin::atomic_max(at, value); }
inline uint32 atomicMin(uint32* at, uint32 value) { return twin::atomic_min(at, value); }
inline uint32 atomicOr(uint32* at, uint32 value) { return twin::atomic_or(at, value); }
inline uint32 atomicAnd(uint32* at, uint32 value) { return twin::atomic_and(at, value); }
inline uint32 atomicExch(uint32* at, uint32 value) { return twin::atomic_exchange(at, value); }
inline uint32 atomicCAS(uint32* at, uint32 expected, uint32 value) {
  return twin::atomic_compare_and_swap(at, expected, value);
}
inline int atomicAdd(int* at, int value) {
  return int(atomicAdd(reinterpret_cast<uint32*>(at), uint32(value)));
}
inline int atomicMax(int* at, int value) { return twin::atomic_max_signed(at, value); }
inline int atomicMin(int* at, int value) { return twin::atomic_min_signed(at, value); }
inline int atomicOr(int* at, int value) {
  return int(atomicOr(reinterpret_cast<uint32*>(at), uint32(value)));
}
inline int atomicAnd(int* at, int value) {
  return int(atomicAnd(reinterpret_cast<uint32*>(at), uint32(value)));
}
inline int atomicExch(int* at, int value) {
  return int(atomicExch(reinterpret_cast<uint32*>(at), uint32(value)));
}
inline int atomicCAS(int* at, int expected, int value) {
  return int(atomicCAS(reinterpret_cast<uint32*>(at), uint32(expected), uint32(value)));
}

// ---------------------------------------------------------------- arithmetic

namespace twin {

// memcpy and not a cast: the compiler folds it, and no rule of aliasing is bent.
template <class To, class From>
DEVICE To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "same_bits keeps the size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

DEVICE float reciprocal_root(float v) { return 1.0f / sqrtf(v); }

// A function that a device approximates, with its largest error there. TWIN_DEVICE_ROUNDING is defined for kernels
// that are to round as a device does.
#ifdef TWIN_DEVICE_ROUNDING
#define TWIN_WITHIN(ulps, value) twin::approximate(value, ulps)
#else
#define TWIN_WITHIN(ulps, value) (value)
#endif

// Beyond 128 it is infinite or 0, which have no error.
DEVICE float fast_exp(float v) { return TWIN_WITHIN(2 + uint32(1.173f * fminf(fabsf(v), 128.0f)), expf(v)); }
// A product with 1/b, and so exact where b is 1.
DEVICE float fast_divide(float a, float b) { return b == 1.0f ? a : TWIN_WITHIN(2, a / b); }

}  // namespace twin

DEVICE float __uint_as_float(uint32 bits) { return twin::same_bits<float>(bits); }
DEVICE uint32 __float_as_uint(float v) { return twin::same_bits<uint32>(v); }
DEVICE float __int_as_float(int bits) { return twin::same_bits<float>(bits); }
DEVICE int __float_as_int(float v) { return twin::same_bits<int>(v); }

// Macros, because some C libraries declare functions of these names. The errors are those of the CUDA C++ programming
// guide, that of ex2.approx (__exp2f) the PTX ISA's 2^-22 of the value. Division and square root are exact to the
// rounding, as NVRTC compiles them.
#define rsqrtf(v) TWIN_WITHIN(2, twin::reciprocal_root(v))
#define expf(v) TWIN_WITHIN(2, expf(v))
#define logf(v) TWIN_WITHIN(1, logf(v))
#define erff(v) TWIN_WITHIN(2, erff(v))
#define __expf(v) twin::fast_exp(v)
#define __exp2f(v) TWIN_WITHIN(4, exp2f(v))
#define __fdividef(a, b) twin::fast_divide(a, b)
#define __frsqrt_rn(v) twin::reciprocal_root(v)
#define __fdiv_rn(a, b) ((a) / (b))
#define __frcp_rn(v) (1.0f / (v))
#define __fsqrt_rn(v) sqrtf(v)
#define __fadd_rn(a, b) ((a) + (b))
#define __fmul_rn(a, b) ((a) * (b))
#define __fmaf_rn(a, b, c) fmaf(a, b, c)
#define __float2int_rn(v) int(rintf(v))
#define __float2int_rz(v) int(v)
#define __float2int_rd(v) int(floorf(v))
#define __float2int_ru(v) int(ceilf(v))

DEVICE int __popc(uint32 v) { return __builtin_popcount(v); }
DEVICE int __clz(int v) { return v == 0 ? 32 : __builtin_clz(uint32(v)); }
DEVICE int __ffs(int v) { return __builtin_ffs(v); }
DEVICE uint32 __umulhi(uint32 a, uint32 b) { return uint32(uint64(a) * b >> 32); }

#define TWIN_MIN_MAX(T)                               \
  DEVICE T min(T a, T b) { return b < a ? b : a; }    \
  DEVICE T max(T a, T b) { return a < b ? b : a; }
TWIN_MIN_MAX(int)
TWIN_MIN_MAX(uint32)
TWIN_MIN_MAX(long)
TWIN_MIN_MAX(unsigned long)
TWIN_MIN_MAX(long long)
TWIN_MIN_MAX(uint64)
#undef TWIN_MIN_MAX
DEVICE float min(float a, float b) { return fminf(a, b); }
DEVICE float max(float a, float b) { return fmaxf(a, b); }
DEVICE double min(double a, double b) { return fmin(a, b); }
DEVICE double max(double a, double b) { return fmax(a, b); }
DEVICE uint32 min(int a, uint32 b) { return min(uint32(a), b); }
DEVICE uint32 min(uint32 a, int b) { return min(a, uint32(b)); }
DEVICE uint32 max(int a, uint32 b) { return max(uint32(a), b); }
DEVICE uint32 max(uint32 a, int b) { return max(a, uint32(b)); }

// ---------------------------------------------------------------- loads and stores with a cache hint

template <class T>
DEVICE T __ldg(const T* from) {
  twin::check_access(from, sizeof(T), "__ldg");
  return *from;
}
template <class T>
DEVICE T __ldcg(const T* from) {
  twin::check_access(from, sizeof(T), "__ldcg");
  return *from;
}
template <class T>
DEVICE T __ldcs(const T* from) {
  twin::check_access(from, sizeof(T), "__ldcs");
  return *from;
}
template <class T>
DEVICE void __stcg(T* to, T value) {
  twin::check_access(to, sizeof(T), "__stcg");
  *to = value;
}
template <class T>
DEVICE void __stcs(T* to, T value) {
  twin::check_access(to, sizeof(T), "__stcs");
  *to = value;
}

DEVICE void __trap() { twin::trap(); }

// ---------------------------------------------------------------- the prelude's instructions

namespace twin {

// `widen` turns the 16 bits of an element into its number.
template <class Widen>
DEVICE void mma_m16n8k16(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2], Widen widen) {
  Operands operands;
  for (int i = 0; i < 8; i++) operands.a[i] = widen(uint16(a[i >> 1] >> (i & 1) * 16));
  for (int i = 0; i < 4; i++) operands.b[i] = widen(uint16(b[i >> 1] >> (i & 1) * 16));
  Accumulator sum = mma({{d[0], d[1], d[2], d[3]}}, operands);
  for (int i = 0; i < 4; i++) d[i] = sum.at[i];
}

DEVICE void ldmatrix_x4(uint32 (&r)[4], const void* row, bool transposed) {
  Fragment loaded = ldmatrix(row, 4, transposed);
  for (int i = 0; i < 4; i++) r[i] = loaded.at[i];
}

DEVICE void ldmatrix_x2(uint32 (&r)[2], const void* row, bool transposed) {
  Fragment loaded = ldmatrix(row, 2, transposed);
  for (int i = 0; i < 2; i++) r[i] = loaded.at[i];
}

// ---------------------------------------------------------------- kernels that the host can launch

#ifndef TWIN_RUNTIME

static const Kernel* kernels = nullptr;

template <class... P>
struct Parameters {
  static const uint8* sizes() {
    static const uint8 of[] = {uint8(sizeof(P))..., 0};
    return of;
  }
  template <size_t... I>
  __attribute__((no_sanitize("thread"))) static void call(void (*kernel)(P...), void** arguments,
                                                          std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_const_t<P>*>(arguments[I])...);
  }
};

template <class... P>
Kernel describe(void (*)(P...), const char* name, void (*run)(void**)) {
  return {name, run, Parameters<P...>::sizes(), sizeof...(P), kernels};
}

template <class... P>
__attribute__((no_sanitize("thread"))) void run_kernel(void (*kernel)(P...), void** arguments) {
  Parameters<P...>::call(kernel, arguments, std::index_sequence_for<P...>{});
}

struct Export {
  Kernel kernel;
  explicit Export(const Kernel& described) : kernel(described) { kernels = &kernel; }
};

}  // namespace twin

#define EXPORT_KERNEL(name)                \
  static twin::Export twin_export_##name( \
      twin::describe(&name, #name, [](void** arguments) { twin::run_kernel(&name, arguments); }));

extern "C" __attribute__((visibility("default"))) const twin::Kernel* twin_kernels() { return twin::kernels; }

// Makes this OS thread's copy of the static shared memory exist.
extern "C" __attribute__((visibility("default"))) void twin_touch() {
  static thread_local volatile int touched = 0;
  touched = touched + 1;
}

#else

}  // namespace twin

#endif  // TWIN_RUNTIME
