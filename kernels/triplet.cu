// Batch-hard triplet loss on features, and its gradient; all in f32.
//
// Sizes: B images, E features. Distances are sums of squared differences, as the definition has them: a Gram
// matrix would lose the small ones. Nothing of size B×B is kept.
#include "prelude.cuh"

namespace triplet {

const int WARPS = 8;
const int THREADS = 32 * WARPS;

// Distances that a warp adds up at a time, so that a part of the anchor's row serves several others.
const int OTHERS = 4;

// Threads of a block of the backward pass, which takes 32·N columns of a row: many small blocks, since 32
// rows alone would leave most of the device idle.
const int LANES = 32;

// In `pairs`, an anchor without a loss; and here, no image.
const uint32 NONE = 0xffffffffu;

// No distance is below the root of this; where one would be, its gradient is 0.
const float SMALLEST_SQUARE = 1e-12f;

// The image with the largest `value`, the first of equals.
struct Largest {
  float value;
  uint32 index;
};

// NaN is the largest of all, so that it is found in the loss.
DEVICE bool exceeds(float a, float b) { return a > b || (a != a && b == b); }

DEVICE void take(Largest& best, Largest other) {
  if (other.index == NONE) return;
  bool first = !exceeds(best.value, other.value) && other.index < best.index;
  if (best.index == NONE || first || exceeds(other.value, best.value)) best = other;
}

// Squared distances of the anchor and OTHERS rows from `first` on, in every lane.
template <int N>
DEVICE void squares(const float* __restrict__ f, int anchor, int first, int batch, int width,
                    float (&sum)[OTHERS]) {
#pragma unroll
  for (int o = 0; o < OTHERS; o++) sum[o] = 0.0f;
#pragma unroll 4
  for (int column = int(threadIdx.x & 31) * N; column < width; column += 32 * N) {
    Pack<float, N> own = load_pack<N>(f + size_t(anchor) * width + column), row[OTHERS];
    // Rows behind the last are computed as the last, and not used.
#pragma unroll
    for (int o = 0; o < OTHERS; o++) {
      row[o] = load_pack<N>(f + size_t(min(first + o, batch - 1)) * width + column);
    }
#pragma unroll
    for (int o = 0; o < OTHERS; o++) {
#pragma unroll
      for (int j = 0; j < N; j++) {
        float difference = own.at[j] - row[o].at[j];
        sum[o] += difference * difference;
      }
    }
  }
#pragma unroll
  for (int o = 0; o < OTHERS; o++) sum[o] = warp_sum(sum[o]);
}

// The root, written so that NaN stays NaN.
DEVICE float distance_of(float square) { return sqrtf(square < SMALLEST_SQUARE ? SMALLEST_SQUARE : square); }

// The farthest positive and, with its distance negated, the nearest negative of an anchor among the images
// that this warp takes.
template <int N>
DEVICE void hardest(const float* __restrict__ f, const uint32* __restrict__ labels, int anchor, int batch,
                    int width, Largest& positive, Largest& negative) {
  positive = negative = Largest{0.0f, NONE};
  uint32 label = labels[anchor];
  for (int first = int(threadIdx.x >> 5) * OTHERS; first < batch; first += WARPS * OTHERS) {
    float square[OTHERS];
    squares<N>(f, anchor, first, batch, width, square);
#pragma unroll
    for (int o = 0; o < OTHERS; o++) {
      int other = first + o;
      if (other >= batch || other == anchor) continue;
      float distance = distance_of(square[o]);
      if (labels[other] == label) {
        take(positive, Largest{distance, uint32(other)});
      } else {
        take(negative, Largest{-distance, uint32(other)});
      }
    }
  }
}

// Writes what an anchor leaves behind and returns its loss.
DEVICE float finish(Largest positive, Largest negative, float margin, uint32* pair, float* distances) {
  float loss = positive.value + negative.value + margin;
  bool lacks = positive.index == NONE || negative.index == NONE;
  bool none = lacks || loss <= 0.0f;
  pair[0] = none ? NONE : positive.index;
  pair[1] = none ? NONE : negative.index;
  distances[0] = lacks ? 0.0f : positive.value;
  distances[1] = lacks ? 0.0f : -negative.value;
  return none ? 0.0f : loss;
}

// One term of a row's gradient: factor·(f[row] − f[other]).
struct Term {
  uint32 other;
  float factor;
};

// ±scale/d, or 0 where the distance was clamped. NaN stays NaN.
DEVICE float factor_of(float scale, float distance) {
  return distance <= sqrtf(SMALLEST_SQUARE) ? 0.0f : scale / distance;
}

// Gathers the terms that 32 anchors from `first` on give to `row`, in the order of the anchors, the positive
// before the negative; returns their number. An anchor that is the row itself gives both of its terms,
// another the one in which it names the row. Images that are not in the batch give NaN.
DEVICE int gather(const uint32* __restrict__ pairs, const float* __restrict__ distances, float scale, int row,
                  int first, int batch, Term (&terms)[2 * LANES]) {
  int lane = threadIdx.x, anchor = first + lane;
  Term term[2];
  bool wanted[2];
#pragma unroll
  for (int k = 0; k < 2; k++) {
    uint32 other = anchor < batch ? pairs[2 * size_t(anchor) + k] : NONE;
    wanted[k] = other != NONE && (anchor == row || other == uint32(row));
    float factor = wanted[k] ? factor_of(k == 0 ? scale : -scale, distances[2 * size_t(anchor) + k]) : 0.0f;
    bool known = other < uint32(batch);
    term[k].other = anchor != row ? uint32(anchor) : known ? other : uint32(row);
    term[k].factor = known ? factor : __uint_as_float(0x7fc00000u);
  }
  uint32 before = (1u << lane) - 1;
  uint32 positives = __ballot_sync(FULL_WARP, wanted[0]), negatives = __ballot_sync(FULL_WARP, wanted[1]);
  int at = __popc(positives & before) + __popc(negatives & before);
  if (wanted[0]) terms[at] = term[0];
  if (wanted[1]) terms[at + int(wanted[0])] = term[1];
  return __popc(positives) + __popc(negatives);
}

template <int N>
DEVICE void backward(const float* __restrict__ f, const uint32* __restrict__ pairs,
                     const float* __restrict__ distances, float scale, float* __restrict__ df, int batch,
                     int width) {
  __shared__ Term terms[2 * LANES];
  int row = blockIdx.x, column = (int(blockIdx.y) * LANES + int(threadIdx.x)) * N;
  bool inside = column < width;
  Pack<float, N> own = {}, sum = {};
  size_t at = size_t(row) * width + column;
  if (inside) {
    own = load_pack<N>(f + at);
    sum = load_pack<N>(df + at);
  }
  for (int first = 0; first < batch; first += LANES) {
    int count = gather(pairs, distances, scale, row, first, batch, terms);
    __syncwarp();
    if (inside) {
#pragma unroll 8
      for (int i = 0; i < count; i++) {
        Term term = terms[i];
        Pack<float, N> other = load_pack<N>(f + size_t(term.other) * width + column);
#pragma unroll
        for (int j = 0; j < N; j++) sum.at[j] += term.factor * (own.at[j] - other.at[j]);
      }
    }
    __syncwarp();
  }
  if (inside) store_pack(df + at, sum);
}

}  // namespace triplet

// loss = mean over the anchors of max(0, d⁺ − d⁻ + margin); pairs u32 [B, 2] and distances [B, 2]: those of
// the farthest positive and the nearest negative, NONE where the loss is 0, and 0 where one of them lacks. Behind
// the loss stand the share of the anchors with a loss and the means of d⁺ and d⁻ over those that have both. f [B, E], labels u32 [B];
// losses: B floats of scratch. What is not a number is the farthest and the nearest, so that the loss is none
// either.
//
// B²·E differences, read from L2: 2 MB and 1.6 MFLOP at 32×512, a few µs of latency; 34 GB at 4096. A block
// for each anchor; its warps take 4 other images at a time, 4 packs of each on their way. The last block adds
// up the batch: one launch.
#define TRIPLET(name, N)                                                                                  \
  extern "C" __global__ void __launch_bounds__(triplet::THREADS)                                          \
      name(const float* __restrict__ f, const uint32* __restrict__ labels, float margin,                  \
           uint32* __restrict__ pairs, float* __restrict__ distances, float* losses, uint32* counter,     \
           float* loss, int batch, int width) {                                                           \
    begin_kernel();                                                                                       \
    using namespace triplet;                                                                              \
    __shared__ Largest found[2][WARPS];                                                                   \
    __shared__ float scratch[32];                                                                         \
    __shared__ int flag;                                                                                  \
    int anchor = blockIdx.x;                                                                              \
    Largest positive, negative;                                                                           \
    hardest<N>(f, labels, anchor, batch, width, positive, negative);                                      \
    if ((threadIdx.x & 31) == 0) {                                                                        \
      found[0][threadIdx.x >> 5] = positive;                                                              \
      found[1][threadIdx.x >> 5] = negative;                                                              \
    }                                                                                                     \
    __syncthreads();                                                                                      \
    if (threadIdx.x == 0) {                                                                               \
      for (int warp = 1; warp < WARPS; warp++) {                                                          \
        take(positive, found[0][warp]);                                                                   \
        take(negative, found[1][warp]);                                                                   \
      }                                                                                                   \
      losses[anchor] =                                                                                    \
          finish(positive, negative, margin, pairs + 2 * size_t(anchor), distances + 2 * size_t(anchor)); \
    }                                                                                                     \
    if (!last_block(counter, gridDim.x, &flag)) return;                                                   \
    float sum = 0.0f, active = 0.0f, both = 0.0f, apart[2] = {};                                          \
    for (int i = threadIdx.x; i < batch; i += THREADS) {                                                  \
      sum += losses[i];                                                                                   \
      active += losses[i] == 0.0f ? 0.0f : 1.0f;                                                          \
      both += distances[2 * size_t(i)] == 0.0f ? 0.0f : 1.0f;                                             \
      apart[0] += distances[2 * size_t(i)];                                                               \
      apart[1] += distances[2 * size_t(i) + 1];                                                           \
    }                                                                                                     \
    sum = block_sum(sum, scratch), active = block_sum(active, scratch);                                   \
    both = block_sum(both, scratch);                                                                      \
    apart[0] = block_sum(apart[0], scratch), apart[1] = block_sum(apart[1], scratch);                     \
    if (threadIdx.x != 0) return;                                                                         \
    loss[0] = sum / batch, loss[1] = active / batch;                                                      \
    loss[2] = apart[0] / fmaxf(both, 1.0f), loss[3] = apart[1] / fmaxf(both, 1.0f);                       \
  }                                                                                                       \
  EXPORT_KERNEL(name)
TRIPLET(triplet_fours, 4)
TRIPLET(triplet_ones, 1)
#undef TRIPLET

// df[r] += Σ ±scale/d·(f[r] − f[other]) over the pairs that r is part of, scale = weight/B, times *loss_scale
// where there is one; df and f [B, E].
//
// Each row finds its terms among the pairs and adds them up, so that an element has one writer: 0.5 MB of L2
// at 32×512, where a row has four terms on average; latency alone. A block of one warp for each row and 128
// of its columns (32 where E is not divisible by 4): 32·4 blocks.
#define TRIPLET_BACKWARD(name, N)                                                                              \
  extern "C" __global__ void __launch_bounds__(triplet::LANES)                                                 \
      name(const float* __restrict__ f, const uint32* __restrict__ pairs, const float* __restrict__ distances, \
           float scale, const float* __restrict__ loss_scale, float* __restrict__ df, int batch, int width) {  \
    begin_kernel();                                                                                            \
    if (loss_scale != nullptr) scale *= *loss_scale;                                                           \
    triplet::backward<N>(f, pairs, distances, scale, df, batch, width);                                        \
  }                                                                                                            \
  EXPORT_KERNEL(name)
TRIPLET_BACKWARD(triplet_backward_fours, 4)
TRIPLET_BACKWARD(triplet_backward_ones, 1)
#undef TRIPLET_BACKWARD
