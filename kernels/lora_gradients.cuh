// Gradients of low-rank updates: what lora_linear.cu computes for a layer and lora_gradients.cu for many.
//
// dA = duᵀ·x and dB_i = scale·dy_iᵀ·u_i, rows cut into slabs; sizes as in lora_linear.cuh.
#pragma once
#include "lora_linear.cuh"

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

// A layer, and what the gradients of its adapters are computed from.
struct GradientLayer {
  Real* du;
  const Real* x;
  Real* u;
  const Real* dy;
  float* da;
  float* db;
  int m, k, n, out, rank, width, segments;
  float scale;
};

// Tile `unit` of a layer: first all of dA, then all of dB.
DEVICE GradientTile gradient_tile(const GradientLayer& layer, int unit) {
  int k = layer.k, out = layer.out, rank = layer.rank, width = layer.width;
  GradientTile tile;
  int across = (k + GRADIENT_COLUMNS - 1) / GRADIENT_COLUMNS;
  int of_a = across * ((width + GRADIENT_WIDTH - 1) / GRADIENT_WIDTH);
  if (unit < of_a) {
    int c = unit % across * GRADIENT_COLUMNS, j = unit / across * GRADIENT_WIDTH;
    tile.wide = layer.x + c;
    tile.narrow = layer.du + j;
    tile.wide_stride = k;
    tile.columns = min(GRADIENT_COLUMNS, k - c);
    tile.width = min(GRADIENT_WIDTH, width - j);
    tile.to = layer.da + size_t(j) * k + c;
    tile.column_stride = 1;
    tile.width_stride = k;
    tile.factor = 1.0f;
  } else {
    across = (out + GRADIENT_COLUMNS - 1) / GRADIENT_COLUMNS;
    int of_part = across * ((rank + GRADIENT_WIDTH - 1) / GRADIENT_WIDTH);
    int part = (unit - of_a) / of_part, rest = (unit - of_a) % of_part;
    int c = rest % across * GRADIENT_COLUMNS, j = rest / across * GRADIENT_WIDTH;
    tile.wide = layer.dy + entry(layer.segments, part) * out + c;
    tile.narrow = layer.u + part * rank + j;
    tile.wide_stride = layer.n;
    tile.columns = min(GRADIENT_COLUMNS, out - c);
    tile.width = min(GRADIENT_WIDTH, rank - j);
    tile.to = layer.db + (size_t(part) * out + c) * rank + j;
    tile.column_stride = rank;
    tile.width_stride = 1;
    tile.factor = layer.scale;
  }
  tile.narrow_stride = width;
  return tile;
}

// The slabs of rows that a tile is summed in.
struct GradientSlabs {
  float* partial;     // those of the tile: 32 by 64 floats each, columns of the wide matrix adjacent
  uint32* counter;    // of the tile
  int slab, count;    // of this block, and of all
  int rows;           // of a slab

  DEVICE float* at(int slab) const { return partial + size_t(slab) * (GRADIENT_WIDTH * GRADIENT_COLUMNS); }
};

// Slabs that are read together: nearly all there are at the sizes of a training step.
const int GRADIENT_GROUP = 12;

// In the last block of a tile: adds the slabs in their order. The reads of a group are on their way
// together, which is why none of them waits behind a branch.
DEVICE void gradient_finish(const GradientTile& tile, const GradientSlabs& all) {
  const int slabs = all.count;
  for (int i = 4 * threadIdx.x; i < tile.width * GRADIENT_COLUMNS; i += 4 * GRADIENT_THREADS) {
    int j = i / GRADIENT_COLUMNS, c = i % GRADIENT_COLUMNS;
    float sum[4] = {};
    for (int first = 0; first < slabs; first += GRADIENT_GROUP) {
      Pack<float, 4> part[GRADIENT_GROUP];
#pragma unroll
      for (int s = 0; s < GRADIENT_GROUP; s++)
        part[s] = load_pack<4>(all.at(min(first + s, slabs - 1)) + i);
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

// A tile of a layer over a slab of rows, and the tile's gradient in the block that comes last.
DEVICE void gradients(GradientStage (&stages)[GRADIENT_STAGES], int* flag, const GradientLayer& layer, int unit,
                      const GradientSlabs& slabs) {
  GradientTile tile = gradient_tile(layer, unit);
  bool narrow_packs = layer.width % 8 == 0 && layer.rank % 8 == 0;
  int begin = slabs.slab * slabs.rows, end = min(layer.m, begin + slabs.rows);
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
  float* slab = slabs.at(slabs.slab);
#pragma unroll
  for (int t = 0; t < 4; t++)
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (8 * t < tile.width)
        slab[(8 * t + 2 * (lane & 3) + (i & 1)) * GRADIENT_COLUMNS + column + 8 * (i >> 1)] = sum[t][i];
  if (last_block(slabs.counter, slabs.count, flag)) gradient_finish(tile, slabs);
}

#endif  // TENSOR_CORES

struct GradientAny {
  alignas(16) float wide[GRADIENT_ROWS][GRADIENT_COLUMNS];
  alignas(16) float narrow[GRADIENT_ROWS][GRADIENT_WIDTH];
};

// The same for any type and size: a thread sums 4 by 4 elements, 16 FMA for two reads of 16 bytes from shared
// memory.
DEVICE void gradients_any(GradientAny& shared, int* flag, const GradientLayer& layer, int unit,
                          const GradientSlabs& slabs) {
  GradientTile tile = gradient_tile(layer, unit);
  int begin = slabs.slab * slabs.rows, end = min(layer.m, begin + slabs.rows);
  int c0 = threadIdx.x % 16 * 4, j0 = threadIdx.x / 16 * 4;
  float sum[4][4] = {};
  for (int row = begin; row < end; row += GRADIENT_ROWS) {
    __syncthreads();
#pragma unroll
    for (int step = 0; step < GRADIENT_ROWS * GRADIENT_COLUMNS / GRADIENT_THREADS; step++) {
      int i = step * GRADIENT_THREADS + threadIdx.x, r = i / GRADIENT_COLUMNS, c = i % GRADIENT_COLUMNS;
      bool inside = row + r < end && c < tile.columns;
      shared.wide[r][c] = inside ? to_float(tile.wide[size_t(row + r) * tile.wide_stride + c]) : 0.0f;
    }
#pragma unroll
    for (int step = 0; step < GRADIENT_ROWS * GRADIENT_WIDTH / GRADIENT_THREADS; step++) {
      int i = step * GRADIENT_THREADS + threadIdx.x, r = i / GRADIENT_WIDTH, j = i % GRADIENT_WIDTH;
      bool inside = row + r < end && j < tile.width;
      shared.narrow[r][j] = inside ? to_float(tile.narrow[size_t(row + r) * tile.narrow_stride + j]) : 0.0f;
    }
    __syncthreads();
    if (j0 < tile.width) {
#pragma unroll 4
      for (int r = 0; r < GRADIENT_ROWS; r++) {
        Pack<float, 4> w = load_pack<4>(&shared.wide[r][c0]), v = load_pack<4>(&shared.narrow[r][j0]);
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
          for (int c = 0; c < 4; c++) sum[j][c] += v.at[j] * w.at[c];
      }
    }
  }
  float* slab = slabs.at(slabs.slab);
#pragma unroll
  for (int j = 0; j < 4; j++)
    if (j0 + j < tile.width)
      store_pack(slab + (j0 + j) * GRADIENT_COLUMNS + c0,
                 Pack<float, 4>{{sum[j][0], sum[j][1], sum[j][2], sum[j][3]}});
  if (last_block(slabs.counter, slabs.count, flag)) gradient_finish(tile, slabs);
}

}  // namespace lora_linear
