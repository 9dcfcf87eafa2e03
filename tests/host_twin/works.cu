// Kernels that use every word of CUDA C that the twin has, rightly.
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

#if TENSOR_CORES
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
