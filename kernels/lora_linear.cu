// The low-rank path beside a frozen product: what a cuBLASLt product adds to (start), and the gradients.
// The form with everything in one kernel is lora_linear_fused.cu; sizes and shared bodies are in lora_linear.cuh.
#include "lora_gradients.cuh"

// u = x·Aᵀ and y = bias + residual + scale·u·Bᵀ (bias + residual where no part is), to which the product
// x·Wᵀ is then added: the low-rank path reads x and writes y once more, from and to L2.
//
// A block: 16 or 32 rows (stripes of an mma) of one segment, whose part it computes for itself. Its 8 warps
// share the K terms of u, meet, and share the columns of y. M = 1600, K = 768, N = 2304, three parts of r = 8:
// 150 blocks of 32 rows, each of them 49 KB of x, 49 KB of A and B and 49 KB of y (as much of a residual):
// 22 MB, 4 µs at 5.5 TB/s from L2. Fewer rows read A and B more often, so 16 only where 32 would leave
// multiprocessors idle. 118 MFLOP are nothing for tensor cores.
#if TENSOR_CORES

namespace lora_linear {

template <int STRIPES>
DEVICE void start(StartShared<STRIPES>& shared, const Real* x, const float* a, const float* b, const Real* bias,
                  const Real* residual, Real* u, Real* y, int m, int k, int n, int out, int rank, int width,
                  int parts, float scale) {
  int row = blockIdx.x * 16 * STRIPES, rows = min(16 * STRIPES, m - row);
  int segment = blockIdx.y, part = part_on(parts, segment);
  if (part >= 0) {
    x += size_t(row) * k;
    a += size_t(part) * rank * k;
    b += size_t(part) * out * rank;
    u += size_t(row) * width + part * rank;
  }
  for (int j0 = 0; part >= 0 && j0 < rank; j0 += 8 * START_SLOTS) {
    int columns = min(8 * START_SLOTS, rank - j0);
    float sum[STRIPES][START_SLOTS][4] = {};
    narrow_tiles<false>(sum, x, k, rows, k, a + size_t(j0) * k, k, columns, start_share());
#pragma unroll
    for (int s = 0; s < STRIPES; s++)
#pragma unroll
      for (int t = 0; t < START_SLOTS; t++) keep_partial(shared, sum[s][t], s, t);
    __syncthreads();
    for (int i = threadIdx.x; i < rows * columns; i += START_THREADS)
      u[size_t(i / columns) * width + j0 + i % columns] =
          from_float<Real>(all_partials(shared, i / columns, i % columns));
    __syncthreads();
  }
  size_t at = size_t(row) * n + segment * out;
  wide_tiles<false, STRIPES>(u, width, rows, part < 0 ? 0 : rank, b, rank, scale,
                             bias ? bias + segment * out : nullptr, residual ? residual + at : nullptr, y + at,
                             n, out);
}

}  // namespace lora_linear

#define START_KERNEL(name, stripes)                                                                           \
  extern "C" __global__ void __launch_bounds__(256, 2)                                                        \
      name(const Real* __restrict__ x, const float* __restrict__ a, const float* __restrict__ b,              \
           const Real* __restrict__ bias, const Real* __restrict__ residual, Real* u, Real* y, int m, int k,  \
           int n, int out, int rank, int width, int parts, float scale) {                                     \
    begin_kernel();                                                                                           \
    __shared__ lora_linear::StartShared<stripes> shared;                                                      \
    lora_linear::start(shared, x, a, b, bias, residual, u, y, m, k, n, out, rank, width, parts, scale);       \
  }                                                                                                           \
  EXPORT_KERNEL(name)
START_KERNEL(lora_linear_start_16_rows, 1)
START_KERNEL(lora_linear_start_32_rows, 2)

#endif  // TENSOR_CORES

// The same for any type and size: a block of 16 rows of one segment and 128 threads. At the sizes above 300
// blocks, each of them some 2000 cycles of shared memory reads for u and as many for y: a few percent of what
// the product takes in f32.
extern "C" __global__ void __launch_bounds__(128, 4)
    lora_linear_start_any(const Real* __restrict__ x, const float* __restrict__ a, const float* __restrict__ b,
                          const Real* __restrict__ bias, const Real* __restrict__ residual, Real* u, Real* y,
                          int m, int k, int n, int out, int rank, int width, int parts, float scale) {
  begin_kernel();
  using namespace lora_linear;
  __shared__ AnyShared shared;
  int row = blockIdx.x * ANY_ROWS, rows = min(ANY_ROWS, m - row);
  int segment = blockIdx.y, part = part_on(parts, segment);
  if (part >= 0) {
    a += size_t(part) * rank * k;
    b += size_t(part) * out * rank;
    u += size_t(row) * width + part * rank;
    any_narrow<false>(shared, x + size_t(row) * k, k, rows, k, a, k, rank, 1.0f, u, width);
  }
  size_t at = size_t(row) * n + segment * out;
  any_wide<false>(shared, u, width, rows, part < 0 ? 0 : rank, b, rank, scale,
                  bias ? bias + segment * out : nullptr, residual ? residual + at : nullptr, y + at, n, out);
}
EXPORT_KERNEL(lora_linear_start_any)

// du_i = scale·dy_i·B_i and, where dx is wanted, dx = Σ du_i·A_i, to which the product dy·W is then added.
//
// A block: 16 or 32 rows of all segments, as dx is a sum over the parts; its warps share the `out` terms of
// every part and meet once for three tiles of 8 columns. Same sizes: 100 blocks of 16 rows, each of them
// 74 KB of dy, 147 KB of A and B and 25 KB of dx: 25 MB, 4.5 µs at 5.5 TB/s from L2.
#if TENSOR_CORES

#define BACKWARD_START_KERNEL(name, stripes)                                                                \
  extern "C" __global__ void __launch_bounds__(256, 2)                                                      \
      name(BACKWARD_START_PARAMETERS) {                                                                     \
    begin_kernel();                                                                                         \
    using namespace lora_linear;                                                                            \
    __shared__ StartShared<stripes> shared;                                                                 \
    backward_start(shared, dy, a, b, du, dx, m, k, n, out, rank, width, count, segments, scale,             \
                   Unchanged{});                                                                            \
  }                                                                                                         \
  EXPORT_KERNEL(name)
BACKWARD_START_KERNEL(lora_linear_backward_start_16_rows, 1)
BACKWARD_START_KERNEL(lora_linear_backward_start_32_rows, 2)

#endif  // TENSOR_CORES

// The same for any type and size: blocks of 16 rows.
extern "C" __global__ void __launch_bounds__(128, 4)
    lora_linear_backward_start_any(BACKWARD_START_PARAMETERS) {
  begin_kernel();
  using namespace lora_linear;
  __shared__ AnyShared shared;
  any_backward_start(shared, dy, a, b, du, dx, m, k, n, out, rank, width, count, segments, scale, Unchanged{});
}
EXPORT_KERNEL(lora_linear_backward_start_any)

// ---------------------------------------------------------------- gradients

// dA = duᵀ·x and dB_i = scale·dy_iᵀ·u_i in one launch, rows cut into slabs.
//
// M = 1600, K = 768, N = 2304, W = 24, r = 8: x 2.5 MB, dy 7.4 MB, du and u 77 KB per column tile; 118 MFLOP;
// about 2 µs from L2. 12 tiles for dA and 36 for dB with 64 columns (128 bytes of a row) each, so 11 slabs
// make 528 blocks of 128 threads, four per multiprocessor, each warp 16 columns. The slabs' sums go through
// L2 (2 MB); the last block of a tile adds them in their order.
#if TENSOR_CORES
extern "C" __global__ void __launch_bounds__(128)
    lora_linear_gradients(Real* du, const Real* x, Real* u, const Real* dy, float* da, float* db, float* partial,
                          uint32* counters, int m, int k, int n, int out, int rank, int width, int segments, float scale,
                          int slab_rows) {
  begin_kernel();
  using namespace lora_linear;
  __shared__ GradientStage stages[GRADIENT_STAGES];
  __shared__ int flag;
  GradientLayer layer = {du, x, u, dy, da, db, m, k, n, out, rank, width, segments, scale};
  size_t of_tile = size_t(gridDim.y) * GRADIENT_WIDTH * GRADIENT_COLUMNS;
  GradientSlabs slabs = {partial + blockIdx.x * of_tile, counters + blockIdx.x, int(blockIdx.y), int(gridDim.y),
                         slab_rows};
  gradients(stages, &flag, layer, blockIdx.x, slabs);
}
EXPORT_KERNEL(lora_linear_gradients)
#endif

// As lora_linear_gradients, for any type and size.
extern "C" __global__ void __launch_bounds__(128)
    lora_linear_gradients_any(Real* du, const Real* x, Real* u, const Real* dy, float* da, float* db, float* partial,
                              uint32* counters, int m, int k, int n, int out, int rank, int width, int segments, float scale,
                              int slab_rows) {
  begin_kernel();
  using namespace lora_linear;
  __shared__ GradientAny shared;
  __shared__ int flag;
  GradientLayer layer = {du, x, u, dy, da, db, m, k, n, out, rank, width, segments, scale};
  size_t of_tile = size_t(gridDim.y) * GRADIENT_WIDTH * GRADIENT_COLUMNS;
  GradientSlabs slabs = {partial + blockIdx.x * of_tile, counters + blockIdx.x, int(blockIdx.y), int(gridDim.y),
                         slab_rows};
  gradients_any(shared, &flag, layer, blockIdx.x, slabs);
}
EXPORT_KERNEL(lora_linear_gradients_any)
