// Kernels with one mistake each, most of which a GPU would let pass most of the time. tests/ops/host_twin.rs
// says what the twin must report.
#include "prelude.cuh"

// Doubles every one of 32 floats, without the barrier between writing and reading.
extern "C" __global__ void race_read(const float* x, float* y) {
  __shared__ float held[64];
  held[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = held[threadIdx.x / 2];
}
EXPORT_KERNEL(race_read)

// Shifts 64 floats by one in place, without the barrier between reading and writing.
extern "C" __global__ void race_overwrite(const float* x, float* y) {
  __shared__ float held[64];
  held[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  float next = held[min(threadIdx.x + 1, 63)];
  held[threadIdx.x] = next;
  __syncthreads();
  y[threadIdx.x] = held[threadIdx.x];
}
EXPORT_KERNEL(race_overwrite)

// All threads write one word.
extern "C" __global__ void race_write(const float* x, float* y) {
  __shared__ float held;
  held = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = held;
}
EXPORT_KERNEL(race_write)

// Neighbouring lanes exchange through memory, ordered by a shuffle, which orders nothing.
extern "C" __global__ void race_in_warp(const float* x, float* y) {
  __shared__ float held[32];
  held[threadIdx.x] = x[threadIdx.x];
  float v = __shfl_xor_sync(FULL_WARP, x[threadIdx.x], 1);
  y[threadIdx.x] = v + held[threadIdx.x ^ 1];
}
EXPORT_KERNEL(race_in_warp)

// Each half of the warp synchronises, but the upper one reads what the lower one wrote.
extern "C" __global__ void race_across_masks(const float* x, float* y) {
  __shared__ float held[32];
  held[threadIdx.x] = x[threadIdx.x];
  __syncwarp(threadIdx.x < 16 ? 0x0000ffffu : 0xffff0000u);
  y[threadIdx.x] = held[threadIdx.x & 15];
}
EXPORT_KERNEL(race_across_masks)

// An atomic counter read without a barrier.
extern "C" __global__ void race_with_atomic(uint32* y) {
  __shared__ uint32 counter;
  if (threadIdx.x == 0) counter = 0;
  __syncthreads();
  atomicAdd(&counter, 1u);
  y[threadIdx.x] = counter;
}
EXPORT_KERNEL(race_with_atomic)

// Doubles every one of 32 floats by way of device memory, without the barrier between warps.
extern "C" __global__ void global_race_in_block(const float* x, float* y) {
  y[threadIdx.x] = x[threadIdx.x];
  float v = y[threadIdx.x / 2];
  __syncthreads();
  y[threadIdx.x] = v;
}
EXPORT_KERNEL(global_race_in_block)

// Every block writes the same rows.
extern "C" __global__ void global_written_twice(float* y) { y[threadIdx.x] = float(blockIdx.x); }
EXPORT_KERNEL(global_written_twice)

// Every block reads what the one before wrote: right in one order of blocks only.
extern "C" __global__ void global_from_another_block(float* y) {
  y[blockIdx.x] = blockIdx.x == 0 ? 1.0f : y[blockIdx.x - 1];
}
EXPORT_KERNEL(global_from_another_block)

// Shifts in place, each block one element.
extern "C" __global__ void global_over_readers(float* y) {
  float next = y[blockIdx.x + 1];
  y[blockIdx.x] = next;
}
EXPORT_KERNEL(global_over_readers)

// The count of blocks that were there is taken before the results are written.
extern "C" __global__ void count_before_result(float* y, uint32* counter) {
  __shared__ int flag;
  bool last = last_block(counter, gridDim.x, &flag);
  if (threadIdx.x == 0) y[blockIdx.x] = 1.0f;
  if (last && threadIdx.x == 0)
    for (int i = 0; i < int(gridDim.x); i++) y[32] += y[i];
}
EXPORT_KERNEL(count_before_result)

// One half of the block stops at one barrier, the other at another.
extern "C" __global__ void two_barriers(float* y) {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
  y[threadIdx.x] = 1.0f;
}
EXPORT_KERNEL(two_barriers)

// A barrier of the block against one of the warp.
extern "C" __global__ void divergent_barrier(float* y) {
  if (threadIdx.x < 16)
    __syncthreads();
  else
    __syncwarp();
  y[threadIdx.x] = 1.0f;
}
EXPORT_KERNEL(divergent_barrier)

// A sum over the warp that half of the warp does not come to.
extern "C" __global__ void missing_lanes(const float* x, float* y) {
  if (threadIdx.x < 16) y[threadIdx.x] = warp_sum(x[threadIdx.x]);
}
EXPORT_KERNEL(missing_lanes)

// A lane in a mask that is not its own.
extern "C" __global__ void foreign_mask(float* y) {
  y[threadIdx.x] = __shfl_sync(0x0000ffffu, 1.0f, 0);
}
EXPORT_KERNEL(foreign_mask)

// Waits for another block, which on a full device may never run.
extern "C" __global__ void waits_forever(const int* flag) {
  while (*const_cast<const volatile int*>(flag) == 0) {
  }
}
EXPORT_KERNEL(waits_forever)

extern "C" __global__ void read_beyond(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x + 1]; }
EXPORT_KERNEL(read_beyond)

extern "C" __global__ void write_beyond(float* y) { y[threadIdx.x + 1] = 1.0f; }
EXPORT_KERNEL(write_beyond)

extern "C" __global__ void write_before(float* y) { y[int(threadIdx.x) - 1] = 1.0f; }
EXPORT_KERNEL(write_before)

extern "C" __global__ void write_null(float* y) { y[threadIdx.x] = 1.0f; }
EXPORT_KERNEL(write_null)

extern "C" __global__ void atomic_beyond(uint32* y) { atomicAdd(y + threadIdx.x + 1, 1u); }
EXPORT_KERNEL(atomic_beyond)

// One row more than the dynamic shared memory of the launch holds.
extern "C" __global__ void shared_beyond(float* y) {
  DYNAMIC_SHARED(float, held);
  held[threadIdx.x + 1] = 1.0f;
  __syncthreads();
  y[threadIdx.x] = held[threadIdx.x];
}
EXPORT_KERNEL(shared_beyond)

// Dynamic shared memory as large as a block can have, and one float beside it.
extern "C" __global__ void a_float_too_much(float* y) {
  __shared__ float one;
  if (threadIdx.x == 0) one = 1.0f;
  __syncthreads();
  y[threadIdx.x] = one;
}
EXPORT_KERNEL(a_float_too_much)

extern "C" __global__ void misaligned_pack(const float* x, float* y) {
  store_pack(y + 4 * threadIdx.x, load_pack<4>(x + 4 * threadIdx.x + 1));
}
EXPORT_KERNEL(misaligned_pack)

extern "C" __global__ void misaligned_cast(const uint16* x, uint32* y) {
  y[threadIdx.x] = *reinterpret_cast<const uint32*>(x + threadIdx.x);
}
EXPORT_KERNEL(misaligned_cast)

// Half of what is read was never written.
extern "C" __global__ void unwritten_shared(float* y) {
  __shared__ float held[64];
  if (threadIdx.x < 32) held[threadIdx.x] = 1.0f;
  __syncthreads();
  y[threadIdx.x] = held[threadIdx.x];
}
EXPORT_KERNEL(unwritten_shared)

// What the block before left in shared memory.
extern "C" __global__ void left_by_another_block(float* y) {
  __shared__ float held[64];
  if (blockIdx.x == 0) held[threadIdx.x] = 1.0f;
  __syncthreads();
  y[threadIdx.x] = held[threadIdx.x];
}
EXPORT_KERNEL(left_by_another_block)

// Blocks of a cooperative launch that each write a number of y and read their neighbour's; MISTAKE says what is wrong.
template <int MISTAKE>
DEVICE void neighbours(uint32* counter, float* y) {
  __shared__ float held;
  Meetings meetings = {counter, gridDim.x};
  uint32 next = (blockIdx.x + 1) % gridDim.x;
  if (MISTAKE == 1 && blockIdx.x == 2) return;
  if (threadIdx.x == 0) {
    held = 1.0f;
    y[blockIdx.x] = 1.0f;
  }
  if (MISTAKE != 2) meetings.meet();
  float other = threadIdx.x == 0 ? y[next] : 0.0f;
  if (MISTAKE != 3) meetings.meet();
  if (threadIdx.x == 0) y[blockIdx.x] = MISTAKE == 4 ? held : other;
  meetings.leave();
}

extern "C" __global__ void a_block_stays_away(uint32* counter, float* y) { neighbours<1>(counter, y); }
EXPORT_KERNEL(a_block_stays_away)
extern "C" __global__ void reads_before_they_meet(uint32* counter, float* y) { neighbours<2>(counter, y); }
EXPORT_KERNEL(reads_before_they_meet)
extern "C" __global__ void writes_before_they_meet(uint32* counter, float* y) { neighbours<3>(counter, y); }
EXPORT_KERNEL(writes_before_they_meet)
extern "C" __global__ void keeps_shared_memory(uint32* counter, float* y) { neighbours<4>(counter, y); }
EXPORT_KERNEL(keeps_shared_memory)

#if TENSOR_CORES

// Copies 64 floats in two groups; WAIT as the argument says: none, for the first group only, for both.
template <int WAIT>
DEVICE void copy_in_groups(const float* x, float* y) {
  __shared__ __align__(16) float held[64];
  int t = threadIdx.x;
  if (t < 8) cp_async_16(held + 4 * t, x + 4 * t);
  cp_async_commit();
  if (t < 8) cp_async_16(held + 32 + 4 * t, x + 32 + 4 * t);
  cp_async_commit();
  if (WAIT > 0) cp_async_wait<2 - WAIT>();
  __syncthreads();
  y[t] = held[t];
  y[32 + t] = held[32 + t];
}

extern "C" __global__ void copy_without_wait(const float* x, float* y) { copy_in_groups<0>(x, y); }
EXPORT_KERNEL(copy_without_wait)

extern "C" __global__ void copy_with_weak_wait(const float* x, float* y) { copy_in_groups<1>(x, y); }
EXPORT_KERNEL(copy_with_weak_wait)

extern "C" __global__ void copy_with_wait(const float* x, float* y) { copy_in_groups<2>(x, y); }
EXPORT_KERNEL(copy_with_wait)

// Waits, but no barrier tells the other threads.
extern "C" __global__ void copy_without_barrier(const float* x, float* y) {
  __shared__ __align__(16) float held[32];
  if (threadIdx.x < 8) cp_async_16(held + 4 * threadIdx.x, x + 4 * threadIdx.x);
  cp_async_commit();
  cp_async_wait<0>();
  y[threadIdx.x] = held[threadIdx.x];
}
EXPORT_KERNEL(copy_without_barrier)

// Refills what others may still be reading.
extern "C" __global__ void copy_over_readers(const float* x, float* y) {
  __shared__ __align__(16) float held[32];
  float sum = 0.0f;
  for (int i = 0; i < 2; i++) {
    if (threadIdx.x < 8) cp_async_16(held + 4 * threadIdx.x, x + 32 * i + 4 * threadIdx.x);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    sum += held[31 - threadIdx.x];
  }
  y[threadIdx.x] = sum;
}
EXPORT_KERNEL(copy_over_readers)

extern "C" __global__ void copy_misaligned(const float* x) {
  __shared__ __align__(16) float held[32];
  cp_async_16(held, x + 1);
}
EXPORT_KERNEL(copy_misaligned)

// Half a warp has no fragments to give.
extern "C" __global__ void half_a_warp(float* y) {
  uint32 a[4] = {}, b[2] = {};
  float d[4] = {};
  mma_m16n8k16<Real>(d, a, b);
  y[threadIdx.x] = d[0];
}
EXPORT_KERNEL(half_a_warp)

// Rows of 36 bytes are not 16-byte aligned.
extern "C" __global__ void ldmatrix_misaligned(uint32* y) {
  __shared__ __align__(16) uint16 held[32 * 18];
  for (int i = threadIdx.x; i < 32 * 18; i += 32) held[i] = uint16(i);
  __syncthreads();
  uint32 r[4];
  ldmatrix_x4<false>(r, held + 18 * threadIdx.x);
  y[threadIdx.x] = r[0];
}
EXPORT_KERNEL(ldmatrix_misaligned)

#endif
