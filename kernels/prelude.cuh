// What every kernel file starts from: the activation type, 16-byte accesses, reductions, and thin wrappers
// of the few instructions that CUDA C has no word for.
//
// The kernels include this file and nothing else, so they compile without CUDA's headers. NVRTC defines
// __CUDACC_RTC__; without it the same source is compiled by a C++ compiler against twin/twin.h, which runs
// it on the CPU for the tests. Each wrapper of an instruction has one body here and one there.
//
// The activation type Real is chosen by defining one of REAL_F16, REAL_BF16, REAL_F32. Trained tensors,
// statistics, losses and all accumulation are float.
#pragma once

#ifdef __CUDACC_RTC__
typedef unsigned char uint8;
typedef unsigned short uint16;
typedef unsigned int uint32;
typedef unsigned long long uint64;
#define DEVICE __device__ __forceinline__
// A kernel that the host launches by this name.
#define EXPORT_KERNEL(name)
// Dynamic shared memory, 128-byte aligned.
#define DYNAMIC_SHARED(T, name)                                          \
  extern __shared__ __align__(128) unsigned char dynamic_shared_bytes[]; \
  T* name = reinterpret_cast<T*>(dynamic_shared_bytes)
#else
#include "twin/twin.h"
#endif

// ---------------------------------------------------------------- numbers

struct half {
  uint16 bits;
};
struct bf16 {
  uint16 bits;
};

#if defined(REAL_F16)
typedef half Real;
#elif defined(REAL_BF16)
typedef bf16 Real;
#elif defined(REAL_F32)
typedef float Real;
#else
#error "define REAL_F16, REAL_BF16 or REAL_F32"
#endif

// Tensor cores with 16-bit operands and asynchronous copies: sm_80 and later, and the twin of such a device.
#if !defined(REAL_F32) && __CUDA_ARCH__ >= 800
#define TENSOR_CORES 1
#else
#define TENSOR_CORES 0
#endif

DEVICE float to_float(float v) { return v; }

DEVICE float to_float(half v) {
#ifdef __CUDACC_RTC__
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));
  return f;
#else
  return twin::half_to_float(v.bits);
#endif
}

DEVICE float to_float(bf16 v) { return __uint_as_float(uint32(v.bits) << 16); }

// 2^v within some units in the last place, in one instruction; 0 for -infinity.
DEVICE float fast_exp2(float v) {
#ifdef __CUDACC_RTC__
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
#else
  return __exp2f(v);
#endif
}

// Rounds to nearest even.
template <class T>
DEVICE T from_float(float v);

template <>
DEVICE float from_float<float>(float v) {
  return v;
}

template <>
DEVICE half from_float<half>(float v) {
  half h;
#ifdef __CUDACC_RTC__
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(v));
#else
  h.bits = twin::float_to_half(v);
#endif
  return h;
}

template <>
DEVICE bf16 from_float<bf16>(float v) {
  bf16 b;
#if defined(__CUDACC_RTC__) && __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(b.bits) : "f"(v));
#else
  uint32 u = __float_as_uint(v);
  b.bits = (u & 0x7fffffffu) > 0x7f800000u ? uint16(0x7fff) : uint16((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
#endif
  return b;
}

// Two 16-bit numbers in a register, `low` at the lower address.
template <class T>
DEVICE uint32 pack_pair(float low, float high) {
  return uint32(from_float<T>(low).bits) | uint32(from_float<T>(high).bits) << 16;
}

template <class T>
DEVICE float2 unpack_pair(uint32 pair) {
  T low, high;
  low.bits = uint16(pair & 0xffffu);
  high.bits = uint16(pair >> 16);
  return make_float2(to_float(low), to_float(high));
}

// ---------------------------------------------------------------- kernels one after another

// What every kernel begins with, before it reads or writes device memory. From sm_90 on a launch may be allowed to begin
// while the one before it ends: once all blocks of that have begun, the blocks of this one take the places that are free,
// and wait here until it has ended and what it wrote is seen. What waited in turn is over then, too, as every kernel
// waits. Without the permission, and elsewhere, nothing is waited for.
//
// The compiler may read what a `const … __restrict__` parameter points to before the wait, as nothing can change it while
// the kernel runs; it did where the address is the parameter itself. Such a parameter has no __restrict__, and
// tests/ops/sass.rs holds all kernels to it.
DEVICE void begin_kernel() {
#if defined(__CUDACC_RTC__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// ---------------------------------------------------------------- wide accesses

// N consecutive elements that move in one access; N·sizeof(T) is 4, 8 or 16.
template <class T, int N>
struct alignas(N * sizeof(T)) Pack {
  T at[N];
};

// Elements of T in 16 bytes.
template <class T>
struct Wide {
  static const int N = 16 / sizeof(T);
};

// One access of N·sizeof(T) bytes; `from` must be aligned to that.
template <int N, class T>
DEVICE Pack<T, N> load_pack(const T* from) {
#ifndef __CUDACC_RTC__
  twin::check_access(from, sizeof(Pack<T, N>), "load_pack");
#endif
  return *reinterpret_cast<const Pack<T, N>*>(from);
}

template <int N, class T>
DEVICE void store_pack(T* to, const Pack<T, N>& v) {
#ifndef __CUDACC_RTC__
  twin::check_access(to, sizeof(Pack<T, N>), "store_pack");
#endif
  *reinterpret_cast<Pack<T, N>*>(to) = v;
}

// ---------------------------------------------------------------- reductions, in a fixed order

const uint32 FULL_WARP = 0xffffffffu;

// The sum over the warp, in every lane.
DEVICE float warp_sum(float v) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) v += __shfl_xor_sync(FULL_WARP, v, offset);
  return v;
}

DEVICE float warp_max(float v) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) v = fmaxf(v, __shfl_xor_sync(FULL_WARP, v, offset));
  return v;
}

// The sum over a block of whole warps (one-dimensional), in every thread; `scratch` holds 32 floats of
// shared memory. Begins and ends with a barrier, so `scratch` can be used again at once.
DEVICE float block_sum(float v, float* scratch) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  v = warp_sum(v);
  __syncthreads();
  if (lane == 0) scratch[warp] = v;
  __syncthreads();
  v = warp_sum(lane < warps ? scratch[lane] : 0.0f);
  __syncthreads();
  return v;
}

// Adds 1 to a counter in device memory and returns what it was. What the thread did before, or saw done, is seen by
// whoever counts later, and what was done before the earlier counts is seen by this thread from here on.
DEVICE uint32 count_in_order(uint32* counter) {
#ifdef __CUDACC_RTC__
  uint32 before;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
#else
  return atomicAdd(counter, 1u);
#endif
}

// True in every thread of the block that is the last of `blocks` to get here; that block then sees what
// the others wrote before. `counter` starts at 0 and is 0 again afterwards. `flag`: one int of shared memory.
//
// One thread's count is enough: the barriers before and after carry its order to the others.
DEVICE bool last_block(uint32* counter, uint32 blocks, int* flag) {
  __syncthreads();
  if (threadIdx.x == 0) {
    bool last = count_in_order(counter) == blocks - 1;
    if (last) *counter = 0;
    *flag = last;
  }
  __syncthreads();
  return *flag != 0;
}

// Returns when others have counted *counter up to `count`, and sees from then on what they did before.
DEVICE void wait_for_count(const uint32* counter, uint32 count) {
#ifdef __CUDACC_RTC__
  uint32 now;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
  } while (now < count);
#else
  twin::wait_for_count(TWIN_HERE, counter, count);
#endif
}

// The meetings of all blocks of a cooperative launch. `counter` is 0 at its start, and again when all have left. A
// block keeps nothing in shared memory over a meeting.
struct Meetings {
  uint32* counter;
  uint32 blocks;
  uint32 held = 0;

  // No block goes on before all have come, and each then sees what the others wrote before.
  DEVICE void meet() {
    __syncthreads();
    held++;
    if (threadIdx.x == 0) {
      count_in_order(counter);
      wait_for_count(counter, held * blocks);
    }
    __syncthreads();
  }

  // After the last meeting.
  DEVICE void leave() {
    if (threadIdx.x == 0 && count_in_order(counter) == (held + 1) * blocks - 1) *counter = 0;
  }
};

// ---------------------------------------------------------------- tensor cores and asynchronous copies

#if TENSOR_CORES

// d[16x8] += a[16x16]·b[16x8], f32 accumulators; register layouts as in the PTX ISA, "mma.m16n8k16".
template <class T>
DEVICE void mma_m16n8k16(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2]);

#ifdef __CUDACC_RTC__
#define MMA_M16N8K16(T, name)                                                                       \
  template <>                                                                                       \
  DEVICE void mma_m16n8k16<T>(float(&d)[4], const uint32(&a)[4], const uint32(&b)[2]) {             \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." name "." name                             \
                 ".f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"                          \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                   \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));               \
  }
#else
#define MMA_M16N8K16(T, name)                                                                       \
  template <>                                                                                       \
  DEVICE void mma_m16n8k16<T>(float(&d)[4], const uint32(&a)[4], const uint32(&b)[2]) {             \
    twin::mma_m16n8k16(d, a, b, [](uint16 bits) { T v; v.bits = bits; return to_float(v); });       \
  }
#endif
MMA_M16N8K16(half, "f16")
MMA_M16N8K16(bf16, "bf16")
#undef MMA_M16N8K16

// Four 8x8 matrices of 16-bit elements from shared memory; lane l gives the address of row l%8 of matrix
// l/8, 16-byte aligned. TRANSPOSED hands each matrix out transposed.
template <bool TRANSPOSED>
DEVICE void ldmatrix_x4(uint32 (&r)[4], const void* row) {
#ifdef __CUDACC_RTC__
  uint32 p = uint32(__cvta_generic_to_shared(row));
  if (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(p) : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(p) : "memory");
#else
  twin::ldmatrix_x4(r, row, TRANSPOSED);
#endif
}

// Two 8x8 matrices; lanes 0 to 15 give the rows, the others any valid address.
template <bool TRANSPOSED>
DEVICE void ldmatrix_x2(uint32 (&r)[2], const void* row) {
#ifdef __CUDACC_RTC__
  uint32 p = uint32(__cvta_generic_to_shared(row));
  if (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1},[%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(p) : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1},[%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(p) : "memory");
#else
  twin::ldmatrix_x2(r, row, TRANSPOSED);
#endif
}

// Starts copying 16 bytes from global to shared memory, both 16-byte aligned; where `in_range` is false
// nothing is read and zeros arrive. The bytes are there after cp_async_wait in the copying thread, and
// after a barrier in the others.
DEVICE void cp_async_16(void* shared, const void* global, bool in_range = true) {
#ifdef __CUDACC_RTC__
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(uint32(__cvta_generic_to_shared(shared))),
               "l"(global), "r"(in_range ? 16 : 0)
               : "memory");
#else
  twin::cp_async_16(shared, global, in_range);
#endif
}

// Closes the group of copies started since the last commit.
DEVICE void cp_async_commit() {
#ifdef __CUDACC_RTC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  twin::cp_async_commit();
#endif
}

// Waits until at most PENDING of the latest groups are still on their way.
template <int PENDING>
DEVICE void cp_async_wait() {
#ifdef __CUDACC_RTC__
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#else
  twin::cp_async_wait(PENDING);
#endif
}

#endif  // TENSOR_CORES

// ---------------------------------------------------------------- tables

// What a block takes of an entry of a table, as backend/cuda/tables.rs writes it.
struct Chunk {
  uint32 entry, index;
};
