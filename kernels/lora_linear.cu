// The low-rank path beside a frozen product: what a cuBLASLt product adds to (start), the gradients, and the
// fold for evaluation. The form with everything in one kernel is lora_linear_fused.cu.
//
// M rows, K inputs, N outputs in segments of `out`; n parts of rank r, each on a segment of its own, and
// W = n·r the width of u. x, y, u, du: Real; A [W, K], B [n, out, r] and their gradients: float.
//
// Every kernel has two bodies: tensor cores, for 16-bit types on sm_80 and later with K and `out` multiples
// of 8, and ("any") plain FMA for every type, device and size.
#include "prelude.cuh"

namespace lora_linear {

// Which part lies on a segment and the reverse are handed over as four bits per entry.
DEVICE int entry(int table, int i) { return table >> 4 * i & 15; }

// The part on a segment, -1 for none.
DEVICE int part_on(int parts, int segment) { return entry(parts, segment) - 1; }

// ---------------------------------------------------------------- start, any type and size

const int ANY_THREADS = 128, ANY_ROWS = 16, ANY_WIDTH = 32, ANY_DEPTH = 64;

// Rows four floats longer than the tile: float4 reads of eight neighbouring rows meet all banks.
struct AnyShared {
  alignas(16) float wide[ANY_ROWS][ANY_DEPTH + 4];
  alignas(16) float narrow[ANY_WIDTH][ANY_DEPTH + 4];
  alignas(16) float staged[ANY_DEPTH][ANY_ROWS];
};

// narrow[m, j] = factor·Σ_c left[m, c]·right[j, c] (right[c, j] if TRANSPOSED) for up to 16 rows and
// `width` columns: tiles of WIDTH columns and 64 terms in shared memory, one or four rows of one column per
// thread.
template <bool TRANSPOSED, int WIDTH>
DEVICE void any_narrow_by(AnyShared& shared, const Real* left, int left_stride, int rows, int depth,
                          const float* right, int right_stride, int width, float factor, Real* narrow,
                          int narrow_stride) {
  const int EACH = ANY_ROWS * WIDTH / ANY_THREADS;
  int column = threadIdx.x % WIDTH, first = threadIdx.x / WIDTH * EACH;
  for (int j0 = 0; j0 < width; j0 += WIDTH) {
    float sum[EACH] = {};
    for (int c0 = 0; c0 < depth; c0 += ANY_DEPTH) {
      __syncthreads();
#pragma unroll
      for (int step = 0; step < ANY_ROWS * ANY_DEPTH / ANY_THREADS; step++) {
        int i = step * ANY_THREADS + threadIdx.x, m = i / ANY_DEPTH, c = i % ANY_DEPTH;
        bool inside = m < rows && c0 + c < depth;
        shared.wide[m][c] = inside ? to_float(left[size_t(m) * left_stride + c0 + c]) : 0.0f;
      }
#pragma unroll 8
      for (int step = 0; step < WIDTH * ANY_DEPTH / ANY_THREADS; step++) {
        int i = step * ANY_THREADS + threadIdx.x;
        int j = TRANSPOSED ? i % WIDTH : i / ANY_DEPTH, c = TRANSPOSED ? i / WIDTH : i % ANY_DEPTH;
        size_t at = TRANSPOSED ? size_t(c0 + c) * right_stride + j0 + j : size_t(j0 + j) * right_stride + c0 + c;
        shared.narrow[j][c] = j0 + j < width && c0 + c < depth ? right[at] : 0.0f;
      }
      __syncthreads();
#pragma unroll 2
      for (int c = 0; c < ANY_DEPTH; c += 4) {
        Pack<float, 4> r = load_pack<4>(&shared.narrow[column][c]);
#pragma unroll
        for (int m = 0; m < EACH; m++) {
          Pack<float, 4> l = load_pack<4>(&shared.wide[first + m][c]);
          sum[m] += l.at[0] * r.at[0] + l.at[1] * r.at[1] + l.at[2] * r.at[2] + l.at[3] * r.at[3];
        }
      }
    }
#pragma unroll
    for (int m = 0; m < EACH; m++)
      if (first + m < rows && j0 + column < width)
        narrow[size_t(first + m) * narrow_stride + j0 + column] = from_float<Real>(factor * sum[m]);
  }
}

// In tiles that suit the width.
template <bool TRANSPOSED>
DEVICE void any_narrow(AnyShared& shared, const Real* left, int left_stride, int rows, int depth,
                       const float* right, int right_stride, int width, float factor, Real* narrow,
                       int narrow_stride) {
  if (width <= 8)
    any_narrow_by<TRANSPOSED, 8>(shared, left, left_stride, rows, depth, right, right_stride, width, factor,
                                 narrow, narrow_stride);
  else
    any_narrow_by<TRANSPOSED, ANY_WIDTH>(shared, left, left_stride, rows, depth, right, right_stride, width,
                                         factor, narrow, narrow_stride);
}

// wide[m, c] = (bias[c]) + (residual[m, c]) + factor·Σ_j narrow[m, j]·right[c, j] (right[j, c] if
// TRANSPOSED): a column of all 16 rows per thread.
template <bool TRANSPOSED>
DEVICE void any_wide(AnyShared& shared, const Real* narrow, int narrow_stride, int rows, int width,
                     const float* right, int right_stride, float factor, const Real* bias,
                     const Real* residual, Real* wide, int wide_stride, int columns) {
  for (int c0 = 0; c0 < columns; c0 += ANY_THREADS) {
    int c = c0 + threadIdx.x;
    float sum[ANY_ROWS];
#pragma unroll
    for (int m = 0; m < ANY_ROWS; m++) sum[m] = 0.0f;
    for (int j0 = 0; j0 < width; j0 += ANY_DEPTH) {
      int count = min(ANY_DEPTH, width - j0);
      __syncthreads();
      for (int i = threadIdx.x; i < count * ANY_ROWS; i += ANY_THREADS) {
        int j = i / ANY_ROWS, m = i % ANY_ROWS;
        shared.staged[j][m] = m < rows ? to_float(narrow[size_t(m) * narrow_stride + j0 + j]) : 0.0f;
      }
      __syncthreads();
      if (c < columns) {
#pragma unroll 2
        for (int j = 0; j < count; j++) {
          float r = right[TRANSPOSED ? size_t(j0 + j) * right_stride + c : size_t(c) * right_stride + j0 + j];
#pragma unroll
          for (int m = 0; m < ANY_ROWS; m += 4) {
            Pack<float, 4> l = load_pack<4>(&shared.staged[j][m]);
#pragma unroll
            for (int i = 0; i < 4; i++) sum[m + i] += l.at[i] * r;
          }
        }
      }
    }
    if (c < columns) {
      float start = bias ? to_float(bias[c]) : 0.0f;
#pragma unroll
      for (int m = 0; m < ANY_ROWS; m++) {
        size_t at = size_t(m) * wide_stride + c;
        if (m < rows)
          wide[at] = from_float<Real>(start + (residual ? to_float(residual[at]) : 0.0f) + factor * sum[m]);
      }
    }
  }
}

// ---------------------------------------------------------------- start, on tensor cores

#if TENSOR_CORES

const int START_WARPS = 8, START_THREADS = 32 * START_WARPS, START_SLOTS = 3;

// What each warp has summed of its share of the terms: tiles of 8 columns, STRIPES times 16 rows.
template <int STRIPES>
struct StartShared {
  alignas(16) float partial[START_WARPS][16 * STRIPES][8 * START_SLOTS];
};

DEVICE Pack<uint32, 4> load_words(const Real* from) {
  return load_pack<4>(reinterpret_cast<const uint32*>(from));
}

// sum[s][t] += left[16·s + m, c]·right[8·t + j, c]ᵀ (right[c, 8·t + j] if TRANSPOSED) over this warp's terms
// c, in chunks of 32. The order of the terms is free, so a lane takes 8 neighbours: 16-byte reads, and no
// shared memory on the way to the fragments.
template <bool TRANSPOSED, int STRIPES, int TILES>
DEVICE void narrow_tiles(float (&sum)[STRIPES][TILES][4], const Real* left, int left_stride, int rows,
                         int depth, const float* right, int right_stride, int width) {
  int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
#pragma unroll 3
  for (int c0 = (threadIdx.x >> 5) * 32; c0 < depth; c0 += 32 * START_WARPS) {
    int c = c0 + 8 * q;
    Pack<uint32, 4> l[2 * STRIPES] = {};
#pragma unroll
    for (int i = 0; i < 2 * STRIPES; i++)
      if (c < depth && g + 8 * i < rows) l[i] = load_words(left + size_t(g + 8 * i) * left_stride + c);
#pragma unroll
    for (int t = 0; t < TILES; t++) {
      if (8 * t >= width) break;
      int j = 8 * t + g;
#pragma unroll
      for (int half = 0; half < 2; half++) {
        Pack<float, 4> r = {};
        if (c < depth && j < width) {
          if (TRANSPOSED) {
#pragma unroll
            for (int i = 0; i < 4; i++) r.at[i] = right[size_t(c + 4 * half + i) * right_stride + j];
          } else {
            r = load_pack<4>(right + size_t(j) * right_stride + c + 4 * half);
          }
        }
        uint32 b[2] = {pack_pair<Real>(r.at[0], r.at[1]), pack_pair<Real>(r.at[2], r.at[3])};
#pragma unroll
        for (int s = 0; s < STRIPES; s++) {
          uint32 a[4] = {l[2 * s].at[2 * half], l[2 * s + 1].at[2 * half], l[2 * s].at[2 * half + 1],
                         l[2 * s + 1].at[2 * half + 1]};
          mma_m16n8k16<Real>(sum[s][t], a, b);
        }
      }
    }
  }
}

// Lays a warp's sums of one tile into its part of shared memory.
template <int STRIPES>
DEVICE void keep_partial(StartShared<STRIPES>& shared, const float (&sum)[4], int stripe, int slot) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, row = 16 * stripe + (lane >> 2);
  int column = 8 * slot + 2 * (lane & 3);
  store_pack(&shared.partial[warp][row][column], Pack<float, 2>{{sum[0], sum[1]}});
  store_pack(&shared.partial[warp][row + 8][column], Pack<float, 2>{{sum[2], sum[3]}});
}

// The sum over the warps, in their order.
template <int STRIPES>
DEVICE float all_partials(const StartShared<STRIPES>& shared, int row, int column) {
  float sum = 0.0f;
#pragma unroll
  for (int warp = 0; warp < START_WARPS; warp++) sum += shared.partial[warp][row][column];
  return sum;
}

// Rows g and g+8, columns k and k+1, k+8 and k+9 with k = k0 + 2q, of a narrow matrix; zeros outside.
DEVICE void narrow_fragment(uint32 (&a)[4], const Real* narrow, int stride, int rows, int width, int k0) {
  int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    int m = g + 8 * (i & 1), k = k0 + 2 * q + 8 * (i >> 1);
    const Real* at = narrow + size_t(m) * stride + k;
    uint32 low = m < rows && k < width ? at[0].bits : 0;
    uint32 high = m < rows && k + 1 < width ? at[1].bits : 0;
    a[i] = low | high << 16;
  }
}

// What four tiles of 8 columns from c0 on need of the right factor at terms k0 + 2q + {0, 1, 8, 9}. Tile t
// takes the columns c0 + 4g + t, so that a lane ends up with 8 neighbouring columns of the result.
template <bool TRANSPOSED>
DEVICE void right_fragments(uint32 (&b)[4][2], const float* right, int right_stride, int width, int k0, int c0,
                            int columns) {
  int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3, c = c0 + 4 * g;
  float r[4][4] = {};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    int k = k0 + 2 * q + (i & 1) + 8 * (i >> 1);
    if (k >= width || c >= columns) continue;
    if (TRANSPOSED) {
      Pack<float, 4> row = load_pack<4>(right + size_t(k) * right_stride + c);
#pragma unroll
      for (int t = 0; t < 4; t++) r[t][i] = row.at[t];
    } else if (right_stride % 2 != 0) {
#pragma unroll
      for (int t = 0; t < 4; t++) r[t][i] = right[size_t(c + t) * right_stride + k];
    } else if (i % 2 == 0) {
      // The width is even too, so the next term is there.
#pragma unroll
      for (int t = 0; t < 4; t++) {
        Pack<float, 2> pair = load_pack<2>(right + size_t(c + t) * right_stride + k);
        r[t][i] = pair.at[0];
        r[t][i + 1] = pair.at[1];
      }
    }
  }
#pragma unroll
  for (int t = 0; t < 4; t++) {
    b[t][0] = pack_pair<Real>(r[t][0], r[t][1]);
    b[t][1] = pack_pair<Real>(r[t][2], r[t][3]);
  }
}

// The first or second of the two rows of a lane's 8 columns: (bias) + (residual) + factor·sum, in 16-byte
// accesses.
DEVICE void finish_row(const float (&sum)[4][4], int second, float factor, const Real* bias,
                       const Real* residual, Real* to) {
  Pack<Real, 8> out, b = {}, r = {};
  if (bias) b = load_pack<8>(bias);
  if (residual) r = load_pack<8>(residual);
#pragma unroll
  for (int i = 0; i < 8; i++) {
    float v = to_float(b.at[i]) + to_float(r.at[i]) + factor * sum[i & 3][2 * second + (i >> 2)];
    out.at[i] = from_float<Real>(v);
  }
  store_pack(to, out);
}

// wide[m, c] = (bias[c]) + (residual[m, c]) + factor·Σ_j narrow[m, j]·right[c, j] (right[j, c] if
// TRANSPOSED), all rows by 32 columns per warp and turn.
template <bool TRANSPOSED, int STRIPES>
DEVICE void wide_tiles(const Real* narrow, int narrow_stride, int rows, int width, const float* right,
                       int right_stride, float factor, const Real* bias, const Real* residual, Real* wide,
                       int wide_stride, int columns) {
  int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
  uint32 first[STRIPES][4];
#pragma unroll
  for (int s = 0; s < STRIPES; s++)
    narrow_fragment(first[s], narrow + size_t(16 * s) * narrow_stride, narrow_stride, rows - 16 * s, width, 0);
#pragma unroll 2
  for (int c0 = (threadIdx.x >> 5) * 32; c0 < columns; c0 += 32 * START_WARPS) {
    float sum[STRIPES][4][4] = {};
    for (int k0 = 0; k0 < width; k0 += 16) {
      uint32 b[4][2];
      right_fragments<TRANSPOSED>(b, right, right_stride, width, k0, c0, columns);
#pragma unroll
      for (int s = 0; s < STRIPES; s++) {
        uint32 a[4] = {first[s][0], first[s][1], first[s][2], first[s][3]};
        if (k0 > 0)
          narrow_fragment(a, narrow + size_t(16 * s) * narrow_stride, narrow_stride, rows - 16 * s, width, k0);
#pragma unroll
        for (int t = 0; t < 4; t++) mma_m16n8k16<Real>(sum[s][t], a, b[t]);
      }
    }
    int c = c0 + 8 * q;
    if (c >= columns) continue;
#pragma unroll
    for (int h = 0; h < 2 * STRIPES; h++) {
      size_t at = size_t(g + 8 * h) * wide_stride + c;
      if (g + 8 * h < rows)
        finish_row(sum[h / 2], h % 2, factor, bias ? bias + c : nullptr, residual ? residual + at : nullptr,
                   wide + at);
    }
  }
}

#endif  // TENSOR_CORES

}  // namespace lora_linear

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

namespace lora_linear {

template <int STRIPES>
DEVICE void backward_start(StartShared<STRIPES>& shared, const Real* dy, const float* a, const float* b,
                           Real* du, Real* dx, int m, int k, int n, int out, int rank, int width, int count,
                           int segments, float scale) {
  int row = blockIdx.x * 16 * STRIPES, rows = min(16 * STRIPES, m - row);
  dy += size_t(row) * n;
  du += size_t(row) * width;
  int tiles = (rank + 7) / 8;
  for (int first = 0; first < count * tiles; first += START_SLOTS) {
    int slots = min(START_SLOTS, count * tiles - first);
    for (int slot = 0; slot < slots; slot++) {
      int part = (first + slot) / tiles, j0 = (first + slot) % tiles * 8;
      float sum[STRIPES][1][4] = {};
      narrow_tiles<true>(sum, dy + entry(segments, part) * out, n, rows, out,
                         b + size_t(part) * out * rank + j0, rank, min(8, rank - j0));
#pragma unroll
      for (int s = 0; s < STRIPES; s++) keep_partial(shared, sum[s][0], s, slot);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < rows * slots * 8; i += START_THREADS) {
      int r = i / (slots * 8), column = i % (slots * 8), at = first + column / 8;
      int part = at / tiles, j = at % tiles * 8 + column % 8;
      if (j < rank)
        du[size_t(r) * width + part * rank + j] = from_float<Real>(scale * all_partials(shared, r, column));
    }
    __syncthreads();
  }
  if (dx)
    wide_tiles<true, STRIPES>(du, width, rows, width, a, k, 1.0f, nullptr, nullptr, dx + size_t(row) * k, k, k);
}

}  // namespace lora_linear

#define BACKWARD_START_KERNEL(name, stripes)                                                                  \
  extern "C" __global__ void __launch_bounds__(256, 2)                                                        \
      name(const Real* __restrict__ dy, const float* __restrict__ a, const float* __restrict__ b, Real* du,   \
           Real* dx, int m, int k, int n, int out, int rank, int width, int count, int segments,              \
           float scale) {                                                                                     \
    __shared__ lora_linear::StartShared<stripes> shared;                                                      \
    lora_linear::backward_start(shared, dy, a, b, du, dx, m, k, n, out, rank, width, count, segments, scale); \
  }                                                                                                           \
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
  int row = blockIdx.x * ANY_ROWS, rows = min(ANY_ROWS, m - row);
  dy += size_t(row) * n;
  du += size_t(row) * width;
  for (int part = 0; part < count; part++)
    any_narrow<true>(shared, dy + entry(segments, part) * out, n, rows, out, b + size_t(part) * out * rank,
                     rank, rank, scale, du + part * rank, width);
  if (dx)
    any_wide<true>(shared, du, width, rows, width, a, k, 1.0f, nullptr, nullptr, dx + size_t(row) * k, k, k);
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
