// Attention of one head: o = softmax(scale·q·kᵀ)·v, and its gradients.
//
//   s = scale·q·kᵀ, p = exp(s − lse) with lse = log Σ exp(s) per row;  o = p·v
//   dv = pᵀ·do, dp = do·vᵀ, ds = p∘(dp − delta)·scale with delta = rowsum(do∘o);  dq = ds·k, dk = dsᵀ·q
//
// q [queries, head], k and v [keys, head] are rows of packed tensors: the rows of a head are `stride`
// apart. Scores and probabilities live in registers and shared memory only; the backward pass computes
// them again from lse, which is all that the forward pass leaves behind.
//
// There are three forms, two of them here. The general one multiplies with FMAs in float and takes any type,
// device and head size. The one in attention_mma.cuh uses tensor cores (flash attention), for head sizes that
// are multiples of 8 up to 128. In both a block owns some rows (queries, or keys for dk and dv) and loops
// over tiles of the rows on the other side; with tensor cores and at most 64 queries and keys a block
// computes all gradients of a head. The third is for a single query, where there is nothing to share between
// rows. All sum in a fixed order. Grids are (blocks of rows, heads, images).
#include "attention.cuh"

namespace attention {

// ---------------------------------------------------------------- the general form

// What follows from CHUNK, the columns of a head that are in shared memory at a time: a head that is wider
// is taken in several chunks. Sized so that the block's shared memory stays below the 48 KiB that every
// device has.
template <int CHUNK>
struct General {
  static constexpr int ROWS = 256 / CHUNK;    // that a warp owns: each value of the tile serves so many
  static constexpr int OWN = WARPS * ROWS;    // that the block owns
  static constexpr int TILE = 32;             // rows of the other side at a time, one for each lane
  static constexpr int PITCH = CHUNK + 4;     // lanes read 16 bytes of a row each: all banks are used
  static constexpr int COLUMNS = CHUNK / 32;  // of the result that a lane holds, 32 apart

  struct Shared {
    alignas(16) float own1[OWN * CHUNK];
    alignas(16) float own2[OWN * CHUNK];
    alignas(16) float tile1[TILE * PITCH];
    alignas(16) float tile2[TILE * PITCH];
    alignas(16) float weights1[OWN * TILE];
    alignas(16) float weights2[OWN * TILE];
    float lse[TILE], delta[TILE];
  };
};

// Rows from `first` on and CHUNK columns from `column` on, as floats; zeros outside.
template <int COUNT, int CHUNK, int PITCH>
DEVICE void stage(float* to, const Rows& from, int first, int column, int head) {
  constexpr int N = Wide<Real>::N, PACKS = CHUNK / N, EACH = COUNT * PACKS / THREADS;
  if (head % N == 0) {
    // All loads before the first store, so that they are under way together.
    Pack<Real, N> held[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      int at = threadIdx.x + i * THREADS, row = first + at / PACKS, c = column + at % PACKS * N;
      held[i] = Pack<Real, N>();
      if (row < from.count && c < head) held[i] = load_pack<N>(from.at + row * from.stride + c);
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      int at = threadIdx.x + i * THREADS;
      float* row = to + at / PACKS * PITCH + at % PACKS * N;
#pragma unroll
      for (int j = 0; j < N; j += 4) {
        Pack<float, 4> four;
#pragma unroll
        for (int e = 0; e < 4; e++) four.at[e] = to_float(held[i].at[j + e]);
        store_pack<4>(row + j, four);
      }
    }
  } else {
#pragma unroll 4
    for (int at = threadIdx.x; at < COUNT * CHUNK; at += THREADS) {
      int row = first + at / CHUNK, c = column + at % CHUNK;
      bool inside = row < from.count && c < head;
      to[at / CHUNK * PITCH + at % CHUNK] = inside ? to_float(from.at[row * from.stride + c]) : 0.0f;
    }
  }
}

// sums[r] += the warp's own row r · the lane's row of the tile, over `width` columns (zeros follow them).
template <int CHUNK>
DEVICE void dots(float (&sums)[General<CHUNK>::ROWS], const float* own, const float* tile, int width) {
  using G = General<CHUNK>;
  own += (threadIdx.x >> 5) * G::ROWS * CHUNK;
  tile += (threadIdx.x & 31) * G::PITCH;
#pragma unroll 2
  for (int c = 0; c < width; c += 4) {
    Pack<float, 4> b = load_pack<4>(tile + c);
#pragma unroll
    for (int r = 0; r < G::ROWS; r++) {
      Pack<float, 4> a = load_pack<4>(own + r * CHUNK + c);
#pragma unroll
      for (int e = 0; e < 4; e++) sums[r] += a.at[e] * b.at[e];
    }
  }
}

// sums[r][c] += Σ over `count` rows j of the tile of weights[r][j]·tile[j][lane + 32c].
template <int CHUNK>
DEVICE void accumulate(float (&sums)[General<CHUNK>::ROWS][General<CHUNK>::COLUMNS], const float* weights,
                       const float* tile, int count) {
  using G = General<CHUNK>;
  weights += (threadIdx.x >> 5) * G::ROWS * G::TILE;
  tile += threadIdx.x & 31;
#pragma unroll 1
  for (int j = 0; j < count; j += 4) {
    Pack<float, 4> w[G::ROWS];
#pragma unroll
    for (int r = 0; r < G::ROWS; r++) w[r] = load_pack<4>(weights + r * G::TILE + j);
#pragma unroll
    for (int e = 0; e < 4; e++) {
#pragma unroll
      for (int c = 0; c < G::COLUMNS; c++) {
        float b = tile[(j + e) * G::PITCH + 32 * c];
#pragma unroll
        for (int r = 0; r < G::ROWS; r++) sums[r][c] += w[r].at[e] * b;
      }
    }
  }
}

// Σ over the columns of a·b in row `row`, in every lane of the warp.
DEVICE float row_dot(const Rows& a, const Rows& b, int row, int head) {
  float sum = 0.0f;
#pragma unroll 2
  for (int c = threadIdx.x & 31; c < head; c += 32) {
    sum += to_float(a.at[row * a.stride + c]) * to_float(b.at[row * b.stride + c]);
  }
  return warp_sum(sum);
}

// Writes the warp's own rows of a result, CHUNK columns from `column` on, times a factor for each row.
template <int CHUNK>
DEVICE void store_rows(Real* to, int stride, int first, int count, int column, int head,
                       const float (&sums)[General<CHUNK>::ROWS][General<CHUNK>::COLUMNS],
                       const float (&factor)[General<CHUNK>::ROWS]) {
#pragma unroll
  for (int r = 0; r < General<CHUNK>::ROWS; r++) {
    int row = first + r;
#pragma unroll
    for (int c = 0; c < General<CHUNK>::COLUMNS; c++) {
      int at = column + 32 * c + (threadIdx.x & 31);
      if (row < count && at < head) to[row * stride + at] = from_float<Real>(sums[r][c] * factor[r]);
    }
  }
}

// A warp for every ROWS queries; a lane holds the scores of one key of the tile, then some columns of o.
//
// Reads q, writes o and lse once; k and v are read once for each OWN queries, from L2. At 384 heads of 50
// tokens and width 64 in f32 that is 20 MB from memory (6 µs at 3.35 TB/s) and on full tiles 0.4 GFLOP (7 µs
// at 60 TFLOP/s). Shared memory is the limit: for each 4·ROWS FMAs of the scores a warp reads 16 bytes a
// lane and ROWS broadcasts, which takes twice as long as the FMAs. Small blocks, because 50 tokens have no
// more than four of them a head.
template <int CHUNK>
DEVICE void forward_general(const Rows& q, const Rows& k, const Rows& v, float* lse, Real* o, int o_stride,
                            const Sizes& sizes) {
  using G = General<CHUNK>;
  __shared__ typename G::Shared shared;
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  int own_first = blockIdx.x * G::OWN, first = own_first + warp * G::ROWS, head = sizes.head;
  int end = sizes.causal ? min(k.count, own_first + G::OWN) : k.count;
  int chunks = (head + CHUNK - 1) / CHUNK;
  bool active = first < q.count;

  for (int part = 0; part < chunks; part++) {
    float sums[G::ROWS][G::COLUMNS] = {}, max[G::ROWS], total[G::ROWS] = {};
#pragma unroll
    for (int r = 0; r < G::ROWS; r++) max[r] = -infinity();

    for (int tile = 0; tile < end; tile += G::TILE) {
      float s[G::ROWS] = {};
      // The chunk that the result is for comes last, and is then still in shared memory.
      for (int i = 1; i <= chunks; i++) {
        int column = (part + i) % chunks * CHUNK;
        __syncthreads();
        if (chunks > 1 || tile == 0) stage<G::OWN, CHUNK, CHUNK>(shared.own1, q, own_first, column, head);
        stage<G::TILE, CHUNK, G::PITCH>(shared.tile1, k, tile, column, head);
        if (i == chunks) stage<G::TILE, CHUNK, G::PITCH>(shared.tile2, v, tile, column, head);
        __syncthreads();
        if (active) dots<CHUNK>(s, shared.own1, shared.tile1, min(CHUNK, head - column));
      }
      if (!active) continue;
      int key = tile + lane;
#pragma unroll
      for (int r = 0; r < G::ROWS; r++) {
        bool visible = key < k.count && (!sizes.causal || key <= first + r);
        float score = visible ? s[r] * sizes.scale : -infinity();
        // Key 0 is in the first tile and visible to all: the maximum is finite from there on.
        float larger = fmaxf(max[r], warp_max(score)), shrink = expf(max[r] - larger);
        float weight = expf(score - larger);
        max[r] = larger;
        total[r] = total[r] * shrink + weight;
#pragma unroll
        for (int c = 0; c < G::COLUMNS; c++) sums[r][c] *= shrink;
        shared.weights1[(warp * G::ROWS + r) * G::TILE + lane] = weight;
      }
      __syncwarp(FULL_WARP);
      accumulate<CHUNK>(sums, shared.weights1, shared.tile2, min(G::TILE, end - tile));
    }
    float inverse[G::ROWS];
#pragma unroll
    for (int r = 0; r < G::ROWS; r++) {
      float sum = warp_sum(total[r]);
      inverse[r] = 1.0f / sum;
      if (lane == 0 && part == 0 && first + r < q.count) lse[first + r] = max[r] + logf(sum);
    }
    store_rows<CHUNK>(o, o_stride, first, q.count, part * CHUNK, head, sums, inverse);
  }
}

// lse and delta = do·o of the tile's queries.
template <int CHUNK>
DEVICE void tile_numbers(typename General<CHUNK>::Shared& shared, const Rows& d_o, const Rows& o,
                         const float* lse, int tile, int head) {
#pragma unroll 2
  for (int row = threadIdx.x >> 5; row < General<CHUNK>::TILE; row += WARPS) {
    bool inside = tile + row < d_o.count;
    float delta = inside ? row_dot(d_o, o, tile + row, head) : 0.0f;
    if ((threadIdx.x & 31) == 0) {
      shared.lse[row] = inside ? lse[tile + row] : 0.0f;
      shared.delta[row] = delta;
    }
  }
}

// One of the two roles of the backward pass, which differ in who owns rows. A block that owns queries has
// q and do as own rows, meets tiles of k and v, and sums dq = Σ ds·k. A block that owns keys has k and v,
// meets tiles of q and do, and sums dk = Σ ds·q and dv = Σ p·do.
template <int CHUNK, bool KEYS_OWN>
DEVICE void backward_general(const Rows& own1, const Rows& own2, const Rows& other1, const Rows& other2,
                             const Rows& d_o, const Rows& o, const float* lse, Real* result1, Real* result2,
                             int block, const Sizes& sizes, typename General<CHUNK>::Shared& shared) {
  using G = General<CHUNK>;
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  int own_first = block * G::OWN, first = own_first + warp * G::ROWS, head = sizes.head;
  int begin = sizes.causal && KEYS_OWN ? own_first / G::TILE * G::TILE : 0;
  int end = sizes.causal && !KEYS_OWN ? min(other1.count, own_first + G::OWN) : other1.count;
  int chunks = (head + CHUNK - 1) / CHUNK;
  bool active = first < own1.count;

  float own_lse[G::ROWS] = {}, own_delta[G::ROWS] = {}, one[G::ROWS];
#pragma unroll
  for (int r = 0; r < G::ROWS; r++) {
    one[r] = 1.0f;
    if (!KEYS_OWN && first + r < sizes.queries) {
      own_lse[r] = lse[first + r];
      own_delta[r] = row_dot(d_o, o, first + r, head);
    }
  }
  for (int part = 0; part < chunks; part++) {
    float sums1[G::ROWS][G::COLUMNS] = {}, sums2[G::ROWS][G::COLUMNS] = {};
    for (int tile = begin; tile < end; tile += G::TILE) {
      float s[G::ROWS] = {}, dp[G::ROWS] = {};
      for (int i = 1; i <= chunks; i++) {
        int column = (part + i) % chunks * CHUNK;
        __syncthreads();
        if (chunks > 1 || tile == begin) {
          stage<G::OWN, CHUNK, CHUNK>(shared.own1, own1, own_first, column, head);
          stage<G::OWN, CHUNK, CHUNK>(shared.own2, own2, own_first, column, head);
        }
        stage<G::TILE, CHUNK, G::PITCH>(shared.tile1, other1, tile, column, head);
        stage<G::TILE, CHUNK, G::PITCH>(shared.tile2, other2, tile, column, head);
        if (KEYS_OWN && i == 1) tile_numbers<CHUNK>(shared, d_o, o, lse, tile, head);
        __syncthreads();
        if (active) {
          dots<CHUNK>(s, shared.own1, shared.tile1, min(CHUNK, head - column));
          dots<CHUNK>(dp, shared.own2, shared.tile2, min(CHUNK, head - column));
        }
      }
      if (!active) continue;
#pragma unroll
      for (int r = 0; r < G::ROWS; r++) {
        int query = KEYS_OWN ? tile + lane : first + r, key = KEYS_OWN ? first + r : tile + lane;
        bool visible = query < sizes.queries && key < sizes.keys && (!sizes.causal || key <= query);
        float row_lse = KEYS_OWN ? shared.lse[lane] : own_lse[r];
        float delta = KEYS_OWN ? shared.delta[lane] : own_delta[r];
        float p = visible ? expf(s[r] * sizes.scale - row_lse) : 0.0f;
        int at = (warp * G::ROWS + r) * G::TILE + lane;
        shared.weights1[at] = p * (dp[r] - delta) * sizes.scale;
        if (KEYS_OWN) shared.weights2[at] = p;
      }
      __syncwarp(FULL_WARP);
      accumulate<CHUNK>(sums1, shared.weights1, shared.tile1, min(G::TILE, end - tile));
      if (KEYS_OWN) accumulate<CHUNK>(sums2, shared.weights2, shared.tile2, min(G::TILE, end - tile));
    }
    store_rows<CHUNK>(result1, own1.stride, first, own1.count, part * CHUNK, head, sums1, one);
    if (KEYS_OWN) store_rows<CHUNK>(result2, own1.stride, first, own1.count, part * CHUNK, head, sums2, one);
  }
}

}  // namespace attention

#define ATTENTION_GENERAL(CHUNK)                                                                           \
  extern "C" __global__ void __launch_bounds__(attention::THREADS, 3)                                      \
      attention_general_##CHUNK(ATTENTION_PARAMETERS) {                                                    \
    begin_kernel();                                                                                        \
    ATTENTION_HEAD;                                                                                        \
    attention::forward_general<CHUNK>(q_rows, k_rows, v_rows, lse, head_of(o, queries, o_stride, head),    \
                                      o_stride, sizes);                                                    \
  }                                                                                                        \
  EXPORT_KERNEL(attention_general_##CHUNK)

ATTENTION_GENERAL(64)
ATTENTION_GENERAL(128)

// Both roles in one launch: the blocks that own keys come first, because they have more to do.
//
// At 384 heads of 50 tokens and width 64 in f32: 39 MB from memory (12 µs at 3.35 TB/s), on full tiles 1.4
// GFLOP in seven products (23 µs at 60 TFLOP/s), and as in the forward pass shared memory is what limits.
#define ATTENTION_BACKWARD_GENERAL(CHUNK)                                                                  \
  extern "C" __global__ void __launch_bounds__(attention::THREADS, 2)                                      \
      attention_backward_general_##CHUNK(ATTENTION_BACKWARD_PARAMETERS) {                                  \
    begin_kernel();                                                                                        \
    __shared__ attention::General<CHUNK>::Shared shared;                                                   \
    ATTENTION_HEAD;                                                                                        \
    attention::Rows d_o_rows = {head_of(d_o, queries, o_stride, head), o_stride, queries};                 \
    attention::Rows o_rows = {head_of(o, queries, o_stride, head), o_stride, queries};                     \
    const int OWN = attention::General<CHUNK>::OWN;                                                        \
    int key_blocks = (keys + OWN - 1) / OWN, block = blockIdx.x;                                           \
    if (block < key_blocks) {                                                                              \
      attention::backward_general<CHUNK, true>(                                                            \
          k_rows, v_rows, q_rows, d_o_rows, d_o_rows, o_rows, lse, head_of(dk, keys, kv_stride, head),     \
          head_of(dv, keys, kv_stride, head), block, sizes, shared);                                       \
    } else {                                                                                               \
      attention::backward_general<CHUNK, false>(                                                           \
          q_rows, d_o_rows, k_rows, v_rows, d_o_rows, o_rows, lse, head_of(dq, queries, q_stride, head),   \
          nullptr, block - key_blocks, sizes, shared);                                                     \
    }                                                                                                      \
  }                                                                                                        \
  EXPORT_KERNEL(attention_backward_general_##CHUNK)

ATTENTION_BACKWARD_GENERAL(64)
ATTENTION_BACKWARD_GENERAL(128)

// ---------------------------------------------------------------- one query for each head

namespace attention {

// The last block of a tower wants the features of one token: one query, all keys. A block has one head of
// one image; 8 lanes hold a row, so that 16 groups of lanes work on 16 keys, KEYS rounds of them at a time.
// PACKS: 16-byte accesses that a lane needs for its share of a row.
template <int PACKS>
struct Single {
  static constexpr int N = Wide<Real>::N;
  static constexpr int LANES = 8;
  static constexpr int GROUPS = THREADS / LANES;
  static constexpr int KEYS = 4 / PACKS;  // more would take more registers than there are
  static constexpr int COLUMNS = PACKS * N;
  using Row = Pack<Real, N>[PACKS];
};

// The lane's share of a row; zeros past the last row and column.
template <int PACKS>
DEVICE void load_row(typename Single<PACKS>::Row& to, const Rows& from, int row, int head) {
  using S = Single<PACKS>;
#pragma unroll
  for (int i = 0; i < PACKS; i++) {
    int c = (i * S::LANES + threadIdx.x % S::LANES) * S::N;
    to[i] = Pack<Real, S::N>();
    if (row < from.count && c < head) to[i] = load_pack<S::N>(from.at + row * from.stride + c);
  }
}

template <int PACKS>
DEVICE void store_row(const Rows& shape, Real* to, int row, int head,
                      const float (&values)[Single<PACKS>::COLUMNS], float factor) {
  using S = Single<PACKS>;
#pragma unroll
  for (int i = 0; i < PACKS; i++) {
    int c = (i * S::LANES + threadIdx.x % S::LANES) * S::N;
    Pack<Real, S::N> pack;
#pragma unroll
    for (int e = 0; e < S::N; e++) pack.at[e] = from_float<Real>(values[i * S::N + e] * factor);
    if (row < shape.count && c < head) store_16(to + row * shape.stride + c, pack);
  }
}

// The row as floats.
template <int PACKS>
DEVICE void widen(float (&to)[Single<PACKS>::COLUMNS], const typename Single<PACKS>::Row& row) {
  constexpr int N = Single<PACKS>::N;
#pragma unroll
  for (int i = 0; i < PACKS * N; i++) to[i] = to_float(row[i / N].at[i % N]);
}

// a·b over the whole row, in every lane of the group.
template <int PACKS>
DEVICE float group_dot(const float (&a)[Single<PACKS>::COLUMNS], const typename Single<PACKS>::Row& b) {
  constexpr int N = Single<PACKS>::N;
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < PACKS * N; i++) sum += a[i] * to_float(b[i / N].at[i % N]);
#pragma unroll
  for (int offset = 1; offset < Single<PACKS>::LANES; offset *= 2) {
    sum += __shfl_xor_sync(FULL_WARP, sum, offset);
  }
  return sum;
}

// Writes the sum over the block's groups of a row that each holds, times `factor`. Ends the kernel's use of
// `shared`.
template <int PACKS>
DEVICE void store_sum(Real* to, float (&values)[Single<PACKS>::COLUMNS], float factor, int head,
                      float (&shared)[WARPS][Single<PACKS>::LANES * Single<PACKS>::COLUMNS]) {
  using S = Single<PACKS>;
  int lane = threadIdx.x & 31;
#pragma unroll
  for (int i = 0; i < S::COLUMNS; i++) {
#pragma unroll
    for (int offset = S::LANES; offset < 32; offset *= 2) {
      values[i] += __shfl_xor_sync(FULL_WARP, values[i], offset);
    }
    int c = (i / S::N * S::LANES + lane % S::LANES) * S::N + i % S::N;
    if (lane < S::LANES) shared[threadIdx.x >> 5][c] = values[i];
  }
  __syncthreads();
  for (int c = threadIdx.x; c < head; c += THREADS) {
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) sum += shared[warp][c];
    to[c] = from_float<Real>(sum * factor);
  }
}

// Reads k and v once and keeps softmax's running maximum for each group: at 384 heads of 50 keys and width
// 64 in f16 5 MB (1.5 µs at 3.35 TB/s); all of a block's loads are under way together.
template <int PACKS>
DEVICE void forward_single(const Rows& q, const Rows& k, const Rows& v, float* lse, Real* o,
                           const Sizes& sizes) {
  using S = Single<PACKS>;
  __shared__ float shared_max[S::GROUPS], shared_total[S::GROUPS], shared[WARPS][S::LANES * S::COLUMNS];
  int group = threadIdx.x / S::LANES, head = sizes.head;
  float query[S::COLUMNS], sums[S::COLUMNS] = {}, largest = -infinity(), total = 0.0f;
  typename S::Row row;
  load_row<PACKS>(row, q, 0, head);
  widen<PACKS>(query, row);

  for (int first = 0; first < k.count; first += S::GROUPS * S::KEYS) {
    typename S::Row key[S::KEYS], value[S::KEYS];
    float s[S::KEYS], larger = largest;
#pragma unroll
    for (int i = 0; i < S::KEYS; i++) {
      load_row<PACKS>(key[i], k, first + i * S::GROUPS + group, head);
      load_row<PACKS>(value[i], v, first + i * S::GROUPS + group, head);
    }
#pragma unroll
    for (int i = 0; i < S::KEYS; i++) {
      s[i] = group_dot<PACKS>(query, key[i]) * sizes.scale;
      if (first + i * S::GROUPS + group >= k.count) s[i] = -infinity();
      larger = fmaxf(larger, s[i]);
    }
    // A group may have no key at all.
    float origin = larger == -infinity() ? 0.0f : larger, shrink = expf(largest - origin);
    largest = larger;
    total *= shrink;
#pragma unroll
    for (int c = 0; c < S::COLUMNS; c++) sums[c] *= shrink;
#pragma unroll
    for (int i = 0; i < S::KEYS; i++) {
      float p = expf(s[i] - origin);
      total += p;
#pragma unroll
      for (int c = 0; c < S::COLUMNS; c++) sums[c] += p * to_float(value[i][c / S::N].at[c % S::N]);
    }
  }
  if (threadIdx.x % S::LANES == 0) {
    shared_max[group] = largest;
    shared_total[group] = total;
  }
  __syncthreads();
  float all = shared_max[0], sum = 0.0f;
#pragma unroll
  for (int g = 1; g < S::GROUPS; g++) all = fmaxf(all, shared_max[g]);
#pragma unroll
  for (int g = 0; g < S::GROUPS; g++) sum += shared_total[g] * expf(shared_max[g] - all);
  float share = expf(largest - all);
#pragma unroll
  for (int c = 0; c < S::COLUMNS; c++) sums[c] *= share;
  if (threadIdx.x == 0) lse[0] = all + logf(sum);
  store_sum<PACKS>(o, sums, 1.0f / sum, head, shared);
}

// One pass over k and v writes dk and dv and gathers dq: at 384 heads of 50 keys and width 64 in f16 10 MB
// (3 µs at 3.35 TB/s).
template <int PACKS>
DEVICE void backward_single(const Rows& d_o, const Rows& o, const Rows& q, const Rows& k, const Rows& v,
                            const float* lse, Real* dq, Real* dk, Real* dv, const Sizes& sizes) {
  using S = Single<PACKS>;
  __shared__ float shared[WARPS][S::LANES * S::COLUMNS];
  int group = threadIdx.x / S::LANES, head = sizes.head;
  float query[S::COLUMNS], d_out[S::COLUMNS], sums[S::COLUMNS] = {};
  typename S::Row row;
  load_row<PACKS>(row, q, 0, head);
  widen<PACKS>(query, row);
  load_row<PACKS>(row, d_o, 0, head);
  widen<PACKS>(d_out, row);
  load_row<PACKS>(row, o, 0, head);
  float delta = group_dot<PACKS>(d_out, row), row_lse = lse[0];

  for (int first = 0; first < k.count; first += S::GROUPS * S::KEYS) {
    typename S::Row key[S::KEYS], value[S::KEYS];
#pragma unroll
    for (int i = 0; i < S::KEYS; i++) {
      load_row<PACKS>(key[i], k, first + i * S::GROUPS + group, head);
      load_row<PACKS>(value[i], v, first + i * S::GROUPS + group, head);
    }
#pragma unroll
    for (int i = 0; i < S::KEYS; i++) {
      int at = first + i * S::GROUPS + group;
      float s = group_dot<PACKS>(query, key[i]) * sizes.scale, dp = group_dot<PACKS>(d_out, value[i]);
      float p = at < k.count ? expf(s - row_lse) : 0.0f, ds = p * (dp - delta) * sizes.scale;
      store_row<PACKS>(k, dk, at, head, query, ds);
      store_row<PACKS>(v, dv, at, head, d_out, p);
#pragma unroll
      for (int c = 0; c < S::COLUMNS; c++) sums[c] += ds * to_float(key[i][c / S::N].at[c % S::N]);
    }
  }
  store_sum<PACKS>(dq, sums, 1.0f, head, shared);
}

}  // namespace attention

#define ATTENTION_SINGLE(PACKS)                                                                            \
  extern "C" __global__ void __launch_bounds__(attention::THREADS)                                         \
      attention_single_##PACKS(ATTENTION_PARAMETERS) {                                                     \
    begin_kernel();                                                                                        \
    ATTENTION_HEAD;                                                                                        \
    attention::forward_single<PACKS>(q_rows, k_rows, v_rows, lse, head_of(o, 1, o_stride, head), sizes);   \
  }                                                                                                        \
  EXPORT_KERNEL(attention_single_##PACKS)                                                                  \
  extern "C" __global__ void __launch_bounds__(attention::THREADS)                                         \
      attention_backward_single_##PACKS(ATTENTION_BACKWARD_PARAMETERS) {                                   \
    begin_kernel();                                                                                        \
    ATTENTION_HEAD;                                                                                        \
    attention::Rows d_o_rows = {head_of(d_o, 1, o_stride, head), o_stride, 1};                             \
    attention::Rows o_rows = {head_of(o, 1, o_stride, head), o_stride, 1};                                 \
    attention::backward_single<PACKS>(d_o_rows, o_rows, q_rows, k_rows, v_rows, lse,                       \
                                      head_of(dq, 1, q_stride, head), head_of(dk, keys, kv_stride, head),  \
                                      head_of(dv, keys, kv_stride, head), sizes);                          \
  }                                                                                                        \
  EXPORT_KERNEL(attention_backward_single_##PACKS)

ATTENTION_SINGLE(1)
ATTENTION_SINGLE(2)
ATTENTION_SINGLE(4)
