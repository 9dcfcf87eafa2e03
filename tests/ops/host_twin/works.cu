// Kernels that use what CUDA C has to offer, rightly: the twin must let them pass and get their results.
#include "prelude.cuh"

// y = x / sum(x) per row.
extern "C" __global__ void __launch_bounds__(256) share_of_row(const float* x, float* y, int columns) {
  __shared__ float scratch[32];
  const float* row = x + size_t(blockIdx.x) * columns;
  float sum = 0.0f;
  for (int i = threadIdx.x; i < columns; i += blockDim.x) sum += row[i];
  sum = block_sum(sum, scratch);
  for (int i = threadIdx.x; i < columns; i += blockDim.x) y[size_t(blockIdx.x) * columns + i] = row[i] / sum;
}
EXPORT_KERNEL(share_of_row)

// Every lane's result of one shuffle each, [7, 32].
extern "C" __global__ void shuffles(const int* x, int* y) {
  int lane = threadIdx.x, v = x[lane];
  y[0 * 32 + lane] = __shfl_sync(FULL_WARP, v, lane + 5);
  y[1 * 32 + lane] = __shfl_sync(FULL_WARP, v, 3, 8);
  y[2 * 32 + lane] = __shfl_up_sync(FULL_WARP, v, 2);
  y[3 * 32 + lane] = __shfl_up_sync(FULL_WARP, v, 2, 8);
  y[4 * 32 + lane] = __shfl_down_sync(FULL_WARP, v, 3);
  y[5 * 32 + lane] = __shfl_down_sync(FULL_WARP, v, 3, 16);
  y[6 * 32 + lane] = __shfl_xor_sync(FULL_WARP, v, 12);
}
EXPORT_KERNEL(shuffles)

// Groups of lanes go different ways: masks of 8 lanes, then votes of 16, then the block again.
extern "C" __global__ void partial_masks(const int* x, int* sums, uint32* votes) {
  int t = threadIdx.x, lane = t & 31, v = x[t];
  uint32 eight = 0xffu << (lane & 24), half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  for (int round = 0; round <= (lane >> 3); round++)
    for (int offset = 4; offset > 0; offset >>= 1) v += __shfl_xor_sync(eight, v, offset);
  sums[t] = v;
  if (lane < 16) {
    votes[t] = __ballot_sync(half, x[t] % 3 == 0);
  } else {
    uint32 any = __any_sync(half, x[t] == 20), all = __all_sync(half, x[t] >= 16);
    votes[t] = any << 1 | all;
  }
  __syncthreads();
  if (t == 0) sums[0] = -sums[0];
}
EXPORT_KERNEL(partial_masks)

// Lanes pass numbers on through shared memory with __syncwarp alone, in place, round after round, while
// each warp does as many rounds as its number.
extern "C" __global__ void pass_on(const int* x, int* y) {
  __shared__ int held[2][32];
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  held[warp][lane] = x[threadIdx.x];
  for (int round = 0; round <= warp; round++) {
    __syncwarp();
    int v = held[warp][(lane + 1) & 31];
    __syncwarp();
    held[warp][lane] = v;
  }
  // Through a third lane: 0 tells 1, 1 tells 2.
  if (lane < 2) __syncwarp(0x3u);
  if (lane == 1 || lane == 2) __syncwarp(0x6u);
  if (lane == 2) held[warp][0] += 1000;
  __syncthreads();
  y[threadIdx.x] = held[warp][lane];
}
EXPORT_KERNEL(pass_on)

// Counts, maxima and flags over all blocks; the last block to come sums what the blocks left, in order.
extern "C" __global__ void over_blocks(const uint32* x, uint32* counter, uint32* maximum, int* least,
                                       uint32* bits, float* parts, float* sum) {
  __shared__ uint32 odd;
  __shared__ int flag;
  uint32 v = x[blockIdx.x * blockDim.x + threadIdx.x];
  if (threadIdx.x == 0) odd = 0;
  __syncthreads();
  if (v & 1) atomicAdd(&odd, 1u);
  atomicMax(maximum, v);
  atomicMin(least, -int(v));
  atomicOr(bits, 1u << (v & 31));
  __syncthreads();
  if (threadIdx.x == 0) parts[blockIdx.x] = float(odd);
  if (last_block(counter, gridDim.x, &flag) && threadIdx.x == 0) {
    float total = 0.0f;
    for (int i = 0; i < int(gridDim.x); i++) total += parts[i];
    *sum = total;
  }
}
EXPORT_KERNEL(over_blocks)

// Static and dynamic shared memory side by side, three-dimensional indices, threads that leave early.
extern "C" __global__ void indices(int* y, int rows) {
  __shared__ int base;
  DYNAMIC_SHARED(int, held);
  int t = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  if (t >= rows) return;
  if (t == 0) base = 1000 * block;
  held[t] = t;
  __syncthreads();
  y[block * rows + t] = base + held[rows - 1 - t];
}
EXPORT_KERNEL(indices)

// 16 bits and 8 bits of one word belong to different threads: no race.
extern "C" __global__ void narrow_neighbours(uint16* y) {
  __shared__ uint16 words[32];
  __shared__ uint8 bytes[32];
  words[threadIdx.x] = uint16(3 * threadIdx.x);
  bytes[threadIdx.x] = uint8(threadIdx.x);
  __syncthreads();
  y[threadIdx.x] = uint16(words[31 - threadIdx.x] + bytes[threadIdx.x ^ 1]);
}
EXPORT_KERNEL(narrow_neighbours)

extern "C" __global__ void halves(const uint16* x, float* wide, const float* y, uint16* narrow, int count) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  wide[i] = to_float(half{x[i]});
  narrow[i] = from_float<half>(y[i]).bits;
}
EXPORT_KERNEL(halves)

// What a device rounds in its own way, x0·x1 − x2 and approximations, and what it rounds as everybody does.
extern "C" __global__ void roundings(const float* x, float* y) {
  y[0] = x[0] * x[1] - x[2];
  y[1] = expf(x[3]);
  y[2] = logf(x[3]);
  y[3] = erff(x[3]);
  y[4] = rsqrtf(x[3]);
  y[5] = __fdividef(x[3], x[4]);
  y[6] = fast_exp2(x[3]);
  y[7] = __expf(x[3]);
  y[8] = x[3] / x[4];
  y[9] = sqrtf(x[3]);
  y[10] = expf(x[5]);
}
EXPORT_KERNEL(roundings)

// Each block of a cooperative launch adds up what all blocks have, and has that from then on; so often.
extern "C" __global__ void sums_of_all(uint32* counter, uint32* from, uint32* to, int rounds) {
  Meetings meetings = {counter, gridDim.x};
  for (int round = 0; round < rounds; round++) {
    if (threadIdx.x == 0) {
      uint32 sum = 0;
      for (uint32 i = 0; i < gridDim.x; i++) sum += from[i];
      to[blockIdx.x] = sum + blockIdx.x;
    }
    meetings.meet();
    uint32* other = from;
    from = to;
    to = other;
  }
  meetings.leave();
}
EXPORT_KERNEL(sums_of_all)

#if TENSOR_CORES

// One mma with fragments loaded element by element, as the PTX ISA's tables have them:
// c [16, 8] = a [16, 16] · b [16, 8].
extern "C" __global__ void one_mma(const Real* a, const Real* b, float* c) {
  int lane = threadIdx.x, group = lane >> 2, quad = lane & 3;
  uint32 x[4], y[2];
  for (int i = 0; i < 4; i++) {
    int row = group + 8 * (i & 1), column = 2 * quad + 8 * (i >> 1);
    x[i] = a[row * 16 + column].bits | uint32(a[row * 16 + column + 1].bits) << 16;
  }
  for (int i = 0; i < 2; i++) {
    int row = 2 * quad + 8 * i;
    y[i] = b[row * 8 + group].bits | uint32(b[(row + 1) * 8 + group].bits) << 16;
  }
  float d[4] = {};
  mma_m16n8k16<Real>(d, x, y);
  for (int i = 0; i < 4; i++) c[(group + 8 * (i >> 1)) * 8 + 2 * quad + (i & 1)] = d[i];
}
EXPORT_KERNEL(one_mma)

// What ldmatrix hands out of four 8x8 matrices one above the other, x4 and x2, as they are and transposed,
// beside the same loaded by hand: [4, 4, 32] each.
extern "C" __global__ void fragments(const uint16* x, uint32* loaded, uint32* by_hand) {
  __shared__ __align__(16) uint16 rows[32][8];
  int lane = threadIdx.x, group = lane >> 2, quad = lane & 3;
  for (int i = 0; i < 8; i++) rows[lane][i] = x[lane * 8 + i];
  __syncwarp();
  uint32 r[4][4] = {};
  uint32(&plain)[2] = reinterpret_cast<uint32(&)[2]>(r[2]);
  uint32(&across)[2] = reinterpret_cast<uint32(&)[2]>(r[3]);
  ldmatrix_x4<false>(r[0], rows[lane]);
  ldmatrix_x4<true>(r[1], rows[lane]);
  ldmatrix_x2<false>(plain, rows[lane & 15]);
  ldmatrix_x2<true>(across, rows[lane & 15]);
  for (int form = 0; form < 4; form++)
    for (int m = 0; m < 4; m++) {
      const uint16(*matrix)[8] = rows + 8 * m;
      uint32 hand = form & 1 ? matrix[2 * quad][group] | uint32(matrix[2 * quad + 1][group]) << 16
                             : matrix[group][2 * quad] | uint32(matrix[group][2 * quad + 1]) << 16;
      loaded[(form * 4 + m) * 32 + lane] = r[form][m];
      by_hand[(form * 4 + m) * 32 + lane] = form >= 2 && m >= 2 ? 0 : hand;
    }
}
EXPORT_KERNEL(fragments)

// c [64, 64] = a [64, k] · b [64, k]ᵀ by four warps: two stages of asynchronous copies, 32 columns each.
extern "C" __global__ void __launch_bounds__(128) product_64(const Real* a, const Real* b, float* c, int k) {
  const int STRIDE = 40, STAGE = 2 * 64 * STRIDE;
  DYNAMIC_SHARED(Real, stages);
  int t = threadIdx.x, lane = t & 31, warp = t >> 5;
  auto fill = [&](int slice) {
    Real* stage = stages + (slice & 1) * STAGE;
    for (int i = t; i < 64 * 4; i += 128) {
      int row = i >> 2, column = (i & 3) * 8;
      bool inside = slice * 32 + column < k;
      cp_async_16(stage + row * STRIDE + column, a + size_t(row) * k + slice * 32 + column, inside);
      cp_async_16(stage + (64 + row) * STRIDE + column, b + size_t(row) * k + slice * 32 + column, inside);
    }
    cp_async_commit();
  };
  float sum[8][4] = {};
  int slices = (k + 31) / 32;
  fill(0);
  for (int slice = 0; slice < slices; slice++) {
    fill(slice + 1);
    cp_async_wait<1>();
    __syncthreads();
    const Real* as = stages + (slice & 1) * STAGE;
    const Real* bs = as + 64 * STRIDE;
#pragma unroll
    for (int kk = 0; kk < 32; kk += 16) {
      uint32 x[4], y[2];
      ldmatrix_x4<false>(x, as + (warp * 16 + (lane & 15)) * STRIDE + kk + (lane >> 4) * 8);
#pragma unroll
      for (int j = 0; j < 8; j++) {
        ldmatrix_x2<false>(y, bs + (j * 8 + (lane & 7)) * STRIDE + kk + (lane >> 3 & 1) * 8);
        mma_m16n8k16<Real>(sum[j], x, y);
      }
    }
    __syncthreads();
  }
  for (int j = 0; j < 8; j++)
    for (int i = 0; i < 4; i++)
      c[(warp * 16 + (lane >> 2) + 8 * (i >> 1)) * 64 + j * 8 + 2 * (lane & 3) + (i & 1)] = sum[j][i];
}
EXPORT_KERNEL(product_64)

#endif
