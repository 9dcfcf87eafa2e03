// The low-rank path beside a frozen product: what a cuBLASLt product adds to (start), the gradients, and the
// fold for evaluation. The form with everything in one kernel is lora_linear_fused.cu; sizes and shared bodies
// are in lora_linear.cuh.
#include "lora_linear.cuh"

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
    narrow_tiles<false>(sum, x, k, rows, k, a + size_t(j0) * k, k, columns);
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
      name(const Real* __restrict__ dy, const float* __restrict__ a, const float* __restrict__ b, Real* du, \
           Real* dx, int m, int k, int n, int out, int rank, int width, int count, int segments,            \
           float scale) {                                                                                   \
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
    lora_linear_backward_start_any(const Real* __restrict__ dy, const float* __restrict__ a,
                                   const float* __restrict__ b, Real* du, Real* dx, int m, int k, int n,
                                   int out, int rank, int width, int count, int segments, float scale) {
  using namespace lora_linear;
  __shared__ AnyShared shared;
  any_backward_start(shared, dy, a, b, du, dx, m, k, n, out, rank, width, count, segments, scale, Unchanged{});
}
EXPORT_KERNEL(lora_linear_backward_start_any)

// ---------------------------------------------------------------- gradients

namespace lora_linear {

// A block sums a tile of 64 columns (of x for dA, of dy for dB) by 32 columns of du or u, over a slab of rows.
const int GRADIENT_THREADS = 128, GRADIENT_COLUMNS = 64, GRADIENT_WIDTH = 32, GRADIENT_ROWS = 32;

// What a block reads, and which part of which gradient it sums.
struct GradientTile {
  const Real* wide;    // at its first column
  const Real* narrow;  // at its first column
  int wide_stride, narrow_stride;
  int columns, width;  // within the tile
  float* to;           // the element for column 0 of both
  int column_stride, width_stride;
  float factor;
};

// Blocks 0 to … of the grid's x: first all tiles of dA, then all tiles of dB.
DEVICE GradientTile gradient_tile(int unit, const Real* du, const Real* x, const Real* u, const Real* dy,
                                  float* da, float* db, int k, int n, int out, int rank, int width,
                                  int segments, float scale) {
  GradientTile tile;
  int across = (k + GRADIENT_COLUMNS - 1) / GRADIENT_COLUMNS;
  int of_a = across * ((width + GRADIENT_WIDTH - 1) / GRADIENT_WIDTH);
  if (unit < of_a) {
    int c = unit % across * GRADIENT_COLUMNS, j = unit / across * GRADIENT_WIDTH;
    tile.wide = x + c;
    tile.narrow = du + j;
    tile.wide_stride = k;
    tile.columns = min(GRADIENT_COLUMNS, k - c);
    tile.width = min(GRADIENT_WIDTH, width - j);
    tile.to = da + size_t(j) * k + c;
    tile.column_stride = 1;
    tile.width_stride = k;
    tile.factor = 1.0f;
  } else {
    across = (out + GRADIENT_COLUMNS - 1) / GRADIENT_COLUMNS;
    int of_part = across * ((rank + GRADIENT_WIDTH - 1) / GRADIENT_WIDTH);
    int part = (unit - of_a) / of_part, rest = (unit - of_a) % of_part;
    int c = rest % across * GRADIENT_COLUMNS, j = rest / across * GRADIENT_WIDTH;
    tile.wide = dy + entry(segments, part) * out + c;
    tile.narrow = u + part * rank + j;
    tile.wide_stride = n;
    tile.columns = min(GRADIENT_COLUMNS, out - c);
    tile.width = min(GRADIENT_WIDTH, rank - j);
    tile.to = db + (size_t(part) * out + c) * rank + j;
    tile.column_stride = rank;
    tile.width_stride = 1;
    tile.factor = scale;
  }
  tile.narrow_stride = width;
  return tile;
}

// Where a block leaves its sums: 32 by 64 floats, columns of the wide matrix adjacent.
DEVICE float* gradient_slab(float* partial, int slab) {
  return partial + (size_t(blockIdx.x) * gridDim.y + slab) * (GRADIENT_WIDTH * GRADIENT_COLUMNS);
}

// Slabs that are read together: nearly all there are at the sizes of a training step.
const int GRADIENT_GROUP = 12;

// In the last block of a tile: adds the slabs in their order. The reads of a group are on their way
// together, which is why none of them waits behind a branch.
DEVICE void gradient_finish(const GradientTile& tile, float* partial) {
  const int slabs = gridDim.y;
  for (int i = 4 * threadIdx.x; i < tile.width * GRADIENT_COLUMNS; i += 4 * GRADIENT_THREADS) {
    int j = i / GRADIENT_COLUMNS, c = i % GRADIENT_COLUMNS;
    float sum[4] = {};
    for (int first = 0; first < slabs; first += GRADIENT_GROUP) {
      Pack<float, 4> part[GRADIENT_GROUP];
#pragma unroll
      for (int s = 0; s < GRADIENT_GROUP; s++)
        part[s] = load_pack<4>(gradient_slab(partial, min(first + s, slabs - 1)) + i);
#pragma unroll
      for (int s = 0; s < GRADIENT_GROUP; s++)
#pragma unroll
        for (int e = 0; e < 4; e++) sum[e] += first + s < slabs ? part[s].at[e] : 0.0f;
    }
#pragma unroll
    for (int e = 0; e < 4; e++)
      if (c + e < tile.columns)
        tile.to[size_t(c + e) * tile.column_stride + size_t(j) * tile.width_stride] = tile.factor * sum[e];
  }
}

#if TENSOR_CORES

const int GRADIENT_STAGES = 4;

struct GradientStage {
  alignas(128) Real wide[GRADIENT_ROWS * GRADIENT_COLUMNS];
  alignas(128) Real narrow[GRADIENT_ROWS * GRADIENT_WIDTH];
};

// Where the 16-byte chunks of a row lie: such that eight rows of one chunk meet all banks.
DEVICE int wide_at(int row, int chunk) { return row * GRADIENT_COLUMNS + (chunk ^ (row & 7)) * 8; }
DEVICE int narrow_at(int row, int chunk) { return row * GRADIENT_WIDTH + (chunk ^ (row >> 1 & 3)) * 8; }

// Starts copying 32 rows from `row` on; rows from `end` on and columns outside the tile are zeros.
DEVICE void gradient_load(GradientStage& stage, const GradientTile& tile, int row, int end, bool narrow_packs) {
#pragma unroll
  for (int step = 0; step < GRADIENT_ROWS * GRADIENT_COLUMNS / 8 / GRADIENT_THREADS; step++) {
    int i = step * GRADIENT_THREADS + threadIdx.x, r = i >> 3, chunk = i & 7;
    bool inside = row + r < end && chunk * 8 < tile.columns;
    const Real* from = inside ? tile.wide + size_t(row + r) * tile.wide_stride + chunk * 8 : tile.wide;
    cp_async_16(&stage.wide[wide_at(r, chunk)], from, inside);
  }
  int r = threadIdx.x >> 2, chunk = threadIdx.x & 3;
  const Real* from = tile.narrow + size_t(row + r) * tile.narrow_stride + chunk * 8;
  Real* to = &stage.narrow[narrow_at(r, chunk)];
  if (narrow_packs) {
    bool inside = row + r < end && chunk * 8 < tile.width;
    cp_async_16(to, inside ? from : tile.narrow, inside);
  } else {
    Pack<Real, 8> v;
#pragma unroll
    for (int i = 0; i < 8; i++) v.at[i] = row + r < end && chunk * 8 + i < tile.width ? from[i] : Real{0};
    store_pack(to, v);
  }
}

// sum[t] (16 columns of the wide matrix by 8 of the narrow) += over 16 rows of a stage. Both matrices are
// stored by rows and the rows are what is summed over, so both are read transposed.
DEVICE void gradient_step(float (&sum)[4][4], const GradientStage& stage, int r0, int width) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  uint32 a[4];
  ldmatrix_x4<true>(a, &stage.wide[wide_at(r0 + (lane >> 4) * 8 + (lane & 7), warp * 2 + (lane >> 3 & 1))]);
#pragma unroll
  for (int t = 0; t < 4; t += 2) {
    if (8 * t >= width) break;
    uint32 b[4];
    ldmatrix_x4<true>(b, &stage.narrow[narrow_at(r0 + (lane >> 3 & 1) * 8 + (lane & 7), t + (lane >> 4))]);
    uint32 low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
    mma_m16n8k16<Real>(sum[t], a, low);
    mma_m16n8k16<Real>(sum[t + 1], a, high);
  }
}

#endif  // TENSOR_CORES

}  // namespace lora_linear

// dA = duᵀ·x and dB_i = scale·dy_iᵀ·u_i in one launch, rows cut into slabs.
//
// M = 1600, K = 768, N = 2304, W = 24, r = 8: x 2.5 MB, dy 7.4 MB, du and u 77 KB per column tile; 118 MFLOP;
// about 2 µs from L2. 12 tiles for dA and 36 for dB with 64 columns (128 bytes of a row) each, so 11 slabs
// make 528 blocks of 128 threads, four per multiprocessor, each warp 16 columns. The slabs' sums go through
// L2 (2 MB); the last block of a tile adds them in their order.
#if TENSOR_CORES
extern "C" __global__ void __launch_bounds__(128)
    lora_linear_gradients(const Real* __restrict__ du, const Real* __restrict__ x, const Real* __restrict__ u,
                          const Real* __restrict__ dy, float* da, float* db, float* partial, uint32* counters,
                          int m, int k, int n, int out, int rank, int width, int segments, float scale,
                          int slab_rows) {
  using namespace lora_linear;
  __shared__ GradientStage stages[GRADIENT_STAGES];
  __shared__ int flag;
  GradientTile tile =
      gradient_tile(blockIdx.x, du, x, u, dy, da, db, k, n, out, rank, width, segments, scale);
  bool narrow_packs = width % 8 == 0 && rank % 8 == 0;
  int begin = blockIdx.y * slab_rows, end = min(m, begin + slab_rows);
  int steps = (end - begin + GRADIENT_ROWS - 1) / GRADIENT_ROWS;
  float sum[4][4] = {};
  for (int step = 0; step < GRADIENT_STAGES - 1; step++) {
    if (step < steps) gradient_load(stages[step], tile, begin + step * GRADIENT_ROWS, end, narrow_packs);
    cp_async_commit();
  }
  for (int step = 0; step < steps; step++) {
    cp_async_wait<GRADIENT_STAGES - 2>();
    // Also: nobody still reads the stage that is filled next.
    __syncthreads();
    int ahead = step + GRADIENT_STAGES - 1;
    if (ahead < steps)
      gradient_load(stages[ahead % GRADIENT_STAGES], tile, begin + ahead * GRADIENT_ROWS, end, narrow_packs);
    cp_async_commit();
#pragma unroll
    for (int r0 = 0; r0 < GRADIENT_ROWS; r0 += 16)
      gradient_step(sum, stages[step % GRADIENT_STAGES], r0, tile.width);
  }
  int lane = threadIdx.x & 31, column = (threadIdx.x >> 5) * 16 + (lane >> 2);
  float* slab = gradient_slab(partial, blockIdx.y);
#pragma unroll
  for (int t = 0; t < 4; t++)
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (8 * t < tile.width)
        slab[(8 * t + 2 * (lane & 3) + (i & 1)) * GRADIENT_COLUMNS + column + 8 * (i >> 1)] = sum[t][i];
  if (last_block(counters + blockIdx.x, gridDim.y, &flag)) gradient_finish(tile, partial);
}
EXPORT_KERNEL(lora_linear_gradients)
#endif

// As lora_linear_gradients, for any type and size: a thread sums 4 by 4 elements, 16 FMA for two reads of
// 16 bytes from shared memory.
extern "C" __global__ void __launch_bounds__(128)
    lora_linear_gradients_any(const Real* __restrict__ du, const Real* __restrict__ x,
                              const Real* __restrict__ u, const Real* __restrict__ dy, float* da, float* db,
                              float* partial, uint32* counters, int m, int k, int n, int out, int rank,
                              int width, int segments, float scale, int slab_rows) {
  using namespace lora_linear;
  __shared__ __align__(16) float wide[GRADIENT_ROWS][GRADIENT_COLUMNS];
  __shared__ __align__(16) float narrow[GRADIENT_ROWS][GRADIENT_WIDTH];
  __shared__ int flag;
  GradientTile tile =
      gradient_tile(blockIdx.x, du, x, u, dy, da, db, k, n, out, rank, width, segments, scale);
  int begin = blockIdx.y * slab_rows, end = min(m, begin + slab_rows);
  int c0 = threadIdx.x % 16 * 4, j0 = threadIdx.x / 16 * 4;
  float sum[4][4] = {};
  for (int row = begin; row < end; row += GRADIENT_ROWS) {
    __syncthreads();
#pragma unroll
    for (int step = 0; step < GRADIENT_ROWS * GRADIENT_COLUMNS / GRADIENT_THREADS; step++) {
      int i = step * GRADIENT_THREADS + threadIdx.x, r = i / GRADIENT_COLUMNS, c = i % GRADIENT_COLUMNS;
      bool inside = row + r < end && c < tile.columns;
      wide[r][c] = inside ? to_float(tile.wide[size_t(row + r) * tile.wide_stride + c]) : 0.0f;
    }
#pragma unroll
    for (int step = 0; step < GRADIENT_ROWS * GRADIENT_WIDTH / GRADIENT_THREADS; step++) {
      int i = step * GRADIENT_THREADS + threadIdx.x, r = i / GRADIENT_WIDTH, j = i % GRADIENT_WIDTH;
      bool inside = row + r < end && j < tile.width;
      narrow[r][j] = inside ? to_float(tile.narrow[size_t(row + r) * tile.narrow_stride + j]) : 0.0f;
    }
    __syncthreads();
    if (j0 < tile.width) {
#pragma unroll 4
      for (int r = 0; r < GRADIENT_ROWS; r++) {
        Pack<float, 4> w = load_pack<4>(&wide[r][c0]), v = load_pack<4>(&narrow[r][j0]);
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
          for (int c = 0; c < 4; c++) sum[j][c] += v.at[j] * w.at[c];
      }
    }
  }
  float* slab = gradient_slab(partial, blockIdx.y);
#pragma unroll
  for (int j = 0; j < 4; j++)
    if (j0 + j < tile.width)
      store_pack(slab + (j0 + j) * GRADIENT_COLUMNS + c0,
                 Pack<float, 4>{{sum[j][0], sum[j][1], sum[j][2], sum[j][3]}});
  if (last_block(counters + blockIdx.x, gridDim.y, &flag)) gradient_finish(tile, partial);
}
EXPORT_KERNEL(lora_linear_gradients_any)

// ---------------------------------------------------------------- fold

namespace lora_linear {

const int FOLD_ROWS = 8, FOLD_WARPS = 4;

// A warp: 8 rows by 32·PACK columns; A is read once for the 8 rows.
template <int PACK>
DEVICE void fold(const Real* weight, const float* a, const float* b, Real* folded, int stride, int k,
                 int out, int rank, int parts, float scale) {
  int c = (blockIdx.x * 32 + (threadIdx.x & 31)) * PACK;
  int first = (blockIdx.y * FOLD_WARPS + (threadIdx.x >> 5)) * FOLD_ROWS;
  // A segment's rows, so that all of them have the same part.
  int segment = blockIdx.z, part = part_on(parts, segment);
  if (c >= stride || first >= out) return;
  float sum[FOLD_ROWS][PACK] = {};
  if (part >= 0 && c < k) {
    const float* right = a + size_t(part) * rank * k + c;
    const float* left = b + (size_t(part) * out + first) * rank;
    for (int j = 0; j < rank; j++) {
      Pack<float, PACK == 1 ? 1 : 4> v[(PACK + 3) / 4];
#pragma unroll
      for (int i = 0; i < (PACK + 3) / 4; i++) v[i] = load_pack<PACK == 1 ? 1 : 4>(right + size_t(j) * k + 4 * i);
#pragma unroll
      for (int r = 0; r < FOLD_ROWS; r++) {
        float l = first + r < out ? left[r * rank + j] : 0.0f;
#pragma unroll
        for (int i = 0; i < PACK; i++) sum[r][i] += l * v[i / 4].at[i % 4];
      }
    }
  }
#pragma unroll
  for (int r = 0; r < FOLD_ROWS; r++) {
    if (first + r >= out) break;
    size_t at = size_t(segment * out + first + r) * stride + c;
    Pack<Real, PACK> w = load_pack<PACK>(weight + at);
#pragma unroll
    for (int i = 0; i < PACK; i++) w.at[i] = from_float<Real>(to_float(w.at[i]) + scale * sum[r][i]);
    store_pack(folded + at, w);
  }
}

}  // namespace lora_linear

// folded = W + scale·B·A, rounded once; what is behind the first K columns of a row is copied.
//
// N = 2304, K = 768, r = 8: W read and written 3.5 MB each, 2.1 µs; A once per 8 rows, 7 MB from L2.
// Four warps of 8 rows by 256 columns.
extern "C" __global__ void __launch_bounds__(128)
    lora_fold(const Real* __restrict__ weight, const float* __restrict__ a, const float* __restrict__ b,
              Real* __restrict__ folded, int stride, int k, int out, int rank, int parts, float scale) {
  lora_linear::fold<Wide<Real>::N>(weight, a, b, folded, stride, k, out, rank, parts, scale);
}
EXPORT_KERNEL(lora_fold)

// As lora_fold, for widths that are no multiple of 16 bytes.
extern "C" __global__ void __launch_bounds__(128)
    lora_fold_any(const Real* __restrict__ weight, const float* __restrict__ a, const float* __restrict__ b,
                  Real* __restrict__ folded, int stride, int k, int out, int rank, int parts, float scale) {
  lora_linear::fold<1>(weight, a, b, folded, stride, k, out, rank, parts, scale);
}
EXPORT_KERNEL(lora_fold_any)
