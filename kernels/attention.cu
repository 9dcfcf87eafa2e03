// Attention of one head: o = softmax(scale·q·kᵀ)·v, and its gradients.
//
//   s = scale·q·kᵀ, p = exp(s − lse) with lse = log Σ exp(s) per row;  o = p·v
//   dv = pᵀ·do, dp = do·vᵀ, ds = p∘(dp − delta)·scale with delta = rowsum(do∘o);  dq = ds·k, dk = dsᵀ·q
//
// q [queries, head], k and v [keys, head] are rows of packed tensors: the rows of a head are `stride`
// apart. Scores and probabilities live in registers and shared memory only; the backward pass computes
// them again from lse, which is all that the forward pass leaves behind.
//
// There are three forms. The general one multiplies with FMAs in float and takes any type, device and head
// size. One uses tensor cores (flash attention), for head sizes that are multiples of 8 up to 128. In both
// a block owns some rows (queries, or keys for dk and dv) and loops over tiles of the rows on the other
// side. The third is for a single query, where there is nothing to share between rows. All sum in a fixed
// order. Grids are (blocks of rows, heads, images).
#include "prelude.cuh"

namespace attention {

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / 32;

DEVICE float infinity() { return __uint_as_float(0x7f800000u); }

struct Sizes {
  int queries, keys, head;
  float scale;
  bool causal;
};

// The rows of one head of one image.
struct Rows {
  const Real* at;
  int stride, count;
};

// This block's head of this block's image in a tensor whose rows are `stride` apart.
template <class T>
DEVICE T* head_of(T* tensor, int rows, int stride, int head) {
  return tensor + (long long)blockIdx.z * rows * stride + blockIdx.y * head;
}

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

// The arguments of all forward and of all backward kernels, which differ in their form and in the width of
// a head that they are built for.
#define ATTENTION_PARAMETERS                                                                               \
  const Real *q, const Real *k, const Real *v, float *saved, Real *o, int queries, int keys, int head,     \
      int q_stride, int kv_stride, float scale, int causal

#define ATTENTION_BACKWARD_PARAMETERS                                                                      \
  const Real *d_o, const Real *o, const Real *q, const Real *k, const Real *v, const float *saved,         \
      Real *dq, Real *dk, Real *dv, int queries, int keys, int head, int q_stride, int kv_stride,          \
      float scale, int causal

// Declares q_rows, k_rows, v_rows and `sizes` for this block's head; `lse` are the head's numbers of `saved`.
#define ATTENTION_HEAD                                                                                     \
  using attention::head_of;                                                                                \
  attention::Sizes sizes = {queries, keys, head, scale, causal != 0};                                      \
  attention::Rows q_rows = {head_of(q, queries, q_stride, head), q_stride, queries};                       \
  attention::Rows k_rows = {head_of(k, keys, kv_stride, head), kv_stride, keys};                           \
  attention::Rows v_rows = {head_of(v, keys, kv_stride, head), kv_stride, keys};                           \
  auto lse = saved + ((long long)blockIdx.z * gridDim.y + blockIdx.y) * queries;                           \
  int o_stride = gridDim.y * head

#define ATTENTION_GENERAL(CHUNK)                                                                           \
  extern "C" __global__ void __launch_bounds__(attention::THREADS, 3)                                      \
      attention_general_##CHUNK(ATTENTION_PARAMETERS) {                                                    \
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
    if (row < shape.count && c < head) store_pack<S::N>(to + row * shape.stride + c, pack);
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
    ATTENTION_HEAD;                                                                                        \
    attention::forward_single<PACKS>(q_rows, k_rows, v_rows, lse, head_of(o, 1, o_stride, head), sizes);   \
  }                                                                                                        \
  EXPORT_KERNEL(attention_single_##PACKS)                                                                  \
  extern "C" __global__ void __launch_bounds__(attention::THREADS)                                         \
      attention_backward_single_##PACKS(ATTENTION_BACKWARD_PARAMETERS) {                                   \
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

// ---------------------------------------------------------------- the form with tensor cores

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
  constexpr int PACKS = HEAD / 8;
#pragma unroll 4
  for (int i = 0; i < Mma<HEAD>::TILE * PACKS / THREADS; i++) {
    int at = threadIdx.x + i * THREADS, row = at / PACKS, c = at % PACKS * 8;
    bool inside = first + row < from.count && c < head;
    // The address must be a valid one even where nothing is read.
    const Real* source = from.at + (inside ? (first + row) * from.stride + c : 0);
    cp_async_16(tile + row * Mma<HEAD>::PITCH + c, source, inside);
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
  constexpr int PITCH = Mma<HEAD>::PITCH, PACKS = HEAD / 8;
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
#pragma unroll
  for (int i = 0; i < PACKS / 2; i++) {
    int at = lane + i * 32, row = at / PACKS, c = at % PACKS * 8, to_row = first + warp_row + row;
    if (to_row < to_shape.count && c < head) {
      store_pack<8>(to + to_row * to_shape.stride + c, load_pack<8>(tile + row * PITCH + c));
    }
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

// lse in base 2, and delta = do·o, of 64 queries from `first` on; two threads for each. Past the last query
// lse is infinite, so that every probability is zero.
template <int HEAD>
DEVICE void query_numbers(float* lse2, float* delta, const Rows& d_o, const Rows& o, const float* lse,
                          int first, int head) {
  int at = threadIdx.x >> 1, part = threadIdx.x & 1, row = first + at;
  bool inside = row < d_o.count;
  float sum = 0.0f;
#pragma unroll(HEAD > 96 ? 1 : 4)
  for (int i = 0; i < HEAD / 16; i++) {
    int c = (2 * i + part) * 8;
    if (inside && c < head) {
      Pack<Real, 8> a = load_pack<8>(d_o.at + row * d_o.stride + c);
      Pack<Real, 8> b = load_pack<8>(o.at + row * o.stride + c);
#pragma unroll
      for (int e = 0; e < 8; e++) sum += to_float(a.at[e]) * to_float(b.at[e]);
    }
  }
  sum += __shfl_xor_sync(FULL_WARP, sum, 1);
  if (part == 0) {
    lse2[at] = inside ? lse[row] * LOG2_E : infinity();
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
                         const Rows& d_o, const Rows& o, const float* lse, Real* result1, Real* result2,
                         int block, const Sizes& sizes) {
  using M = Mma<HEAD>;
  constexpr int STEP = HEAD > 64 ? 16 : 32;
  DYNAMIC_SHARED(Real, shared);
  float* numbers = reinterpret_cast<float*>(shared + 4 * M::ELEMENTS);
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
  cp_async_commit();
  query_numbers<HEAD>(numbers, numbers + M::TILE, d_o, o, lse, KEYS_OWN ? begin * M::TILE : own_first, head);
  cp_async_wait<0>();
  __syncthreads();

  uint32 left1[M::STEPS][4], left2[M::STEPS][4];
  load_own<HEAD>(left1, shared + 2 * M::ELEMENTS);
  load_own<HEAD>(left2, shared + 3 * M::ELEMENTS);
  QueryNumbers rows = {};
#pragma unroll
  for (int half = 0; half < 2 && !KEYS_OWN; half++) {
    int at = first - own_first + (threadIdx.x & 31) / 4 + half * 8;
    rows.lse2[half] = numbers[at];
    rows.delta[half] = numbers[M::TILE + at];
  }
  __syncthreads();

  float sums1[M::BLOCKS][4] = {}, sums2[M::BLOCKS][4] = {};
  for (int t = begin; t < end; t++) {
    int stage = (t - begin) & 1, tile = t * M::TILE, seen = min(M::TILE, other1.count - tile);
    if (t + 1 < end) {
      Real* next = shared + (stage ^ 1) * 2 * M::ELEMENTS;
      float* next_numbers = numbers + (stage ^ 1) * 2 * M::TILE;
      copy_tile<HEAD>(next, other1, tile + M::TILE, head);
      copy_tile<HEAD>(next + M::ELEMENTS, other2, tile + M::TILE, head);
      cp_async_commit();
      if (KEYS_OWN) {
        query_numbers<HEAD>(next_numbers, next_numbers + M::TILE, d_o, o, lse, tile + M::TILE, head);
      }
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
  }
  if (!active) return;
  store_own<HEAD>(own1, result1, shared, own_first, head, sums1, {sizes.scale, sizes.scale});
  if (KEYS_OWN) {
    store_own<HEAD>(own1, result2, shared + M::ELEMENTS, own_first, head, sums2, {1.0f, 1.0f});
  }
}

}  // namespace attention

#define ATTENTION_MMA(HEAD)                                                                                \
  extern "C" __global__ void __launch_bounds__(attention::THREADS)                                         \
      attention_mma_##HEAD(ATTENTION_PARAMETERS) {                                                         \
    ATTENTION_HEAD;                                                                                        \
    attention::forward_mma<HEAD>(q_rows, k_rows, v_rows, lse, head_of(o, queries, o_stride, head),         \
                                 o_stride, sizes);                                                         \
  }                                                                                                        \
  EXPORT_KERNEL(attention_mma_##HEAD)

ATTENTION_MMA(32)
ATTENTION_MMA(64)
ATTENTION_MMA(80)
ATTENTION_MMA(96)
ATTENTION_MMA(128)

// Both roles in one launch, without atomics and without partial results in memory: computing the scores
// once for each role costs two products of seven, and saves a launch and its memory.
//
// At 384 heads of 50 tokens and width 64: 20 MB (6 µs at 3.35 TB/s, less where they are still in L2), on full
// tiles 1.4 GFLOP in seven products (3 µs at the 500 TFLOP/s that mma.sync may reach). 768 blocks with 38
// KiB of shared memory and 168 registers: three to a multiprocessor, two rounds on an H100.
#define ATTENTION_BACKWARD_MMA(HEAD)                                                                       \
  extern "C" __global__ void __launch_bounds__(attention::THREADS)                                         \
      attention_backward_mma_##HEAD(ATTENTION_BACKWARD_PARAMETERS) {                                       \
    ATTENTION_HEAD;                                                                                        \
    attention::Rows d_o_rows = {head_of(d_o, queries, o_stride, head), o_stride, queries};                 \
    attention::Rows o_rows = {head_of(o, queries, o_stride, head), o_stride, queries};                     \
    const int TILE = attention::Mma<HEAD>::TILE;                                                           \
    int key_blocks = (keys + TILE - 1) / TILE, block = blockIdx.x;                                         \
    if (block < key_blocks) {                                                                              \
      attention::backward_mma<HEAD, true>(                                                                 \
          k_rows, v_rows, q_rows, d_o_rows, d_o_rows, o_rows, lse, head_of(dk, keys, kv_stride, head),     \
          head_of(dv, keys, kv_stride, head), block, sizes);                                               \
    } else {                                                                                               \
      attention::backward_mma<HEAD, false>(                                                                \
          q_rows, d_o_rows, k_rows, v_rows, d_o_rows, o_rows, lse, head_of(dq, queries, q_stride, head),   \
          nullptr, block - key_blocks, sizes);                                                             \
    }                                                                                                      \
  }                                                                                                        \
  EXPORT_KERNEL(attention_backward_mma_##HEAD)

ATTENTION_BACKWARD_MMA(32)
ATTENTION_BACKWARD_MMA(64)
ATTENTION_BACKWARD_MMA(80)
ATTENTION_BACKWARD_MMA(96)
ATTENTION_BACKWARD_MMA(128)

#endif  // TENSOR_CORES
