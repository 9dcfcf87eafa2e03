// The narrow and wide products of the low-rank path beside a frozen product, and the backward pass up to where a
// cuBLASLt product takes over: what lora_linear.cu and lora_linear_dropout.cu share.
//
// M rows, K inputs, N outputs in segments of `out`; n parts of rank r, each on a segment of its own, and
// W = n·r the width of u. x, y, u, du: Real; A [W, K], B [n, out, r] and their gradients: float.
//
// Every kernel has two bodies: tensor cores, for 16-bit types on sm_80 and later with K and `out` multiples
// of 8, and ("any") plain FMA for every type, device and size.
#pragma once
#include "prelude.cuh"

namespace lora_linear {

// Which part lies on a segment and the reverse are handed over as four bits per entry.
DEVICE int entry(int table, int i) { return table >> 4 * i & 15; }

// The part on a segment, -1 for none.
DEVICE int part_on(int parts, int segment) { return entry(parts, segment) - 1; }

// What is done to the low-rank path's result, `at` elements behind where the block's rows begin, before anything
// is added to it: nothing here.
struct Unchanged {
  template <int N>
  DEVICE void operator()(size_t, float (&)[N]) const {}
};

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

// wide[m, c] = (bias[c]) + (residual[m, c]) + change(factor·Σ_j narrow[m, j]·right[c, j]) (right[j, c] if
// TRANSPOSED): a column of all 16 rows per thread.
template <bool TRANSPOSED, class Change = Unchanged>
DEVICE void any_wide(AnyShared& shared, const Real* narrow, int narrow_stride, int rows, int width,
                     const float* right, int right_stride, float factor, const Real* bias,
                     const Real* residual, Real* wide, int wide_stride, int columns, const Change& change = {}) {
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
        float update[1] = {factor * sum[m]};
        if (m < rows) {
          change(at, update);
          wide[at] = from_float<Real>(start + (residual ? to_float(residual[at]) : 0.0f) + update[0]);
        }
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

// The terms that a warp sums, in chunks of 32: from `first` on, `step` apart.
struct Share {
  int first, step;
};

// Those of a block's warp, where all of them share the terms.
DEVICE Share start_share() { return {int(threadIdx.x >> 5) * 32, 32 * START_WARPS}; }

// sum[s][t] += left[16·s + m, c]·right[8·t + j, c]ᵀ (right[c, 8·t + j] if TRANSPOSED) over this warp's terms
// c. The order of the terms is free, so a lane takes 8 neighbours: 16-byte reads, and no
// shared memory on the way to the fragments.
template <bool TRANSPOSED, int STRIPES, int TILES>
DEVICE void narrow_tiles(float (&sum)[STRIPES][TILES][4], const Real* left, int left_stride, int rows,
                         int depth, const float* right, int right_stride, int width, Share share) {
  int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
#pragma unroll 3
  for (int c0 = share.first; c0 < depth; c0 += share.step) {
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

// The first or second of the two rows of a lane's 8 columns: (bias) + (residual) + change(factor·sum), in
// 16-byte accesses; all but the bias at `at`.
template <class Change>
DEVICE void finish_row(const float (&sum)[4][4], int second, float factor, const Real* bias,
                       const Real* residual, Real* wide, size_t at, const Change& change) {
  Pack<Real, 8> out, b = {}, r = {};
  if (bias) b = load_pack<8>(bias);
  if (residual) r = load_pack<8>(residual + at);
  float update[8];
#pragma unroll
  for (int i = 0; i < 8; i++) update[i] = factor * sum[i & 3][2 * second + (i >> 2)];
  change(at, update);
#pragma unroll
  for (int i = 0; i < 8; i++) out.at[i] = from_float<Real>(to_float(b.at[i]) + to_float(r.at[i]) + update[i]);
  store_pack(wide + at, out);
}

// wide[m, c] = (bias[c]) + (residual[m, c]) + change(factor·Σ_j narrow[m, j]·right[c, j]) (right[j, c] if
// TRANSPOSED), all rows by 32 columns per warp and turn.
template <bool TRANSPOSED, int STRIPES, class Change = Unchanged>
DEVICE void wide_tiles(const Real* narrow, int narrow_stride, int rows, int width, const float* right,
                       int right_stride, float factor, const Real* bias, const Real* residual, Real* wide,
                       int wide_stride, int columns, const Change& change = {}) {
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
        finish_row(sum[h / 2], h % 2, factor, bias ? bias + c : nullptr, residual, wide, at, change);
    }
  }
}

#endif  // TENSOR_CORES

// ---------------------------------------------------------------- backward

// du_i = scale·dy_i·B_i and, where dx is wanted, dx = change(Σ du_i·A_i): 16 rows per block.
template <class Change>
DEVICE void any_backward_start(AnyShared& shared, const Real* dy, const float* a, const float* b, Real* du,
                               Real* dx, int m, int k, int n, int out, int rank, int width, int count,
                               int segments, float scale, const Change& change) {
  int row = blockIdx.x * ANY_ROWS, rows = min(ANY_ROWS, m - row);
  dy += size_t(row) * n;
  du += size_t(row) * width;
  for (int part = 0; part < count; part++)
    any_narrow<true>(shared, dy + entry(segments, part) * out, n, rows, out, b + size_t(part) * out * rank,
                     rank, rank, scale, du + part * rank, width);
  if (dx)
    any_wide<true>(shared, du, width, rows, width, a, k, 1.0f, nullptr, nullptr, dx + size_t(row) * k, k, k,
                   change);
}

#if TENSOR_CORES

// The same with tensor cores, 16·STRIPES rows per block.
template <int STRIPES, class Change>
DEVICE void backward_start(StartShared<STRIPES>& shared, const Real* dy, const float* a, const float* b,
                           Real* du, Real* dx, int m, int k, int n, int out, int rank, int width, int count,
                           int segments, float scale, const Change& change) {
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
                         b + size_t(part) * out * rank + j0, rank, min(8, rank - j0), start_share());
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
    wide_tiles<true, STRIPES>(du, width, rows, width, a, k, 1.0f, nullptr, nullptr, dx + size_t(row) * k, k, k,
                              change);
}

#endif  // TENSOR_CORES

}  // namespace lora_linear

// Of every kernel that is a backward_start.
#define BACKWARD_START_PARAMETERS                                                                           \
  const Real *__restrict__ dy, const float *__restrict__ a, const float *__restrict__ b, Real *du, Real *dx, \
      int m, int k, int n, int out, int rank, int width, int count, int segments, float scale
