// Layer norm over the last dimension, forward and backward, and the embedding's sum and norm in one pass.
//
// Two forms of each. Rows of 256, 512, 768, 1024 or 1280 elements, the widths of CLIP's towers, are held in
// the registers of one warp: nothing is read twice, no barrier is needed, and with the width known no load
// waits behind a branch. Any other width goes to a block per row that reads its row once for each sum.
#include "prelude.cuh"

namespace layer_norm {

const int N = Wide<Real>::N;

// Warps of a block, each with a row of its own.
const int WARPS = 4;
const int THREADS = 32 * WARPS;

// Blocks that must fit a multiprocessor: more would leave a thread too few registers to have all loads of its
// row on the way at once.
const int BLOCKS = 4;

// Threads of a block that shares one row.
const int GENERAL_THREADS = 256;

// Packs that a lane holds of a row of WIDTH elements.
template <int WIDTH>
struct Held {
  static const int PACKS = WIDTH / (32 * N);
};

DEVICE int row_of_warp() { return int(blockIdx.x) * WARPS + int(threadIdx.x >> 5); }

// Where lane's pack i begins in its row.
DEVICE int column_of(int i) { return (int(threadIdx.x & 31) + 32 * i) * N; }

// sum/width within 2 ulp: the exact division would bring a call.
DEVICE float over(float sum, int width) { return __fdividef(sum, float(width)); }

DEVICE void load_floats(float (&to)[N], const float* from) {
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    Pack<float, 4> four = load_pack<4>(from + i);
#pragma unroll
    for (int j = 0; j < 4; j++) to[i + j] = four.at[j];
  }
}

// Rows that are a tensor.
struct Rows {
  const Real* x;
  int width;

  DEVICE void load(float (&to)[N], int row, int column) const {
    Pack<Real, N> pack = load_pack<N>(x + size_t(row) * width + column);
#pragma unroll
    for (int j = 0; j < N; j++) to[j] = to_float(pack.at[j]);
  }
  DEVICE float one(int row, int column) const { return to_float(x[size_t(row) * width + column]); }
};

// Rows that are the embedding: the class vector, or the product of a patch, plus the position.
struct Tokens {
  const Real* products;
  const float* first;
  const float* position;
  int tokens, width;

  DEVICE const Real* product(int row, int token) const {
    return products + (size_t(row / tokens) * (tokens - 1) + (token - 1)) * width;
  }
  DEVICE void load(float (&to)[N], int row, int column) const {
    int token = row % tokens;
    float place[N];
    load_floats(place, position + size_t(token) * width + column);
    if (token == 0) {
      load_floats(to, first + column);
    } else {
      Pack<Real, N> pack = load_pack<N>(product(row, token) + column);
#pragma unroll
      for (int j = 0; j < N; j++) to[j] = to_float(pack.at[j]);
    }
#pragma unroll
    for (int j = 0; j < N; j++) to[j] += place[j];
  }
  DEVICE float one(int row, int column) const {
    int token = row % tokens;
    float value = token == 0 ? first[column] : to_float(product(row, token)[column]);
    return value + position[size_t(token) * width + column];
  }
};

DEVICE void store_stats(float* stats, int row, float mean, float inverse) {
  Pack<float, 2> both;
  both.at[0] = mean;
  both.at[1] = inverse;
  store_pack(stats + 2 * size_t(row), both);
}

// The variance is summed from the differences, in a second pass over the registers: the mean of squares
// less the square of the mean would lose the digits of a row that is far from zero.
template <int WIDTH, class Source>
DEVICE void forward(const Source& source, const float* weight, const float* bias, Real* y, float* stats,
                    int rows, float eps) {
  const int PACKS = Held<WIDTH>::PACKS;
  int row = row_of_warp();
  if (row >= rows) return;
  float v[PACKS][N], w[PACKS][N], b[PACKS][N];
#pragma unroll
  for (int i = 0; i < PACKS; i++) source.load(v[i], row, column_of(i));
  // On their way while the sums are taken.
#pragma unroll
  for (int i = 0; i < PACKS; i++) {
    load_floats(w[i], weight + column_of(i));
    load_floats(b[i], bias + column_of(i));
  }
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < PACKS; i++) {
#pragma unroll
    for (int j = 0; j < N; j++) sum += v[i][j];
  }
  float mean = over(warp_sum(sum), WIDTH);
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < PACKS; i++) {
#pragma unroll
    for (int j = 0; j < N; j++) squares += (v[i][j] - mean) * (v[i][j] - mean);
  }
  float inverse = rsqrtf(over(warp_sum(squares), WIDTH) + eps);
#pragma unroll
  for (int i = 0; i < PACKS; i++) {
    Pack<Real, N> out;
#pragma unroll
    for (int j = 0; j < N; j++) out.at[j] = from_float<Real>((v[i][j] - mean) * inverse * w[i][j] + b[i][j]);
    store_pack(y + size_t(row) * WIDTH + column_of(i), out);
  }
  if (stats != nullptr && (threadIdx.x & 31) == 0) store_stats(stats, row, mean, inverse);
}

template <class Source>
DEVICE void forward_general(const Source& source, const float* weight, const float* bias, Real* y, float* stats,
                            int width, float eps) {
  __shared__ float scratch[32];
  int row = int(blockIdx.x);
  float sum = 0.0f;
  for (int c = threadIdx.x; c < width; c += GENERAL_THREADS) sum += source.one(row, c);
  float mean = over(block_sum(sum, scratch), width);
  float squares = 0.0f;
  for (int c = threadIdx.x; c < width; c += GENERAL_THREADS) {
    float d = source.one(row, c) - mean;
    squares += d * d;
  }
  float inverse = rsqrtf(over(block_sum(squares, scratch), width) + eps);
  for (int c = threadIdx.x; c < width; c += GENERAL_THREADS) {
    float value = (source.one(row, c) - mean) * inverse * weight[c] + bias[c];
    y[size_t(row) * width + c] = from_float<Real>(value);
  }
  if (stats != nullptr && threadIdx.x == 0) store_stats(stats, row, mean, inverse);
}

template <int WIDTH>
DEVICE void backward(const Real* __restrict__ dy, const Real* __restrict__ x, const float* __restrict__ weight,
                     const float* __restrict__ stats, const Real* to, Real* dx, int rows) {
  const int PACKS = Held<WIDTH>::PACKS;
  int row = row_of_warp();
  if (row >= rows) return;
  size_t start = size_t(row) * WIDTH;
  Pack<float, 2> both = load_pack<2>(stats + 2 * size_t(row));
  float mean = both.at[0], inverse = both.at[1];
  // All loads of the row are on their way before the first is waited for, and none waits behind a branch.
  bool adds = to != nullptr;
  Pack<Real, N> upstream[PACKS], input[PACKS], before[PACKS];
#pragma unroll
  for (int i = 0; i < PACKS; i++) {
    upstream[i] = load_pack<N>(dy + start + column_of(i));
    input[i] = load_pack<N>(x + start + column_of(i));
    before[i] = load_pack<N>((adds ? to : dy) + start + column_of(i));
  }
  float g[PACKS][N];
  float sum_g = 0.0f, sum_gx = 0.0f;
#pragma unroll
  for (int i = 0; i < PACKS; i++) {
    load_floats(g[i], weight + column_of(i));
#pragma unroll
    for (int j = 0; j < N; j++) {
      g[i][j] *= to_float(upstream[i].at[j]);
      sum_g += g[i][j];
      sum_gx += g[i][j] * (to_float(input[i].at[j]) - mean);
    }
  }
  float mean_g = over(warp_sum(sum_g), WIDTH);
  float mean_gx = over(warp_sum(sum_gx) * inverse, WIDTH);
#pragma unroll
  for (int i = 0; i < PACKS; i++) {
    Pack<Real, N> out;
#pragma unroll
    for (int j = 0; j < N; j++) {
      float normal = (to_float(input[i].at[j]) - mean) * inverse;
      float d = (g[i][j] - mean_g - normal * mean_gx) * inverse;
      out.at[j] = from_float<Real>((adds ? to_float(before[i].at[j]) : 0.0f) + d);
    }
    store_pack(dx + start + column_of(i), out);
  }
}

}  // namespace layer_norm

// y = (x − mean(x))/√(var(x) + eps)·w + b; x, y Real [rows, width], w, b [width], stats [rows, 2] the mean
// and 1/√(var + eps).
// Moves x once and y once: 4.9 MB at 1600×768 in f16, 1.5 µs of an H100's memory; the weights stay in L1.
// A warp holds a row (24 numbers a lane at 768); 4 rows a block make 400 blocks, three for each
// multiprocessor, and no warp waits for another. (`width` is unused here: all forms take the same arguments.)
#define LAYER_NORM(WIDTH)                                                                                   \
  extern "C" __global__ void __launch_bounds__(layer_norm::THREADS, layer_norm::BLOCKS)                     \
      layer_norm_##WIDTH(const Real* __restrict__ x, const float* __restrict__ weight,                      \
                           const float* __restrict__ bias, Real* __restrict__ y, float* __restrict__ stats, \
                           int rows, int width, float eps) {                                                \
    begin_kernel();                                                                                         \
    layer_norm::forward<WIDTH>(layer_norm::Rows{x, WIDTH}, weight, bias, y, stats, rows, eps);              \
  }                                                                                                         \
  EXPORT_KERNEL(layer_norm_##WIDTH)
LAYER_NORM(256)
LAYER_NORM(512)
LAYER_NORM(768)
LAYER_NORM(1024)
LAYER_NORM(1280)
#undef LAYER_NORM

// The same at any width: a block of 256 for each row, which is read three times, from L1 after the first.
extern "C" __global__ void __launch_bounds__(layer_norm::GENERAL_THREADS)
    layer_norm_general(const Real* __restrict__ x, const float* __restrict__ weight,
                       const float* __restrict__ bias, Real* __restrict__ y, float* __restrict__ stats,
                       int rows, int width, float eps) {
  begin_kernel();
  layer_norm::forward_general(layer_norm::Rows{x, width}, weight, bias, y, stats, width, eps);
}
EXPORT_KERNEL(layer_norm_general)

// x = layer norm of ([class; products] + position): products Real [B, S − 1, D], class [D], position [S, D],
// x Real [B, S, D]; rows = B·S.
// Moves the products once and x once, as layer_norm does; class and positions (150 KB) come from L2.
#define LAYER_NORM_TOKENS(WIDTH)                                                                            \
  extern "C" __global__ void __launch_bounds__(layer_norm::THREADS, layer_norm::BLOCKS)                     \
      layer_norm_tokens_##WIDTH(const Real* __restrict__ products, const float* __restrict__ first,         \
                                const float* __restrict__ position, const float* __restrict__ weight,       \
                                const float* __restrict__ bias, Real* __restrict__ x, int rows, int tokens, \
                                int width, float eps) {                                                     \
    begin_kernel();                                                                                         \
    layer_norm::Tokens source = {products, first, position, tokens, WIDTH};                                 \
    layer_norm::forward<WIDTH>(source, weight, bias, x, nullptr, rows, eps);                                \
  }                                                                                                         \
  EXPORT_KERNEL(layer_norm_tokens_##WIDTH)
LAYER_NORM_TOKENS(256)
LAYER_NORM_TOKENS(512)
LAYER_NORM_TOKENS(768)
LAYER_NORM_TOKENS(1024)
LAYER_NORM_TOKENS(1280)
#undef LAYER_NORM_TOKENS

extern "C" __global__ void __launch_bounds__(layer_norm::GENERAL_THREADS)
    layer_norm_tokens_general(const Real* __restrict__ products, const float* __restrict__ first,
                              const float* __restrict__ position, const float* __restrict__ weight,
                              const float* __restrict__ bias, Real* __restrict__ x, int rows, int tokens,
                              int width, float eps) {
  begin_kernel();
  layer_norm::Tokens source = {products, first, position, tokens, width};
  layer_norm::forward_general(source, weight, bias, x, nullptr, width, eps);
}
EXPORT_KERNEL(layer_norm_tokens_general)

// With x̂ = (x − mean)·inverse and g = dy·w: dx = to + (g − mean(g) − x̂·mean(g·x̂))·inverse; shapes as above. `to` may
// be dx, or null.
// Moves dy, x and `to` in and dx out: 9.8 MB at 1600×768 in f16, 2.9 µs. Grid as the forward pass; both sums
// are reduced together, so that their shuffles overlap.
#define LAYER_NORM_BACKWARD(WIDTH)                                                                     \
  extern "C" __global__ void __launch_bounds__(layer_norm::THREADS, layer_norm::BLOCKS)                \
      layer_norm_backward_##WIDTH(const Real* __restrict__ dy, const Real* __restrict__ x,             \
                                    const float* __restrict__ weight, const float* __restrict__ stats, \
                                    const Real* to, Real* dx, int rows, int width) {                   \
    begin_kernel();                                                                                    \
    layer_norm::backward<WIDTH>(dy, x, weight, stats, to, dx, rows);                                   \
  }                                                                                                    \
  EXPORT_KERNEL(layer_norm_backward_##WIDTH)
LAYER_NORM_BACKWARD(256)
LAYER_NORM_BACKWARD(512)
LAYER_NORM_BACKWARD(768)
LAYER_NORM_BACKWARD(1024)
LAYER_NORM_BACKWARD(1280)
#undef LAYER_NORM_BACKWARD

extern "C" __global__ void __launch_bounds__(layer_norm::GENERAL_THREADS)
    layer_norm_backward_general(const Real* __restrict__ dy, const Real* __restrict__ x,
                                const float* __restrict__ weight, const float* __restrict__ stats,
                                const Real* to, Real* dx, int rows, int width) {
  begin_kernel();
  __shared__ float scratch[32];
  size_t start = size_t(blockIdx.x) * width;
  Pack<float, 2> both = load_pack<2>(stats + 2 * size_t(blockIdx.x));
  float mean = both.at[0], inverse = both.at[1];
  float sum_g = 0.0f, sum_gx = 0.0f;
  for (int c = threadIdx.x; c < width; c += layer_norm::GENERAL_THREADS) {
    float g = to_float(dy[start + c]) * weight[c];
    sum_g += g;
    sum_gx += g * (to_float(x[start + c]) - mean);
  }
  float mean_g = layer_norm::over(block_sum(sum_g, scratch), width);
  float mean_gx = layer_norm::over(block_sum(sum_gx, scratch) * inverse, width);
  for (int c = threadIdx.x; c < width; c += layer_norm::GENERAL_THREADS) {
    float g = to_float(dy[start + c]) * weight[c];
    float normal = (to_float(x[start + c]) - mean) * inverse;
    float d = (g - mean_g - normal * mean_gx) * inverse;
    float before = to == nullptr ? 0.0f : to_float(to[start + c]);
    dx[start + c] = from_float<Real>(before + d);
  }
}
EXPORT_KERNEL(layer_norm_backward_general)
