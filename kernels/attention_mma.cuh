// Attention with tensor cores (flash attention), for 16-bit types on sm_80 and later and head sizes that are
// multiples of 8 up to 128; attention.cu says what is computed, and has the forms for everything else.
//
// A file for each width of head: together they take the compiler longer than all other kernels.
#pragma once
#include "attention.cuh"

#if TENSOR_CORES

namespace attention {

constexpr float LOG2_E = 1.44269504f;

// A block owns 64 rows, 16 for each of its four warps, and meets tiles of 64 rows of the other side. HEAD,
// a multiple of 16, is the width of the tiles in shared memory; the head may be narrower, the rest is zero.
//
// A row of a tile is padded by 16 bytes: its length is then an odd number of 16-byte words, and the 8 rows
// that an ldmatrix reads at a time lie in different banks.
template <int HEAD>
struct Mma {
  static constexpr int TILE = 64;
  static constexpr int PITCH = HEAD + 8;
  static constexpr int ELEMENTS = TILE * PITCH;
  static constexpr int STEPS = HEAD / 16;  // k-steps of a product over the head's columns
  static constexpr int BLOCKS = HEAD / 8;  // 8-column blocks of a result
};

// Starts copying 64 rows from `first` on; zeros past the last row and column.
template <int HEAD>
DEVICE void copy_tile(Real* tile, const Rows& from, int first, int head) {
  constexpr uint32 PACKS = HEAD / 8;
#pragma unroll 4
  for (uint32 i = 0; i < Mma<HEAD>::TILE * PACKS / THREADS; i++) {
    uint32 at = threadIdx.x + i * THREADS, row = at / PACKS, c = at % PACKS * 8;
    bool inside = first + int(row) < from.count && int(c) < head;
    // The address must be a valid one even where nothing is read.
    uint32 source = inside ? (first + row) * from.stride + c : 0;
    cp_async_16(tile + row * Mma<HEAD>::PITCH + c, from.at + source, inside);
  }
}

// The warp's 16 own rows as left operands.
template <int HEAD>
DEVICE void load_own(uint32 (&fragments)[Mma<HEAD>::STEPS][4], const Real* tile) {
  int lane = threadIdx.x & 31, row = (threadIdx.x >> 5) * 16 + (lane & 15), column = (lane >> 4) * 8;
#pragma unroll
  for (int k = 0; k < Mma<HEAD>::STEPS; k++) {
    ldmatrix_x4<false>(fragments[k], tile + row * Mma<HEAD>::PITCH + k * 16 + column);
  }
}

// sums[16 own rows × 8·N rows of the tile] += own · tileᵀ, for the tile's rows from `first` on; only the
// 8-column blocks of `sums` from FROM to END.
template <int HEAD, int FROM, int END, int N>
DEVICE void multiply_transposed(float (&sums)[N][4], const uint32 (&own)[Mma<HEAD>::STEPS][4],
                                const Real* tile, int first) {
  int lane = threadIdx.x & 31, row = first + (lane >> 4) * 8 + (lane & 7), column = (lane >> 3 & 1) * 8;
  tile += row * Mma<HEAD>::PITCH + column;
#pragma unroll
  for (int k = 0; k < Mma<HEAD>::STEPS; k++) {
#pragma unroll
    for (int n = FROM; n < END; n += 2) {
      uint32 b[4];
      ldmatrix_x4<false>(b, tile + n * 8 * Mma<HEAD>::PITCH + k * 16);
      mma_m16n8k16<Real>(sums[n], own[k], {b[0], b[1]});
      mma_m16n8k16<Real>(sums[n + 1], own[k], {b[2], b[3]});
    }
  }
}

// sums[16 own rows × HEAD] += weights[16 × 16] · the tile's 16 rows from `first` on.
template <int HEAD>
DEVICE void multiply(float (&sums)[Mma<HEAD>::BLOCKS][4], const uint32 (&weights)[4], const Real* tile,
                     int first) {
  int lane = threadIdx.x & 31;
  tile += (first + (lane & 15)) * Mma<HEAD>::PITCH + (lane >> 4) * 8;
#pragma unroll
  for (int n = 0; n < Mma<HEAD>::BLOCKS; n += 2) {
    uint32 b[4];
    ldmatrix_x4<true>(b, tile + n * 8);
    mma_m16n8k16<Real>(sums[n], weights, {b[0], b[1]});
    mma_m16n8k16<Real>(sums[n + 1], weights, {b[2], b[3]});
  }
}

// Two neighbouring 16x8 results, rounded, as the left operand of a product over their 16 columns: the
// registers of a result are laid out as those of an operand.
DEVICE void as_operand(uint32 (&operand)[4], const float (&left)[4], const float (&right)[4]) {
  operand[0] = pack_pair<Real>(left[0], left[1]);
  operand[1] = pack_pair<Real>(left[2], left[3]);
  operand[2] = pack_pair<Real>(right[0], right[1]);
  operand[3] = pack_pair<Real>(right[2], right[3]);
}

// Writes the warp's 16 rows of a result, times factor[0] for a lane's upper row and factor[1] for its lower
// one. Goes through the warp's rows of `tile`, which nobody else may be using, to write 16 bytes at a time.
template <int HEAD>
DEVICE void store_own(const Rows& to_shape, Real* to, Real* tile, int first, int head,
                      const float (&sums)[Mma<HEAD>::BLOCKS][4], const float (&factor)[2]) {
  constexpr int PITCH = Mma<HEAD>::PITCH;
  constexpr uint32 PACKS = HEAD / 8;
  int lane = threadIdx.x & 31, warp_row = (threadIdx.x >> 5) * 16;
  tile += warp_row * PITCH;
#pragma unroll
  for (int n = 0; n < Mma<HEAD>::BLOCKS; n++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      Pack<Real, 2> pair;
      pair.at[0] = from_float<Real>(sums[n][2 * half] * factor[half]);
      pair.at[1] = from_float<Real>(sums[n][2 * half + 1] * factor[half]);
      store_pack<2>(tile + (lane / 4 + half * 8) * PITCH + n * 8 + lane % 4 * 2, pair);
    }
  }
  __syncwarp(FULL_WARP);
  // All loads before the first store, so that they are under way together.
  Pack<Real, 8> held[PACKS / 2];
#pragma unroll
  for (uint32 i = 0; i < PACKS / 2; i++) {
    uint32 at = lane + i * 32;
    held[i] = load_pack<8>(tile + at / PACKS * PITCH + at % PACKS * 8);
  }
#pragma unroll
  for (uint32 i = 0; i < PACKS / 2; i++) {
    uint32 at = lane + i * 32, row = first + warp_row + at / PACKS, c = at % PACKS * 8;
    if (int(row) < to_shape.count && int(c) < head) store_16(to + (row * to_shape.stride + c), held[i]);
  }
}

// Minus infinity for the scores of keys that do not exist or lie in a query's future; `first` is the warp's
// first query, `tile` the first key.
template <int N>
DEVICE void hide_keys(float (&s)[N][4], int first, int tile, const Sizes& sizes) {
  int lane = threadIdx.x & 31;
#pragma unroll
  for (int n = 0; n < N; n++) {
#pragma unroll
    for (int e = 0; e < 4; e++) {
      int key = tile + n * 8 + lane % 4 * 2 + e % 2, query = first + lane / 4 + e / 2 * 8;
      if (key >= sizes.keys || (sizes.causal && key > query)) s[n][e] = -infinity();
    }
  }
}

// The softmax over the keys so far of a lane's two rows, lane/4 and 8 below it: the largest score (in every
// lane of the row) and the lane's own part of the sum.
struct Softmax {
  float largest[2], total[2];
};

// Turns the scores of one more tile into exp2(scale·(s − largest)), and brings what was summed before to the
// new maximum.
template <int N, int BLOCKS>
DEVICE void softmax_tile(Softmax& rows, float (&s)[N][4], float (&sums)[BLOCKS][4], float scale) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float larger = rows.largest[half];
#pragma unroll
    for (int n = 0; n < N; n++) larger = fmaxf(larger, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
    larger = fmaxf(larger, __shfl_xor_sync(FULL_WARP, larger, 1));
    larger = fmaxf(larger, __shfl_xor_sync(FULL_WARP, larger, 2));
    // Every row sees key 0, which is in the first tile: `larger` is finite.
    float shrink = fast_exp2((rows.largest[half] - larger) * scale), origin = larger * scale;
    rows.largest[half] = larger;
    rows.total[half] *= shrink;
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
      for (int e = 2 * half; e < 2 * half + 2; e++) {
        s[n][e] = fast_exp2(s[n][e] * scale - origin);
        rows.total[half] += s[n][e];
      }
    }
#pragma unroll
    for (int n = 0; n < BLOCKS; n++) {
      sums[n][2 * half] *= shrink;
      sums[n][2 * half + 1] *= shrink;
    }
  }
}

// Writes lse of the warp's rows and leaves 1/Σ in `inverse`.
DEVICE void finish_softmax(const Softmax& rows, float* lse, int first, const Sizes& sizes,
                           float (&inverse)[2]) {
  int lane = threadIdx.x & 31;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float sum = rows.total[half];
    sum += __shfl_xor_sync(FULL_WARP, sum, 1);
    sum += __shfl_xor_sync(FULL_WARP, sum, 2);
    inverse[half] = 1.0f / sum;
    int row = first + lane / 4 + half * 8;
    if (lane % 4 == 0 && row < sizes.queries) lse[row] = rows.largest[half] * sizes.scale + logf(sum);
  }
}

// 64 queries; exponentials in base 2, which are one multiply-add and one instruction.
//
// At 384 heads of 50 tokens and width 64: 10 MB (3 µs at 3.35 TB/s, less where they are still in L2), on full
// tiles 0.4 GFLOP (1 µs). Latency decides: a block asks for everything it needs at once (28 KiB of shared
// memory, so all 384 blocks are on the multiprocessors together), multiplies, and writes. With more keys the
// next tile of keys arrives while the present values are multiplied, and the other way round.
template <int HEAD>
DEVICE void forward_mma(const Rows& q, const Rows& k, const Rows& v, float* lse, Real* o, int o_stride,
                        const Sizes& sizes) {
  using M = Mma<HEAD>;
  DYNAMIC_SHARED(Real, shared);
  Real *q_tile = shared, *k_tile = shared + M::ELEMENTS, *v_tile = shared + 2 * M::ELEMENTS;
  int own_first = blockIdx.x * M::TILE;
  int first = own_first + (threadIdx.x >> 5) * 16, head = sizes.head;
  int tiles = (k.count + M::TILE - 1) / M::TILE;
  if (sizes.causal) tiles = min(tiles, int(blockIdx.x) + 1);
  // Warps without a query only help to copy.
  bool active = first < q.count;

  copy_tile<HEAD>(q_tile, q, own_first, head);
  copy_tile<HEAD>(k_tile, k, 0, head);
  cp_async_commit();
  copy_tile<HEAD>(v_tile, v, 0, head);
  cp_async_commit();

  float sums[M::BLOCKS][4] = {};
  Softmax rows = {{-infinity(), -infinity()}, {}};
  uint32 own[M::STEPS][4];
  for (int t = 0; t < tiles; t++) {
    int tile = t * M::TILE, seen = min(M::TILE, k.count - tile);
    // Only at first are the values already on their way.
    if (t == 0) {
      cp_async_wait<1>();
    } else {
      cp_async_wait<0>();
    }
    __syncthreads();
    if (t == 0) {
      load_own<HEAD>(own, q_tile);
    } else {
      copy_tile<HEAD>(v_tile, v, tile, head);
      cp_async_commit();
    }
    uint32 weights[M::TILE / 16][4];
    if (active) {
      float s[M::TILE / 8][4] = {};
      multiply_transposed<HEAD, 0, 4>(s, own, k_tile, 0);
      if (seen > 32) multiply_transposed<HEAD, 4, 8>(s, own, k_tile, 0);
      if (seen < M::TILE || (sizes.causal && t == int(blockIdx.x))) hide_keys(s, first, tile, sizes);
      softmax_tile(rows, s, sums, sizes.scale * LOG2_E);
#pragma unroll
      for (int j = 0; j < M::TILE / 16; j++) as_operand(weights[j], s[2 * j], s[2 * j + 1]);
    }
    cp_async_wait<0>();
    __syncthreads();
    if (t + 1 < tiles) {
      copy_tile<HEAD>(k_tile, k, tile + M::TILE, head);
      cp_async_commit();
    }
#pragma unroll
    for (int j = 0; j < M::TILE / 16; j++) {
      if (active && 16 * j < seen) multiply<HEAD>(sums, weights[j], v_tile, 16 * j);
    }
  }
  if (!active) return;
  float inverse[2];
  finish_softmax(rows, lse, first, sizes, inverse);
  Rows o_shape = {nullptr, o_stride, q.count};
  store_own<HEAD>(o_shape, o, q_tile, own_first, head, sums, inverse);
}

// lse of the query from `first` on that this thread and its neighbour add up. Past the last query it is
// infinite, so that every probability is zero.
DEVICE float thread_lse(const float* lse, int first, const Sizes& sizes) {
  int row = first + (threadIdx.x >> 1);
  return row < sizes.queries ? lse[row] : infinity();
}

// lse in base 2, and delta = do·o, of 64 queries, whose rows are in shared memory; two threads for each.
template <int HEAD>
DEVICE void query_numbers(float* lse2, float* delta, const Real* d_o, const Real* o, float row_lse) {
  int at = threadIdx.x >> 1, part = threadIdx.x & 1, offset = at * Mma<HEAD>::PITCH + part * (HEAD / 2);
  float sum = 0.0f;
#pragma unroll(HEAD > 96 ? 1 : HEAD / 16)
  for (int i = 0; i < HEAD / 16; i++) {
    Pack<Real, 8> a = load_pack<8>(d_o + offset + i * 8), b = load_pack<8>(o + offset + i * 8);
#pragma unroll
    for (int e = 0; e < 8; e++) sum += to_float(a.at[e]) * to_float(b.at[e]);
  }
  sum += __shfl_xor_sync(FULL_WARP, sum, 1);
  if (part == 0) {
    lse2[at] = row_lse * LOG2_E;
    delta[at] = sum;
  }
}

// What a lane knows of its two own rows, where queries own the block.
struct QueryNumbers {
  float lse2[2], delta[2];
};

// s becomes p, and dp becomes ds but for the scale, which the result gets. `own` is the warp's first row,
// `tile` the tile's, `step` the first of these columns in the tile, whose lse and delta are in `tile_lse` and
// `tile_delta` where keys own the block.
template <bool KEYS_OWN, int N>
DEVICE void to_gradients(float (&s)[N][4], float (&dp)[N][4], const QueryNumbers& rows, const float* tile_lse,
                         const float* tile_delta, int own, int tile, int step, bool masked,
                         const Sizes& sizes) {
  int lane = threadIdx.x & 31;
  const float scale = sizes.scale * LOG2_E;
#pragma unroll
  for (int n = 0; n < N; n++) {
    int column = step + n * 8 + lane % 4 * 2;
    Pack<float, 2> column_lse = {}, column_delta = {};
    if (KEYS_OWN) {
      column_lse = load_pack<2>(tile_lse + column);
      column_delta = load_pack<2>(tile_delta + column);
    }
#pragma unroll
    for (int e = 0; e < 4; e++) {
      float lse2 = KEYS_OWN ? column_lse.at[e % 2] : rows.lse2[e / 2];
      float delta = KEYS_OWN ? column_delta.at[e % 2] : rows.delta[e / 2];
      float p = fast_exp2(s[n][e] * scale - lse2);
      if (masked) {
        int row = own + lane / 4 + e / 2 * 8, other = tile + column + e % 2;
        bool future = KEYS_OWN ? row > other : other > row;
        if ((sizes.causal && future) || (!KEYS_OWN && other >= sizes.keys)) p = 0.0f;
      }
      s[n][e] = p;
      dp[n][e] = p * (dp[n][e] - delta);
    }
  }
}

// One of the two roles of the backward pass, as in backward_general. Where keys own the block, scores and
// probabilities are transposed: a row is a key, a column a query.
//
// The own rows become operands in registers; their shared memory is then the second stage of the tiles'.
// A tile is worked off in steps of so many columns as there are registers for.
template <int HEAD, bool KEYS_OWN>
DEVICE void backward_mma(const Rows& own1, const Rows& own2, const Rows& other1, const Rows& other2,
                         const Rows& o, const float* lse, Real* result1, Real* result2, int block,
                         const Sizes& sizes) {
  using M = Mma<HEAD>;
  constexpr int STEP = HEAD > 64 ? 16 : 32;
  DYNAMIC_SHARED(Real, shared);
  Real* o_tile = shared + 4 * M::ELEMENTS;
  float* numbers = reinterpret_cast<float*>(shared + 5 * M::ELEMENTS);
  int head = sizes.head, own_first = block * M::TILE;
  int first = own_first + (threadIdx.x >> 5) * 16;
  int begin = sizes.causal && KEYS_OWN ? block : 0;
  int end = (other1.count + M::TILE - 1) / M::TILE;
  if (sizes.causal && !KEYS_OWN) end = min(end, block + 1);
  bool active = first < own1.count;

  copy_tile<HEAD>(shared + 2 * M::ELEMENTS, own1, own_first, head);
  copy_tile<HEAD>(shared + 3 * M::ELEMENTS, own2, own_first, head);
  copy_tile<HEAD>(shared, other1, begin * M::TILE, head);
  copy_tile<HEAD>(shared + M::ELEMENTS, other2, begin * M::TILE, head);
  int first_query = KEYS_OWN ? begin * M::TILE : own_first;
  copy_tile<HEAD>(o_tile, o, first_query, head);
  cp_async_commit();
  float row_lse = thread_lse(lse, first_query, sizes);
  cp_async_wait<0>();
  __syncthreads();
  const Real* d_o_tile = shared + (KEYS_OWN ? 1 : 3) * M::ELEMENTS;
  query_numbers<HEAD>(numbers, numbers + M::TILE, d_o_tile, o_tile, row_lse);

  uint32 left1[M::STEPS][4], left2[M::STEPS][4];
  load_own<HEAD>(left1, shared + 2 * M::ELEMENTS);
  load_own<HEAD>(left2, shared + 3 * M::ELEMENTS);
  __syncthreads();
  QueryNumbers rows = {};
#pragma unroll
  for (int half = 0; half < 2 && !KEYS_OWN; half++) {
    int at = first - own_first + (threadIdx.x & 31) / 4 + half * 8;
    rows.lse2[half] = numbers[at];
    rows.delta[half] = numbers[M::TILE + at];
  }

  float sums1[M::BLOCKS][4] = {}, sums2[M::BLOCKS][4] = {};
  for (int t = begin; t < end; t++) {
    int stage = (t - begin) & 1, tile = t * M::TILE, seen = min(M::TILE, other1.count - tile);
    if (t + 1 < end) {
      Real* next = shared + (stage ^ 1) * 2 * M::ELEMENTS;
      copy_tile<HEAD>(next, other1, tile + M::TILE, head);
      copy_tile<HEAD>(next + M::ELEMENTS, other2, tile + M::TILE, head);
      if (KEYS_OWN) copy_tile<HEAD>(o_tile, o, tile + M::TILE, head);
      cp_async_commit();
      if (KEYS_OWN) row_lse = thread_lse(lse, tile + M::TILE, sizes);
    }
    const Real *tile1 = shared + stage * 2 * M::ELEMENTS, *tile2 = tile1 + M::ELEMENTS;
    const float* tile_lse = numbers + stage * 2 * M::TILE;
    bool masked = (!KEYS_OWN && seen < M::TILE) || (sizes.causal && t == block);
#pragma unroll 1
    for (int step = 0; active && step < seen; step += STEP) {
      float s[STEP / 8][4] = {}, dp[STEP / 8][4] = {};
      multiply_transposed<HEAD, 0, STEP / 8>(s, left1, tile1, step);
      multiply_transposed<HEAD, 0, STEP / 8>(dp, left2, tile2, step);
      to_gradients<KEYS_OWN>(s, dp, rows, tile_lse, tile_lse + M::TILE, first, tile, step, masked, sizes);
#pragma unroll
      for (int j = 0; j < STEP / 16; j++) {
        uint32 weights[4];
        as_operand(weights, dp[2 * j], dp[2 * j + 1]);
        multiply<HEAD>(sums1, weights, tile1, step + 16 * j);
        if (KEYS_OWN) {
          as_operand(weights, s[2 * j], s[2 * j + 1]);
          multiply<HEAD>(sums2, weights, tile2, step + 16 * j);
        }
      }
    }
    // The next tile is here, and this one's memory is free.
    cp_async_wait<0>();
    __syncthreads();
    if (KEYS_OWN && t + 1 < end) {
      float* next = numbers + (stage ^ 1) * 2 * M::TILE;
      const Real* next_d_o = shared + (stage ^ 1) * 2 * M::ELEMENTS + M::ELEMENTS;
      query_numbers<HEAD>(next, next + M::TILE, next_d_o, o_tile, row_lse);
      __syncthreads();
    }
  }
  if (!active) return;
  store_own<HEAD>(own1, result1, shared, own_first, head, sums1, {sizes.scale, sizes.scale});
  if (KEYS_OWN) {
    store_own<HEAD>(own1, result2, shared + M::ELEMENTS, own_first, head, sums2, {1.0f, 1.0f});
  }
}

// ---------------------------------------------------------------- the backward pass of at most 64 tokens

// A warp's 16 x 64 probabilities or their gradients, in `words` as left operands over 16 columns each, into
// its rows of a tile of 64 columns.
DEVICE void share_square(Real* tile, const uint32 (&words)[4][4]) {
  constexpr int PITCH = Mma<64>::PITCH;
  int lane = threadIdx.x & 31, row = (threadIdx.x >> 5) * 16 + lane / 4;
  uint32* at = reinterpret_cast<uint32*>(tile + row * PITCH) + lane % 4;
#pragma unroll
  for (int j = 0; j < 4; j++) {
#pragma unroll
    for (int i = 0; i < 4; i++) at[i % 2 * 4 * PITCH + j * 8 + i / 2 * 4] = words[j][i];
  }
}

// sums[16 own columns of `square` x HEAD] += squareᵀ · tile.
template <int HEAD>
DEVICE void multiply_square(float (&sums)[Mma<HEAD>::BLOCKS][4], const Real* square, const Real* tile) {
  constexpr int PITCH = Mma<64>::PITCH;
  int lane = threadIdx.x & 31;
  square += ((lane >> 4) * 8 + (lane & 7)) * PITCH + (threadIdx.x >> 5) * 16 + (lane >> 3 & 1) * 8;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    uint32 own[4];
    ldmatrix_x4<true>(own, square + 16 * j * PITCH);
    multiply<HEAD>(sums, own, tile, 16 * j);
  }
}

// p, in place of the scores, and ds but for the scale, in place of dp. `first` is the warp's first query.
//
// All keys are here, so delta is the row's sum of p∘dp, which is do·o without reading o, and without what
// o lost when it was rounded.
DEVICE void to_whole_gradients(float (&s)[8][4], float (&dp)[8][4], const float (&lse2)[2], int first,
                               const Sizes& sizes) {
  int lane = threadIdx.x & 31;
  const float scale = sizes.scale * LOG2_E;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int query = first + lane / 4 + half * 8;
    int seen = min(sizes.keys, (query | (sizes.causal ? 0 : 64)) + 1);
    float delta = 0.0f;
#pragma unroll
    for (int n = 0; n < 8; n++) {
#pragma unroll
      for (int e = 2 * half; e < 2 * half + 2; e++) {
        float p = fast_exp2(s[n][e] * scale - lse2[half]);
        s[n][e] = n * 8 + lane % 4 * 2 + e % 2 < seen ? p : 0.0f;
        delta += s[n][e] * dp[n][e];
      }
    }
    delta += __shfl_xor_sync(FULL_WARP, delta, 1);
    delta += __shfl_xor_sync(FULL_WARP, delta, 2);
#pragma unroll
    for (int n = 0; n < 8; n++) {
#pragma unroll
      for (int e = 2 * half; e < 2 * half + 2; e++) dp[n][e] = s[n][e] * (dp[n][e] - delta);
    }
  }
}

// A block for a head whose queries and keys fit into one tile each: the scores are computed once. A warp's
// rows are queries for them and for dq; p and ds go through shared memory, where they are read transposed,
// and its rows are keys for dk and dv.
template <int HEAD>
DEVICE void backward_mma_whole(const Rows& q, const Rows& k, const Rows& v, const Rows& d_o,
                               const float* lse, Real* dq, Real* dk, Real* dv, const Sizes& sizes) {
  using M = Mma<HEAD>;
  DYNAMIC_SHARED(Real, shared);
  Real *q_tile = shared, *k_tile = shared + M::ELEMENTS, *d_o_tile = shared + 2 * M::ELEMENTS;
  Real *v_tile = shared + 3 * M::ELEMENTS;
  Real *p_tile = shared + 4 * M::ELEMENTS, *ds_tile = p_tile + Mma<64>::ELEMENTS;
  int first = (threadIdx.x >> 5) * 16, head = sizes.head;

  copy_tile<HEAD>(q_tile, q, 0, head);
  copy_tile<HEAD>(k_tile, k, 0, head);
  cp_async_commit();
  copy_tile<HEAD>(d_o_tile, d_o, 0, head);
  copy_tile<HEAD>(v_tile, v, 0, head);
  cp_async_commit();
  // Past the last query lse is infinite, so that every probability is zero.
  float lse2[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int row = first + (threadIdx.x & 31) / 4 + half * 8;
    lse2[half] = row < q.count ? lse[row] * LOG2_E : infinity();
  }

  cp_async_wait<1>();
  __syncthreads();
  float s[8][4] = {};
  uint32 own[M::STEPS][4];
  load_own<HEAD>(own, q_tile);
  multiply_transposed<HEAD, 0, 8>(s, own, k_tile, 0);
  cp_async_wait<0>();
  __syncthreads();
  float dp[8][4] = {};
  load_own<HEAD>(own, d_o_tile);
  multiply_transposed<HEAD, 0, 8>(dp, own, v_tile, 0);
  to_whole_gradients(s, dp, lse2, first, sizes);
  uint32 p[4][4], ds[4][4];
#pragma unroll
  for (int j = 0; j < 4; j++) {
    as_operand(p[j], s[2 * j], s[2 * j + 1]);
    as_operand(ds[j], dp[2 * j], dp[2 * j + 1]);
  }
  share_square(p_tile, p);
  share_square(ds_tile, ds);
  float sums[M::BLOCKS][4] = {};
#pragma unroll
  for (int j = 0; j < 4; j++) multiply<HEAD>(sums, ds[j], k_tile, 16 * j);
  // p and ds are here, and the values' memory is free: each warp's rows of it for its results, one by one.
  __syncthreads();
  store_own<HEAD>(q, dq, v_tile, 0, head, sums, {sizes.scale, sizes.scale});
  float d_values[M::BLOCKS][4] = {}, d_keys[M::BLOCKS][4] = {};
  multiply_square<HEAD>(d_values, p_tile, d_o_tile);
  __syncwarp(FULL_WARP);
  store_own<HEAD>(v, dv, v_tile, 0, head, d_values, {1.0f, 1.0f});
  multiply_square<HEAD>(d_keys, ds_tile, q_tile);
  __syncwarp(FULL_WARP);
  store_own<HEAD>(k, dk, v_tile, 0, head, d_keys, {sizes.scale, sizes.scale});
}

}  // namespace attention

#define ATTENTION_MMA(HEAD)                                                                                \
  extern "C" __global__ void __launch_bounds__(attention::THREADS)                                         \
      attention_mma_##HEAD(ATTENTION_PARAMETERS) {                                                         \
    begin_kernel();                                                                                        \
    ATTENTION_HEAD;                                                                                        \
    attention::forward_mma<HEAD>(q_rows, k_rows, v_rows, lse, head_of(o, queries, o_stride, head),         \
                                 o_stride, sizes);                                                         \
  }                                                                                                        \
  EXPORT_KERNEL(attention_mma_##HEAD)

// Both roles in one launch, without atomics and without partial results in memory: computing the scores
// once for each role costs two products of seven, and saves a launch and its memory.
//
// At 384 heads of 197 tokens and width 64: 78 MB (23 µs at 3.35 TB/s, less where they are still in L2), on
// full tiles 22.5 GFLOP in seven products (45 µs at the 500 TFLOP/s that mma.sync may reach). 3072 blocks
// with 47 KiB of shared memory and 168 registers: three to a multiprocessor.
#define ATTENTION_BACKWARD_MMA(HEAD)                                                                       \
  extern "C" __global__ void __launch_bounds__(attention::THREADS)                                         \
      attention_backward_mma_##HEAD(ATTENTION_BACKWARD_PARAMETERS) {                                       \
    begin_kernel();                                                                                        \
    ATTENTION_HEAD;                                                                                        \
    attention::Rows d_o_rows = {head_of(d_o, queries, o_stride, head), o_stride, queries};                 \
    attention::Rows o_rows = {head_of(o, queries, o_stride, head), o_stride, queries};                     \
    const int TILE = attention::Mma<HEAD>::TILE;                                                           \
    int key_blocks = (keys + TILE - 1) / TILE, block = blockIdx.x;                                         \
    if (block < key_blocks) {                                                                              \
      attention::backward_mma<HEAD, true>(                                                                 \
          k_rows, v_rows, q_rows, d_o_rows, o_rows, lse, head_of(dk, keys, kv_stride, head),               \
          head_of(dv, keys, kv_stride, head), block, sizes);                                               \
    } else {                                                                                               \
      attention::backward_mma<HEAD, false>(                                                                \
          q_rows, d_o_rows, k_rows, v_rows, o_rows, lse, head_of(dq, queries, q_stride, head),             \
          nullptr, block - key_blocks, sizes);                                                             \
    }                                                                                                      \
  }                                                                                                        \
  EXPORT_KERNEL(attention_backward_mma_##HEAD)

// For at most 64 queries and keys. o is not read.
//
// At 384 heads of 50 tokens and width 64: 17 MB (5 µs at 3.35 TB/s, less where they are still in L2), on full
// tiles 1.0 GFLOP in five products (2 µs at the 500 TFLOP/s that mma.sync may reach). With 54 KiB of shared
// memory and 96 registers four blocks fit on a multiprocessor: all of them at once on an H100.
//
// Nothing is skipped for want of rows: without branches the compiler overlaps loads and products, and a
// thread has two thirds of the instructions.
#define ATTENTION_BACKWARD_MMA_WHOLE(HEAD)                                                                 \
  extern "C" __global__ void __launch_bounds__(attention::THREADS)                                         \
      attention_backward_mma_whole_##HEAD(ATTENTION_BACKWARD_PARAMETERS) {                                 \
    begin_kernel();                                                                                        \
    ATTENTION_HEAD;                                                                                        \
    attention::Rows d_o_rows = {head_of(d_o, queries, o_stride, head), o_stride, queries};                 \
    attention::backward_mma_whole<HEAD>(q_rows, k_rows, v_rows, d_o_rows, lse,                             \
                                        head_of(dq, queries, q_stride, head),                              \
                                        head_of(dk, keys, kv_stride, head),                                \
                                        head_of(dv, keys, kv_stride, head), sizes);                        \
  }                                                                                                        \
  EXPORT_KERNEL(attention_backward_mma_whole_##HEAD)

#endif  // TENSOR_CORES
