// Head and text logits, their cross entropies and counts, and the gradients of both; all in f32.
//
// Sizes: B images, C classes, E features. Products of 32×102×512 are far too small for a library call to pay:
// they are sums over rows that lie in L2, spread over enough blocks to be limited by its latency alone.
#include "prelude.cuh"

namespace head_loss {

const int WARPS = 8;
const int THREADS = 32 * WARPS;

// Blocks that must fit a multiprocessor: there is hardly one for each, so registers are better spent on loads
// that are on their way together.
const int BLOCKS = 2;

// Images whose features meet a class row while it is in registers.
const int IMAGES = 4;

// Class rows that a warp multiplies at a time, and a block in all.
const int ROWS = 2;
const int CLASSES = WARPS * ROWS;

// Rows of a result of weighted_sums, each over 32·N columns.
const int SUMS = 4;

// Warps of a block that turns logits into their gradients, each with a row of its own.
const int GRADIENT_WARPS = 4;
const int GRADIENT_THREADS = 32 * GRADIENT_WARPS;

DEVICE float not_a_number() { return __uint_as_float(0x7fc00000u); }

// The logits of IMAGES images and ROWS classes for each warp of the block.
template <int N>
DEVICE void logits(const float* __restrict__ f, const float* __restrict__ weight,
                   const float* __restrict__ bias, float scale, float* __restrict__ out, int batch, int classes,
                   int width) {
  int lane = threadIdx.x & 31, image = int(blockIdx.y) * IMAGES;
  int first = int(blockIdx.x) * CLASSES + int(threadIdx.x >> 5) * ROWS;
  float sum[ROWS][IMAGES] = {};
#pragma unroll 4
  for (int column = lane * N; column < width; column += 32 * N) {
    Pack<float, N> w[ROWS], x[IMAGES];
    // Rows behind the last are computed as the last, and not stored.
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      w[r] = load_pack<N>(weight + size_t(min(first + r, classes - 1)) * width + column);
    }
#pragma unroll
    for (int i = 0; i < IMAGES; i++) {
      x[i] = load_pack<N>(f + size_t(min(image + i, batch - 1)) * width + column);
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
#pragma unroll
      for (int i = 0; i < IMAGES; i++) {
#pragma unroll
        for (int j = 0; j < N; j++) sum[r][i] += w[r].at[j] * x[i].at[j];
      }
    }
  }
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
#pragma unroll
    for (int i = 0; i < IMAGES; i++) {
      float total = scale * warp_sum(sum[r][i]);
      if (lane != 0 || first + r >= classes || image + i >= batch) continue;
      if (bias != nullptr) total += bias[first + r];
      out[size_t(image + i) * classes + first + r] = total;
    }
  }
}

// The largest logit of a row and the first class that has it, in every lane.
DEVICE float largest(const float* row, int classes, int* at) {
  float best = -__uint_as_float(0x7f800000u);
  int where = classes;
#pragma unroll 4
  for (int c = threadIdx.x & 31; c < classes; c += 32) {
    float z = row[c];
    if (z > best) {
      best = z;
      where = c;
    }
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) {
    float other = __shfl_xor_sync(FULL_WARP, best, offset);
    int elsewhere = __shfl_xor_sync(FULL_WARP, where, offset);
    if (other > best || (other == best && elsewhere < where)) {
      best = other;
      where = elsewhere;
    }
  }
  *at = where;
  return best;
}

// Σ exp(z − best) over a row, in every lane.
DEVICE float exponentials(const float* row, int classes, float best) {
  float sum = 0.0f;
#pragma unroll 4
  for (int c = threadIdx.x & 31; c < classes; c += 32) sum += expf(row[c] - best);
  return warp_sum(sum);
}

// What an image should be: `first` by `share`, `second` by the rest.
struct Target {
  uint32 first, second;
  float share;

  DEVICE bool known(int classes) const { return first < uint32(classes) && second < uint32(classes); }
};

// The label of an image; where `partners` are given, mixed with that of its partner. A partner that is no
// image has no class.
DEVICE Target target_of(const uint32* __restrict__ labels, const uint32* __restrict__ partners,
                        const float* __restrict__ lambda, int image, int batch) {
  uint32 label = labels[image];
  if (partners == nullptr) return {label, label, 1.0f};
  uint32 partner = partners[image];
  return {label, partner < uint32(batch) ? labels[partner] : ~0u, lambda[image]};
}

// What a class counts: its share, of which `smoothing` goes to all classes alike, times its weight.
struct Counting {
  const float* weights;
  float smoothing;

  DEVICE float of(uint32 c) const { return weights == nullptr ? 1.0f : weights[c]; }
};

// −log softmax(row) of the target's classes to *loss, as they count, and to *correct whether they have the largest
// logit (the first of equals), by their shares. A label that is no class gives NaN.
DEVICE void cross_entropy(const float* row, int classes, const Target& target, const Counting& counting,
                          float* loss, float* correct) {
  int at;
  float best = largest(row, classes, &at);
  float whole = logf(exponentials(row, classes, best));
  float of_all = 0.0f;
  if (counting.smoothing != 0.0f) {
    for (int c = threadIdx.x & 31; c < classes; c += 32) of_all += counting.of(c) * (whole + (best - row[c]));
    of_all = counting.smoothing / classes * warp_sum(of_all);
  }
  if ((threadIdx.x & 31) != 0) return;
  if (!target.known(classes)) {
    *loss = not_a_number();
    *correct = 0.0f;
    return;
  }
  float share = target.share, rest = 1.0f - share;
  float of_labels = share * counting.of(target.first) * (whole + (best - row[target.first])) +
                    rest * counting.of(target.second) * (whole + (best - row[target.second]));
  *loss = (1.0f - counting.smoothing) * of_labels + of_all;
  *correct = (at == int(target.first) ? share : 0.0f) + (at == int(target.second) ? rest : 0.0f);
}

// What weighted_sums adds up for the gradient of the head: dH[class] = Σ over images of d_head·f; and with
// d_text and text_scale for that of the text features.
struct ClassGradient {
  const float* d_logits;
  const float* f;
  float scale;
  int first, batch, classes, width;

  DEVICE int terms() const { return batch; }
  DEVICE float coefficient(int r, int image) const {
    return d_logits[size_t(image) * classes + min(first + r, classes - 1)];
  }
  DEVICE const float* row(int image) const { return f + size_t(image) * width; }
};

// And for the gradient of the features: df[image] = Σ over classes of d_head·H + text_scale·d_text·T; the
// text's terms follow the head's.
struct FeatureGradient {
  const float* d_head;
  const float* d_text;
  const float* weight;
  const float* text;
  float text_scale;
  static constexpr float scale = 1.0f;
  int first, batch, classes, width;

  DEVICE int terms() const { return d_text == nullptr ? classes : 2 * classes; }
  DEVICE float coefficient(int r, int term) const {
    size_t start = size_t(min(first + r, batch - 1)) * classes;
    return term < classes ? d_head[start + term] : text_scale * d_text[start + (term - classes)];
  }
  DEVICE const float* row(int term) const {
    return term < classes ? weight + size_t(term) * width : text + size_t(term - classes) * width;
  }
};

// What the warps of a block have added up, each on its own.
template <int N>
struct Parts {
  float sums[WARPS][SUMS][32 * N];
  float totals[WARPS][SUMS];
};

// out[first + r] = scale·Σ over terms of coefficient(r, term)·row(term), for SUMS rows and 32·N columns; and,
// where `totals` is given, totals[first + r] = Σ coefficient(r, term). The warps take the terms in turn; their
// parts are added in order.
template <int N, class Terms>
DEVICE void weighted_sums(const Terms& terms, Parts<N>& shared, float* out, float* totals, int first, int rows,
                          int width) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  int start = int(blockIdx.y) * 32 * N, column = start + lane * N;
  float sum[SUMS][N] = {}, total[SUMS] = {};
#pragma unroll 4
  for (int term = warp; term < terms.terms(); term += WARPS) {
    Pack<float, N> row = {};
    if (column < width) row = load_pack<N>(terms.row(term) + column);
#pragma unroll
    for (int r = 0; r < SUMS; r++) {
      float c = terms.coefficient(r, term);
      total[r] += c;
#pragma unroll
      for (int j = 0; j < N; j++) sum[r][j] += c * row.at[j];
    }
  }
#pragma unroll
  for (int r = 0; r < SUMS; r++) {
#pragma unroll
    for (int j = 0; j < N; j++) shared.sums[warp][r][lane * N + j] = sum[r][j];
    if (lane == 0) shared.totals[warp][r] = total[r];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < SUMS * 32 * N; i += THREADS) {
    int r = i / (32 * N), c = i % (32 * N);
    if (first + r >= rows || start + c >= width) continue;
    float value = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) value += shared.sums[w][r][c];
    out[size_t(first + r) * width + start + c] = terms.scale * value;
  }
  if (totals != nullptr && blockIdx.y == 0 && int(threadIdx.x) < SUMS && first + int(threadIdx.x) < rows) {
    float value = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) value += shared.totals[w][threadIdx.x];
    totals[first + threadIdx.x] = value;
  }
}

}  // namespace head_loss

// head = f·Hᵀ + h and text = text_scale·f·Tᵀ, [B, C]; stats[0..4] = mean cross entropy of head and of text,
// correct answers of head and of text. f [B, E], H and T [C, E], h [C]; outcomes: 4·B floats of scratch. Where
// partners u32 [B] and lambda [B] are given, an image has its own label by λᵢ and its partner's by 1 − λᵢ; with
// smoothing and class_weights [C] the head's classes count as in Counting, and the text's where text_counts.
//
// At 32×102×512 it reads 0.5 MB and computes 6.7 MFLOP: a few µs of L2 latency, and no floor to speak of.
// Grid: class tiles × groups of 4 images × (head, text): 7·8·2 = 112 blocks. A warp holds parts of 2 class
// rows and 4 features at once: 8 products for 6 loads. The last block of a group takes its cross entropies
// (a warp a row), the last group adds up the batch in the order of the images: one launch instead of three.
#define HEAD_LOSS(name, N)                                                                                    \
  extern "C" __global__ void __launch_bounds__(head_loss::THREADS, head_loss::BLOCKS)                         \
      name(const float* __restrict__ f, const float* __restrict__ weight, const float* __restrict__ bias,     \
           const float* __restrict__ text_weight, float text_scale, const uint32* __restrict__ labels,        \
           const uint32* __restrict__ partners, const float* __restrict__ lambda,                             \
           const float* __restrict__ class_weights, float smoothing, int text_counts,                         \
           float* head, float* text, float* outcomes, uint32* counters, float* stats, int batch, int classes, \
           int width) {                                                                                       \
    begin_kernel();                                                                                           \
    using namespace head_loss;                                                                                \
    __shared__ int flag;                                                                                      \
    int kind = blockIdx.z, group = blockIdx.y, groups = gridDim.y;                                            \
    float* out = kind == 0 ? head : text;                                                                     \
    logits<N>(f, kind == 0 ? weight : text_weight, kind == 0 ? bias : nullptr,                                \
              kind == 0 ? 1.0f : text_scale, out, batch, classes, width);                                     \
    if (!last_block(counters + kind * groups + group, gridDim.x, &flag)) return;                              \
    int warp = threadIdx.x >> 5, image = group * IMAGES + warp;                                               \
    if (warp < IMAGES && image < batch) {                                                                     \
      Target target = target_of(labels, partners, lambda, image, batch);                                      \
      bool counts = kind == 0 || text_counts != 0;                                                            \
      Counting counting = {counts ? class_weights : nullptr, counts ? smoothing : 0.0f};                      \
      cross_entropy(out + size_t(image) * classes, classes, target, counting,                                 \
                    outcomes + kind * batch + image, outcomes + (2 + kind) * batch + image);                  \
    }                                                                                                         \
    if (!last_block(counters + 2 * groups, 2 * groups, &flag)) return;                                        \
    if (warp < 4) {                                                                                           \
      float sum = 0.0f;                                                                                       \
      for (int i = threadIdx.x & 31; i < batch; i += 32) sum += outcomes[warp * batch + i];                   \
      sum = warp_sum(sum);                                                                                    \
      if ((threadIdx.x & 31) == 0) stats[warp] = warp < 2 ? sum / batch : sum;                                \
    }                                                                                                         \
  }                                                                                                           \
  EXPORT_KERNEL(name)
HEAD_LOSS(head_loss_fours, 4)
HEAD_LOSS(head_loss_ones, 1)
#undef HEAD_LOSS

// Logits become their gradients, row by row: z = scale·(softmax(z)·Σ t − t), scale = weight of this cross entropy
// over B, times *loss_scale where there is one; t is onehot(label), or has two labels by their shares where these
// are mixed, as Counting says.
// [B, C]; a label that is no class makes NaN. A warp a row, B/4 blocks for the head and as many for the text;
// 26 KB at 32×102.
extern "C" __global__ void __launch_bounds__(head_loss::GRADIENT_THREADS)
    head_loss_backward_logits(float* head, float* text, const uint32* __restrict__ labels,
                              const uint32* __restrict__ partners, const float* __restrict__ lambda,
                              const float* __restrict__ class_weights, float smoothing, int text_counts,
                              float head_scale, float text_scale, const float* __restrict__ loss_scale,
                              int batch, int classes) {
  begin_kernel();
  using namespace head_loss;
  int image = int(blockIdx.x) * GRADIENT_WARPS + int(threadIdx.x >> 5);
  if (image >= batch) return;
  float* row = (blockIdx.y == 0 ? head : text) + size_t(image) * classes;
  float scale = blockIdx.y == 0 ? head_scale : text_scale;
  if (loss_scale != nullptr) scale *= *loss_scale;
  Target target = target_of(labels, partners, lambda, image, batch);
  bool counts = blockIdx.y == 0 || text_counts != 0;
  Counting counting = {counts ? class_weights : nullptr, counts ? smoothing : 0.0f};
  float kept = 1.0f - counting.smoothing, even = counting.smoothing / classes;
  float own = kept * target.share, other = kept * (1.0f - target.share), total = 1.0f;
  if (!target.known(classes)) {
    scale = not_a_number();
  } else if (counting.weights != nullptr) {
    own *= counting.of(target.first);
    other *= counting.of(target.second);
    float of_all = 0.0f;
    if (even != 0.0f) {
      for (int c = threadIdx.x & 31; c < classes; c += 32) of_all += counting.of(c);
      of_all = even * warp_sum(of_all);
    }
    total = own + other + of_all;
  }
  own *= scale;
  other *= scale;
  even *= scale;
  int at;
  float best = largest(row, classes, &at);
  float factor = scale * total / exponentials(row, classes, best);
#pragma unroll 4
  for (int c = threadIdx.x & 31; c < classes; c += 32) {
    float wanted = (uint32(c) == target.first ? own : 0.0f) + (uint32(c) == target.second ? other : 0.0f);
    if (even != 0.0f) wanted += even * counting.of(c);
    row[c] = expf(row[c] - best) * factor - wanted;
  }
}
EXPORT_KERNEL(head_loss_backward_logits)

// dH = d_headᵀ·f [C, E], dh = Σ d_head [C], where df is given df = d_head·H + text_scale·d_text·T [B, E],
// without the second part where d_text is null, and where `d_text_weight` is given
// dT = text_scale·d_textᵀ·f [C, E].
//
// 3.3 MFLOP and 10 at 32×102×512; dH reads 1.7 MB of L2, df 3.3 MB, dT as dH. All are sums of rows with
// coefficients, so one kernel does them: blocks below `class_tiles` make 4 rows of dH, the next `image_tiles` 4
// rows of df, any others 4 rows of dT, each 128 columns (32 where E is not divisible by 4): (26 + 8)·4 = 136
// blocks, and 104 more for dT.
#define HEAD_LOSS_BACKWARD_PRODUCTS(name, N)                                                                  \
  extern "C" __global__ void __launch_bounds__(head_loss::THREADS, head_loss::BLOCKS)                         \
      name(const float* __restrict__ f, const float* __restrict__ weight, const float* __restrict__ text,     \
           float text_scale, const float* __restrict__ d_head, const float* __restrict__ d_text,              \
           float* __restrict__ d_weight, float* __restrict__ d_bias, float* __restrict__ df,                  \
           float* __restrict__ d_text_weight, int class_tiles, int image_tiles, int batch, int classes,       \
           int width) {                                                                                       \
    begin_kernel();                                                                                           \
    using namespace head_loss;                                                                                \
    __shared__ Parts<N> shared;                                                                               \
    int tile = int(blockIdx.x) - class_tiles;                                                                 \
    if (tile < 0 || tile >= image_tiles) {                                                                    \
      bool head = tile < 0;                                                                                   \
      int first = (head ? int(blockIdx.x) : tile - image_tiles) * SUMS;                                       \
      ClassGradient terms = {head ? d_head : d_text, f, head ? 1.0f : text_scale, first, batch, classes,      \
                             width};                                                                          \
      weighted_sums<N>(terms, shared, head ? d_weight : d_text_weight, head ? d_bias : nullptr, first,        \
                       classes, width);                                                                       \
    } else {                                                                                                  \
      int first = tile * SUMS;                                                                                \
      FeatureGradient terms = {d_head, d_text, weight, text, text_scale, first, batch, classes, width};       \
      weighted_sums<N>(terms, shared, df, static_cast<float*>(nullptr), first, batch, width);                 \
    }                                                                                                         \
  }                                                                                                           \
  EXPORT_KERNEL(name)
HEAD_LOSS_BACKWARD_PRODUCTS(head_loss_backward_products_fours, 4)
HEAD_LOSS_BACKWARD_PRODUCTS(head_loss_backward_products_ones, 1)
#undef HEAD_LOSS_BACKWARD_PRODUCTS
