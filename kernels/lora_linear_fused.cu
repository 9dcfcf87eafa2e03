// A frozen linear layer with its low-rank update in one kernel: the low-rank path costs no pass over x, y,
// dy or dx of its own. For 16-bit types on sm_80 and later, ranks up to 16 and widths that are multiples of
// 8; lora_linear.cu has the form for everything else, and the gradients.
//
// A tiled product as usual: a ring of stages in shared memory filled by asynchronous copies, 32 terms each,
// one barrier per stage; each warp a tile of 16-row and 8-column mma. On top of it the warps side by side share
// out the sums of u = x·Aᵀ (or du = dy·B) for their rows, 16 rows by RANK at a time: the fragments of x are in
// their registers already, so that it takes one or two mma more for every sixteen terms. In the end each adds
// u·Bᵀ (or du·A) by one mma more per tile.
// A column tile never reaches across two segments, so it belongs to one part or to none. A and B stay in
// float up to the fragments; u and du are rounded to Real before they are used, as they are when kept.
#include "prelude.cuh"

#if TENSOR_CORES

namespace lora_linear_fused {

const int DEPTH = 32, STAGES = 4, GROUP = 32;

// The block's tile and the warps' tiles in it; RANK is the rank rounded up to 8 or 16. Of the STRIPES of 16 rows that
// a warp's tile has, and those beside it have too, it carries the narrow sums of NARROW.
template <int ROWS_, int COLUMNS_, int WARP_ROWS_, int WARP_COLUMNS_, int RANK_>
struct Tile {
  static const int ROWS = ROWS_, COLUMNS = COLUMNS_, WARP_ROWS = WARP_ROWS_, WARP_COLUMNS = WARP_COLUMNS_;
  static const int RANK = RANK_, WARPS_ACROSS = COLUMNS / WARP_COLUMNS;
  static const int WARPS = ROWS / WARP_ROWS * WARPS_ACROSS, THREADS = 32 * WARPS;
  static const int STRIPES = WARP_ROWS / 16, TILES = WARP_COLUMNS / 8, NARROW = STRIPES / WARPS_ACROSS;
  static_assert(STRIPES % WARPS_ACROSS == 0, "warps side by side carry as many narrow sums each");
  static_assert(WARP_COLUMNS % GROUP == 0, "columns are stored in groups of four mma");
};

// The sums of a warp: its tile of the product, and its stripes of the narrow one.
template <class T>
struct Sums {
  float wide[T::STRIPES][T::TILES][4], narrow[T::NARROW][T::RANK / 8][4];
};

// The block's row at which the warp's first stripe of narrow sums lies; the others follow.
template <class T>
DEVICE int narrow_row() {
  int warp = threadIdx.x >> 5;
  return warp / T::WARPS_ACROSS * T::WARP_ROWS + warp % T::WARPS_ACROSS * T::NARROW * 16;
}

// Where a 16-byte chunk lies in a tile of rows of 32 elements, such that eight neighbouring rows of one
// chunk meet all banks. In elements.
DEVICE int swizzled(int row, int chunk) { return row * DEPTH + (chunk ^ (row >> 1 & 3)) * 8; }

// The four 8x8 matrices of a 16 by 16 fragment of the left factor at `row` of a tile as above.
DEVICE void left_fragment(uint32 (&a)[4], const Real* tile, int row, int step) {
  int lane = threadIdx.x & 31;
  ldmatrix_x4<false>(a, tile + swizzled(row + (lane & 15), step * 2 + (lane >> 4)));
}

// The same from rows of `stride` elements without a swizzle, at column `column`.
DEVICE void narrow_fragment(uint32 (&a)[4], const Real* narrow, int stride, int row, int column) {
  int lane = threadIdx.x & 31;
  ldmatrix_x4<false>(a, narrow + (row + (lane & 15)) * stride + column + (lane >> 4) * 8);
}

// Starts copying ROWS rows by 32 columns of a matrix, zeros outside.
template <int ROWS, int THREADS>
DEVICE void load_left(Real* tile, const Real* from, size_t stride, int rows, int columns) {
#pragma unroll
  for (int step = 0; step < ROWS * 4 / THREADS; step++) {
    int i = step * THREADS + threadIdx.x, row = i >> 2, chunk = i & 3;
    bool inside = row < rows && chunk * 8 < columns;
    cp_async_16(tile + swizzled(row, chunk), inside ? from + row * stride + chunk * 8 : from, inside);
  }
}

// Adds a stage to the warp's tile of the product and, where a part is, to its narrow sums. `left` is the
// stage's left factor; `right(b, step, t)` loads the fragments of the warp's column tiles t and t + 1 of the right one,
// `narrow_right(b, step, t)` that of 8 narrow columns.
template <class T, class Right, class NarrowRight>
DEVICE void add_stage(Sums<T>& sums, const Real* left, bool has_part, Right right, NarrowRight narrow_right) {
  int warp = threadIdx.x >> 5, row = warp / T::WARPS_ACROSS * T::WARP_ROWS, across = warp % T::WARPS_ACROSS;
#pragma unroll
  for (int step = 0; step < DEPTH / 16; step++) {
    uint32 a[T::STRIPES][4];
#pragma unroll
    for (int s = 0; s < T::STRIPES; s++) left_fragment(a[s], left, row + 16 * s, step);
#pragma unroll
    for (int t = 0; t < T::TILES; t += 2) {
      uint32 b[4];
      right(b, step, t);
      uint32 low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
#pragma unroll
      for (int s = 0; s < T::STRIPES; s++) {
        mma_m16n8k16<Real>(sums.wide[s][t], a[s], low);
        mma_m16n8k16<Real>(sums.wide[s][t + 1], a[s], high);
      }
    }
    if (has_part) {
      uint32 b[T::RANK / 8][2];
#pragma unroll
      for (int t = 0; t < T::RANK / 8; t++) narrow_right(b[t], step, t);
#pragma unroll
      for (int s = 0; s < T::STRIPES; s++) {
        if (s / T::NARROW != across) continue;
#pragma unroll
        for (int t = 0; t < T::RANK / 8; t++) mma_m16n8k16<Real>(sums.narrow[s % T::NARROW][t], a[s], b[t]);
      }
    }
  }
}

// Does `add(step)` for stage after stage of the ring, which `load(step)` fills ahead of it.
template <class Load, class Add>
DEVICE void through_ring(int steps, Load load, Add add) {
#pragma unroll
  for (int step = 0; step < STAGES - 1; step++) {
    if (step < steps) load(step);
    cp_async_commit();
  }
  for (int step = 0; step < steps; step++) {
    cp_async_wait<STAGES - 2>();
    // Also: nobody still reads the stage that is filled next.
    __syncthreads();
    if (step + STAGES - 1 < steps) load(step + STAGES - 1);
    cp_async_commit();
    add(step);
  }
}

// ---------------------------------------------------------------- forward

// Rows of A in shared memory are eight floats longer than the tile: reads of 8 bytes by half a warp, four
// rows by eight columns, meet all banks.
const int A_STRIDE = DEPTH + 8;

// Rows of u in shared memory: 16 columns, and 8 more so that eight rows meet all banks.
const int U_STRIDE = 24;

template <class T>
struct ForwardStage {
  alignas(128) Real x[T::ROWS * DEPTH];
  alignas(128) Real w[T::COLUMNS * DEPTH];
  alignas(128) float a[T::RANK * A_STRIDE];
};

// The column of W's tile that row `row` of shared memory holds: within 32 columns, tile t of 8 takes the
// columns 4·g + t, so that in the end a lane has 8 neighbouring columns of y in its four tiles.
DEVICE int column_of(int row) { return (row & ~31) | (row & 7) << 2 | (row >> 3 & 3); }

template <class T>
DEVICE void load_w(Real* tile, const Real* w, size_t stride, int columns, int depth) {
#pragma unroll
  for (int step = 0; step < T::COLUMNS * 4 / T::THREADS; step++) {
    int i = step * T::THREADS + threadIdx.x, row = i >> 2, chunk = i & 3, column = column_of(row);
    bool inside = column < columns && chunk * 8 < depth;
    cp_async_16(tile + swizzled(row, chunk), inside ? w + column * stride + chunk * 8 : w, inside);
  }
}

template <class T>
DEVICE void load_a(float* tile, const float* a, size_t stride, int rank, int depth) {
  int row = threadIdx.x >> 3, chunk = threadIdx.x & 7;
  if (row >= T::RANK) return;
  bool inside = row < rank && chunk * 4 < depth;
  cp_async_16(tile + row * A_STRIDE + chunk * 4, inside ? a + row * stride + chunk * 4 : a, inside);
}

// Adds a stage to the warp's tile of y and, where a part is, to its stripes of u.
template <class T>
DEVICE void forward_step(Sums<T>& sums, const ForwardStage<T>& stage, bool has_part) {
  int lane = threadIdx.x & 31, column = int(threadIdx.x >> 5) % T::WARPS_ACROSS * T::WARP_COLUMNS;
  auto right = [&](uint32(&b)[4], int step, int t) {
    int at = column + 8 * t + (lane >> 4) * 8 + (lane & 7);
    ldmatrix_x4<false>(b, stage.w + swizzled(at, step * 2 + (lane >> 3 & 1)));
  };
  auto of_a = [&](uint32(&b)[2], int step, int t) {
    const float* at = stage.a + (8 * t + (lane >> 2)) * A_STRIDE + step * 16 + 2 * (lane & 3);
    Pack<float, 2> low = load_pack<2>(at), high = load_pack<2>(at + 8);
    b[0] = pack_pair<Real>(low.at[0], low.at[1]);
    b[1] = pack_pair<Real>(high.at[0], high.at[1]);
  };
  add_stage<T>(sums, stage.x, has_part, right, of_a);
}

// Rounds the warp's stripes of u into shared memory, 16 columns wide, and keeps them in `kept` if that is not
// null (at the block's first row and the part's first column).
template <class T>
DEVICE void store_u(const Sums<T>& sums, Real* shared, Real* kept, int rows, int rank, int width) {
  int lane = threadIdx.x & 31, q = lane & 3;
#pragma unroll
  for (int i = 0; i < 2 * T::NARROW; i++) {
    int s = i / 2, h = i % 2, row = narrow_row<T>() + 16 * s + (lane >> 2) + 8 * h;
#pragma unroll
    for (int t = 0; t < 2; t++) {
      Pack<Real, 2> pair = {};
      if (t < T::RANK / 8) {
        pair.at[0] = from_float<Real>(sums.narrow[s][t % (T::RANK / 8)][2 * h]);
        pair.at[1] = from_float<Real>(sums.narrow[s][t % (T::RANK / 8)][2 * h + 1]);
      }
      int j = 8 * t + 2 * q;
      store_pack(shared + row * U_STRIDE + j, pair);
      if (kept && row < rows) {
        if (j < rank) kept[size_t(row) * width + j] = pair.at[0];
        if (j + 1 < rank) kept[size_t(row) * width + j + 1] = pair.at[1];
      }
    }
  }
}

// y += scale·u·Bᵀ for the warp's tile; `b` at the block's first column, `columns` of them.
template <class T>
DEVICE void add_update(float (&y)[T::STRIPES][T::TILES][4], const Real* u, const float* b, int columns,
                       int rank, float scale) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, q = lane & 3;
  int row = warp / T::WARPS_ACROSS * T::WARP_ROWS, column = warp % T::WARPS_ACROSS * T::WARP_COLUMNS;
  uint32 right[T::TILES][2];
#pragma unroll
  for (int t = 0; t < T::TILES; t++) {
    int c = column + t / 4 * GROUP + 4 * g + t % 4;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      int j = 8 * i + 2 * q;
      bool inside = 8 * i < T::RANK && c < columns;
      float low = inside && j < rank ? b[size_t(c) * rank + j] : 0.0f;
      float high = inside && j + 1 < rank ? b[size_t(c) * rank + j + 1] : 0.0f;
      right[t][i] = pack_pair<Real>(low, high);
    }
  }
#pragma unroll
  for (int s = 0; s < T::STRIPES; s++) {
    uint32 left[4];
    narrow_fragment(left, u, U_STRIDE, row + 16 * s, 0);
#pragma unroll
    for (int t = 0; t < T::TILES; t++) {
      float update[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      mma_m16n8k16<Real>(update, left, right[t]);
#pragma unroll
      for (int i = 0; i < 4; i++) y[s][t][i] += scale * update[i];
    }
  }
}

// (bias) + (residual) + the warp's tile, in 16-byte accesses.
template <class T>
DEVICE void store_y(const float (&sum)[T::STRIPES][T::TILES][4], const Real* bias, const Real* residual,
                    Real* y, size_t stride, int rows, int columns) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, q = lane & 3;
  int row = warp / T::WARPS_ACROSS * T::WARP_ROWS, column = warp % T::WARPS_ACROSS * T::WARP_COLUMNS;
#pragma unroll
  for (int group = 0; group < T::TILES / 4; group++) {
    int c = column + group * GROUP + 8 * q;
    if (c >= columns) continue;
    Pack<Real, 8> start = {};
    if (bias) start = load_pack<8>(bias + c);
#pragma unroll
    for (int s = 0; s < T::STRIPES; s++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        int r = row + 16 * s + g + 8 * h;
        if (r >= rows) continue;
        Pack<Real, 8> before = {}, after;
        if (residual) before = load_pack<8>(residual + r * stride + c);
#pragma unroll
        for (int i = 0; i < 8; i++) {
          float v = sum[s][4 * group + (i & 3)][2 * h + (i >> 2)];
          after.at[i] = from_float<Real>(v + to_float(start.at[i]) + to_float(before.at[i]));
        }
        store_pack(y + r * stride + c, after);
      }
  }
}

template <class T>
DEVICE void forward(const Real* x, const Real* w, const float* a, const float* b, const Real* bias,
                    const Real* residual, Real* u, Real* y, int m, int k, int n, int w_stride, int out,
                    int rank, int width, int parts, float scale) {
  DYNAMIC_SHARED(ForwardStage<T>, stages);
  int across = (out + T::COLUMNS - 1) / T::COLUMNS;
  int segment = blockIdx.x / across, column = blockIdx.x % across * T::COLUMNS;
  int part = (parts >> 4 * segment & 15) - 1;
  int first = blockIdx.y * T::ROWS, rows = min(T::ROWS, m - first), columns = min(T::COLUMNS, out - column);
  int c = segment * out + column;
  x += size_t(first) * k;
  w += size_t(c) * w_stride;
  if (part >= 0) a += size_t(part) * rank * k;
  auto load = [&](int step) {
    ForwardStage<T>& stage = stages[step % STAGES];
    int depth = k - step * DEPTH;
    load_left<T::ROWS, T::THREADS>(stage.x, x + step * DEPTH, k, rows, depth);
    load_w<T>(stage.w, w + step * DEPTH, w_stride, columns, depth);
    if (part >= 0) load_a<T>(stage.a, a + step * DEPTH, k, rank, depth);
  };
  Sums<T> sums = {};
  through_ring((k + DEPTH - 1) / DEPTH, load, [&](int step) {
    forward_step<T>(sums, stages[step % STAGES], part >= 0);
  });
  if (part >= 0) {
    // The stages are done with: their memory takes u.
    __syncthreads();
    Real* shared = reinterpret_cast<Real*>(stages);
    Real* kept = column == 0 ? u + size_t(first) * width + part * rank : nullptr;
    store_u<T>(sums, shared, kept, rows, rank, width);
    __syncthreads();
    add_update<T>(sums.wide, shared, b + (size_t(part) * out + column) * rank, columns, rank, scale);
  }
  size_t at = size_t(first) * n + c;
  store_y<T>(sums.wide, bias ? bias + c : nullptr, residual ? residual + at : nullptr, y + at, n, rows, columns);
}

// ---------------------------------------------------------------- backward

// Rows of du in shared memory: up to 48 columns, and 8 more so that eight rows meet all banks.
const int DU_STRIDE = 56;

template <class T>
struct BackwardStage {
  alignas(128) Real dy[T::ROWS * DEPTH];
  alignas(128) Real w[DEPTH * T::COLUMNS];
  alignas(128) float b[DEPTH * T::RANK];
};

template <class T>
struct BackwardShared {
  BackwardStage<T> stages[STAGES];
  alignas(128) Real du[T::ROWS * DU_STRIDE];
};

// As swizzled, for W's tile: 32 rows of COLUMNS elements.
template <class T>
DEVICE int w_at(int row, int chunk) {
  return row * T::COLUMNS + (chunk ^ (row & 7)) * 8;
}

template <class T>
DEVICE void load_w_rows(Real* tile, const Real* w, size_t stride, int rows, int columns) {
  const int CHUNKS = T::COLUMNS / 8;
#pragma unroll
  for (int step = 0; step < DEPTH * CHUNKS / T::THREADS; step++) {
    int i = step * T::THREADS + threadIdx.x, row = i / CHUNKS, chunk = i % CHUNKS;
    bool inside = row < rows && chunk * 8 < columns;
    cp_async_16(tile + w_at<T>(row, chunk), inside ? w + row * stride + chunk * 8 : w, inside);
  }
}

// 32 rows of B, which are adjacent in memory.
template <class T>
DEVICE void load_b(float* tile, const float* b, int rows, int rank) {
  int i = 4 * threadIdx.x;
  if (i >= DEPTH * rank) return;
  bool inside = i < rows * rank;
  cp_async_16(tile + i, inside ? b + i : b, inside);
}

// Adds a stage to the warp's tile of dx and, where the stage is a part's, to its stripes of du.
template <class T>
DEVICE void backward_step(Sums<T>& sums, const BackwardStage<T>& stage, bool has_part, int rank) {
  int lane = threadIdx.x & 31, column = int(threadIdx.x >> 5) % T::WARPS_ACROSS * T::WARP_COLUMNS;
  auto right = [&](uint32(&b)[4], int step, int t) {
    int at = step * 16 + (lane >> 3 & 1) * 8 + (lane & 7);
    ldmatrix_x4<true>(b, stage.w + w_at<T>(at, column / 8 + t + (lane >> 4)));
  };
  auto of_b = [&](uint32(&b)[2], int step, int t) {
    int j = 8 * t + (lane >> 2);
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      int term = step * 16 + 2 * (lane & 3) + (i & 1) + 8 * (i >> 1);
      v[i] = j < rank ? stage.b[term * rank + j] : 0.0f;
    }
    b[0] = pack_pair<Real>(v[0], v[1]);
    b[1] = pack_pair<Real>(v[2], v[3]);
  };
  add_stage<T>(sums, stage.dy, has_part, right, of_b);
}

// Rounds the warp's stripes of one part's du into shared memory, keeps them in `kept` if that is not null, and
// starts them again from zero.
template <class T>
DEVICE void store_du(Sums<T>& sums, Real* shared, Real* kept, int rows, int rank, int width, float scale) {
  int lane = threadIdx.x & 31;
#pragma unroll
  for (int s = 0; s < T::NARROW; s++)
#pragma unroll
    for (int t = 0; t < T::RANK / 8; t++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        int row = narrow_row<T>() + 16 * s + (lane >> 2) + 8 * (i >> 1), j = 8 * t + 2 * (lane & 3) + (i & 1);
        Real v = from_float<Real>(scale * sums.narrow[s][t][i]);
        if (j < rank) shared[row * DU_STRIDE + j] = v;
        if (kept && j < rank && row < rows) kept[size_t(row) * width + j] = v;
        sums.narrow[s][t][i] = 0.0f;
      }
}

// dx += du·A for the warp's tile; `a` at the block's first column, `columns` of them.
template <class T>
DEVICE void add_narrow(float (&dx)[T::STRIPES][T::TILES][4], const Real* du, const float* a, size_t stride,
                       int width, int columns) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, q = lane & 3;
  int row = warp / T::WARPS_ACROSS * T::WARP_ROWS, column = warp % T::WARPS_ACROSS * T::WARP_COLUMNS;
  for (int j0 = 0; j0 < width; j0 += 16) {
    uint32 left[T::STRIPES][4];
#pragma unroll
    for (int s = 0; s < T::STRIPES; s++) narrow_fragment(left[s], du, DU_STRIDE, row + 16 * s, j0);
#pragma unroll
    for (int t = 0; t < T::TILES; t++) {
      int c = column + 8 * t + g;
      float v[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        int j = j0 + 2 * q + (i & 1) + 8 * (i >> 1);
        v[i] = j < width && c < columns ? a[j * stride + c] : 0.0f;
      }
      uint32 right[2] = {pack_pair<Real>(v[0], v[1]), pack_pair<Real>(v[2], v[3])};
#pragma unroll
      for (int s = 0; s < T::STRIPES; s++) mma_m16n8k16<Real>(dx[s][t], left[s], right);
    }
  }
}

// Word i of lane q of every four lanes becomes word q of lane i.
DEVICE void transpose_words(uint32 (&w)[4]) {
  bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    uint32 other = __shfl_xor_sync(FULL_WARP, odd ? w[i] : w[i + 1], 1);
    w[i] = odd ? other : w[i];
    w[i + 1] = odd ? w[i + 1] : other;
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
    uint32 other = __shfl_xor_sync(FULL_WARP, high ? w[i] : w[i + 2], 2);
    w[i] = high ? other : w[i];
    w[i + 2] = high ? w[i + 2] : other;
  }
}

// Stores the warp's tile in 16-byte accesses: four lanes that hold two columns each of four tiles exchange
// them for a tile each.
template <class T>
DEVICE void store_dx(const float (&sum)[T::STRIPES][T::TILES][4], Real* dx, size_t stride, int rows,
                     int columns) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, q = lane & 3;
  int row = warp / T::WARPS_ACROSS * T::WARP_ROWS, column = warp % T::WARPS_ACROSS * T::WARP_COLUMNS;
#pragma unroll
  for (int s = 0; s < T::STRIPES; s++)
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
      for (int t = 0; t < T::TILES; t += 4) {
        uint32 words[4];
#pragma unroll
        for (int i = 0; i < 4; i++) words[i] = pack_pair<Real>(sum[s][t + i][2 * h], sum[s][t + i][2 * h + 1]);
        transpose_words(words);
        int r = row + 16 * s + g + 8 * h, c = column + 8 * (t + q);
        if (r < rows && c < columns)
          store_pack(reinterpret_cast<uint32*>(dx + r * stride + c),
                     Pack<uint32, 4>{{words[0], words[1], words[2], words[3]}});
      }
}

// Terms of a stage: DEPTH of them from `term` on of a segment's, fewer at its end. A stage does not reach across two
// segments, so that it belongs to one part or to none.
struct Terms {
  int segment = 0, term = 0;

  // Goes on to the next stage; true where that is another segment's.
  DEVICE bool advance(int out) {
    term += DEPTH;
    if (term < out) return false;
    term = 0;
    segment++;
    return true;
  }
};

template <class T>
DEVICE void backward(const Real* dy, const Real* w, const float* a, const float* b, Real* du, Real* dx, int m,
                     int k, int n, int w_stride, int out, int rank, int width, int parts, float scale) {
  DYNAMIC_SHARED(BackwardShared<T>, shared);
  int column = blockIdx.x * T::COLUMNS, first = blockIdx.y * T::ROWS;
  int rows = min(T::ROWS, m - first), columns = min(T::COLUMNS, k - column);
  dy += size_t(first) * n;
  w += column;
  du += size_t(first) * width;
  int steps = n / out * ((out + DEPTH - 1) / DEPTH);
  Terms loaded, added;
  auto load = [&](int step) {
    BackwardStage<T>& stage = shared->stages[step % STAGES];
    int depth = out - loaded.term, part = (parts >> 4 * loaded.segment & 15) - 1;
    size_t at = size_t(loaded.segment) * out + loaded.term;
    load_left<T::ROWS, T::THREADS>(stage.dy, dy + at, n, rows, depth);
    load_w_rows<T>(stage.w, w + at * w_stride, w_stride, depth, columns);
    if (part >= 0) load_b<T>(stage.b, b + (size_t(part) * out + loaded.term) * rank, depth, rank);
    loaded.advance(out);
  };
  // du is padded to whole fragments; a warp writes its own stripes.
  int lane = threadIdx.x & 31;
  for (int i = lane; i < T::NARROW * 16 * DU_STRIDE / 8; i += 32)
    store_pack(shared->du + narrow_row<T>() * DU_STRIDE + 8 * i, Pack<Real, 8>{});
  Sums<T> sums = {};
  through_ring(steps, load, [&](int step) {
    int part = (parts >> 4 * added.segment & 15) - 1;
    backward_step<T>(sums, shared->stages[step % STAGES], part >= 0, rank);
    if (added.advance(out) && part >= 0) {
      Real* kept = blockIdx.x == 0 ? du + part * rank : nullptr;
      store_du<T>(sums, shared->du + part * rank, kept, rows, rank, width, scale);
    }
  });
  __syncthreads();
  add_narrow<T>(sums.wide, shared->du, a + column, k, width, columns);
  store_dx<T>(sums.wide, dx + size_t(first) * k + column, k, rows, columns);
}

}  // namespace lora_linear_fused

// y = x·Wᵀ + bias + residual + scale·u·Bᵀ with u = x·Aᵀ, of which the first column tile of a part keeps u.
//
// M = 1600, K = 768, N = 2304: 5.7 GFLOP, at an H100's dense peak of 989 TFLOP/s 6 µs; x, W and y once 13 MB,
// 2.5 µs from L2. Shared memory is the limit: for every 16 terms of a warp's 64 by 64, 4.5 KB are read and 2 KB are
// written, 52 cycles of a multiprocessor for 131 kFLOP, by estimate 580 TFLOP/s or 10 µs. (With twice as many warps of 64 by
// 32, which read x again for u, it was 363 and 16, and an H200 took 33 µs.) Tiles of 128 by 128 with 4 warps: 234 blocks, two
// per multiprocessor (71 KB). Tiles of 64 by 64 with 4 warps of 32 by 32 where those would leave multiprocessors idle, as
// for N = 768: 300 blocks instead of 78.
#define FORWARD_KERNEL(name, threads, min_blocks, ...)                                                       \
  extern "C" __global__ void __launch_bounds__(threads, min_blocks)                                          \
      name(const Real* __restrict__ x, const Real* __restrict__ w, const float* __restrict__ a,              \
           const float* __restrict__ b, const Real* __restrict__ bias, const Real* __restrict__ residual,    \
           Real* __restrict__ u, Real* __restrict__ y, int m, int k, int n, int w_stride, int out, int rank, \
           int width, int parts, float scale) {                                                              \
    begin_kernel();                                                                                          \
    using namespace lora_linear_fused;                                                                       \
    static_assert(Tile<__VA_ARGS__>::THREADS == threads, "as many threads as the tile's warps have");        \
    forward<Tile<__VA_ARGS__>>(x, w, a, b, bias, residual, u, y, m, k, n, w_stride, out, rank, width,        \
                               parts, scale);                                                                \
  }                                                                                                          \
  EXPORT_KERNEL(name)
FORWARD_KERNEL(lora_linear_fused_128x128_r8, 128, 2, 128, 128, 64, 64, 8)
FORWARD_KERNEL(lora_linear_fused_128x128_r16, 128, 2, 128, 128, 64, 64, 16)
FORWARD_KERNEL(lora_linear_fused_64x64_r8, 128, 4, 64, 64, 32, 32, 8)
FORWARD_KERNEL(lora_linear_fused_64x64_r16, 128, 4, 64, 64, 32, 32, 16)

// dx = dy·W + Σ du_i·A_i with du_i = scale·dy_i·B_i, of which the first column of blocks keeps du; up to
// three parts of rank 16. W is read by rows as it is and transposed on the way to the fragments.
//
// Same sizes and cost as above; dx has 768 columns, so 300 blocks of 64 by 64, 72 stages each.
#define BACKWARD_KERNEL(name, threads, min_blocks, ...)                                                    \
  extern "C" __global__ void __launch_bounds__(threads, min_blocks)                                        \
      name(const Real* __restrict__ dy, const Real* __restrict__ w, const float* __restrict__ a,           \
           const float* __restrict__ b, Real* __restrict__ du, Real* __restrict__ dx, int m, int k, int n, \
           int w_stride, int out, int rank, int width, int parts, float scale) {                           \
    begin_kernel();                                                                                        \
    using namespace lora_linear_fused;                                                                     \
    static_assert(Tile<__VA_ARGS__>::THREADS == threads, "as many threads as the tile's warps have");      \
    backward<Tile<__VA_ARGS__>>(dy, w, a, b, du, dx, m, k, n, w_stride, out, rank, width, parts, scale);   \
  }                                                                                                        \
  EXPORT_KERNEL(name)
BACKWARD_KERNEL(lora_linear_backward_fused_128x128_r8, 128, 2, 128, 128, 64, 64, 8)
BACKWARD_KERNEL(lora_linear_backward_fused_128x128_r16, 128, 2, 128, 128, 64, 64, 16)
BACKWARD_KERNEL(lora_linear_backward_fused_64x64_r8, 128, 4, 64, 64, 32, 32, 8)
BACKWARD_KERNEL(lora_linear_backward_fused_64x64_r16, 128, 4, 64, 64, 32, 32, 16)

#endif  // TENSOR_CORES
