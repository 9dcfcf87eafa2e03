// Prompt tokens between the class token and the patches of every sequence, and the gradient of the prompts.
//
// Sizes: B sequences of `tokens` rows of `width`, of which rows 1 to `count` are prompts. The prompts of a
// layer are count·width floats in one run, and so are their places in a sequence: both are treated as flat.
#include "prelude.cuh"

namespace prompts {

const int WARPS = 8;
const int THREADS = 32 * WARPS;

// Adjacent elements that a thread moves where the width allows it; one otherwise.
const int WIDE = Wide<Real>::N;

// Column of a flat row where this thread's pack begins.
template <int N>
DEVICE int pack_of_thread(int block) {
  return (block * THREADS + int(threadIdx.x)) * N;
}

// N floats, rounded.
template <int N>
DEVICE Pack<Real, N> rounded(const float* from) {
  const int M = N < 4 ? N : 4;
  Pack<Real, N> out;
#pragma unroll
  for (int i = 0; i < N; i += M) {
    Pack<float, M> part = load_pack<M>(from + i);
#pragma unroll
    for (int j = 0; j < M; j++) out.at[i + j] = from_float<Real>(part.at[j]);
  }
  return out;
}

template <int N>
DEVICE void insert(const Real* __restrict__ x, const float* __restrict__ prompts, Real* __restrict__ y,
                   int tokens, int count, int width) {
  int b = blockIdx.x, at = pack_of_thread<N>(blockIdx.y), added = count * width;
  if (at >= tokens * width) return;
  Pack<Real, N> pack;
  if (at >= width && at < width + added) {
    pack = rounded<N>(prompts + (at - width));
  } else {
    int from = at < width ? at : at - added;
    pack = load_pack<N>(x + size_t(b) * (tokens - count) * width + from);
  }
  store_pack(y + size_t(b) * tokens * width + at, pack);
}

template <int N>
DEVICE void replace(const float* __restrict__ prompts, Real* __restrict__ x, int tokens, int count,
                    int width) {
  int b = blockIdx.x, at = pack_of_thread<N>(blockIdx.y);
  if (at >= count * width) return;
  store_pack(x + (size_t(b) * tokens + 1) * width + at, rounded<N>(prompts + at));
}

// d_prompts += Σ over the batch of the prompts' rows of d, for 32·N of their elements. The warps take the
// sequences in turn; their parts are added in order.
template <int N>
DEVICE void add_gradient(const Real* d, float* d_prompts, float (&parts)[WARPS][32 * N], int batch,
                         int tokens, int count, int width) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  int start = int(blockIdx.x) * 32 * N, at = start + lane * N, elements = count * width;
  float sum[N] = {};
  if (at < elements) {
#pragma unroll 4
    for (int b = warp; b < batch; b += WARPS) {
      Pack<Real, N> in = load_pack<N>(d + (size_t(b) * tokens + 1) * width + at);
#pragma unroll
      for (int j = 0; j < N; j++) sum[j] += to_float(in.at[j]);
    }
  }
#pragma unroll
  for (int j = 0; j < N; j++) parts[warp][lane * N + j] = sum[j];
  __syncthreads();
  for (int i = threadIdx.x; i < 32 * N && start + i < elements; i += THREADS) {
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) total += parts[w][i];
    d_prompts[start + i] += total;
  }
}

// Zeros where this thread has read in add_gradient.
template <int N>
DEVICE void clear(Real* d, int batch, int tokens, int count, int width) {
  int at = (int(blockIdx.x) * 32 + int(threadIdx.x & 31)) * N;
  if (at >= count * width) return;
  Pack<Real, N> zeros;
#pragma unroll
  for (int j = 0; j < N; j++) zeros.at[j] = from_float<Real>(0.0f);
  for (int b = threadIdx.x >> 5; b < batch; b += WARPS) {
    store_pack(d + (size_t(b) * tokens + 1) * width + at, zeros);
  }
}

// The rows of dy that are no prompts; `block` counts from the first block that copies.
template <int N>
DEVICE void copy_others(const Real* __restrict__ dy, Real* __restrict__ dx, int block, int tokens, int count,
                        int width) {
  int kept = (tokens - count) * width, each = (kept + THREADS * N - 1) / (THREADS * N);
  int b = block / each, at = pack_of_thread<N>(block % each);
  if (at >= kept) return;
  int from = at < width ? at : at + count * width;
  store_pack(dx + size_t(b) * kept + at, load_pack<N>(dy + size_t(b) * tokens * width + from));
}

}  // namespace prompts

// y = [x₀; prompts; x₁; x₂; …] per sequence; x Real [B, tokens − count, width], prompts f32 [count, width] of
// one layer, y Real [B, tokens, width].
// Reads x and writes y: 2.5 and 3.2 MB at 32 sequences of 50 + 16 tokens of 768 in f16, 1.7 µs of an H100's
// memory; the prompts come from L2. A pack a thread: 32·25 blocks.
#define INSERT_PROMPTS(name, N)                                                                 \
  extern "C" __global__ void __launch_bounds__(prompts::THREADS)                                \
      name(const Real* __restrict__ x, const float* __restrict__ prompts, Real* __restrict__ y, \
           int tokens, int count, int width) {                                                  \
    begin_kernel();                                                                             \
    prompts::insert<N>(x, prompts, y, tokens, count, width);                                    \
  }                                                                                             \
  EXPORT_KERNEL(name)
INSERT_PROMPTS(insert_prompts_wide, prompts::WIDE)
INSERT_PROMPTS(insert_prompts_ones, 1)
#undef INSERT_PROMPTS

// d_prompts += Σ over the batch of the prompts' rows of dy, and dx = its other rows where dx is given; dy
// Real [B, tokens, width], d_prompts f32 [count, width] of one layer, dx Real [B, tokens − count, width].
// Reads dy and writes dx: 5.7 MB as above, 1.7 µs. The first `sum_blocks` blocks add up 32 packs each, the
// batch spread over 8 warps (48 blocks, 4 loads a thread at 32 sequences); the others copy a pack a thread.
#define INSERT_PROMPTS_BACKWARD(name, N)                                                                     \
  extern "C" __global__ void __launch_bounds__(prompts::THREADS)                                             \
      name(const Real* __restrict__ dy, float* __restrict__ d_prompts, Real* __restrict__ dx,                \
           int sum_blocks, int batch, int tokens, int count, int width) {                                    \
    begin_kernel();                                                                                          \
    __shared__ float parts[prompts::WARPS][32 * N];                                                          \
    if (int(blockIdx.x) < sum_blocks) {                                                                      \
      prompts::add_gradient<N>(dy, d_prompts, parts, batch, tokens, count, width);                           \
    } else {                                                                                                 \
      prompts::copy_others<N>(dy, dx, int(blockIdx.x) - sum_blocks, tokens, count, width);                   \
    }                                                                                                        \
  }                                                                                                          \
  EXPORT_KERNEL(name)
INSERT_PROMPTS_BACKWARD(insert_prompts_backward_wide, prompts::WIDE)
INSERT_PROMPTS_BACKWARD(insert_prompts_backward_ones, 1)
#undef INSERT_PROMPTS_BACKWARD

// Rows 1 to count of every sequence become the prompts; x Real [B, tokens, width], prompts f32 [count,
// width]. Writes 0.8 MB at 32 sequences with 16 prompts of 768 in f16: the launch is the cost. A pack a
// thread: 32·6 blocks.
#define REPLACE_PROMPTS(name, N)                                                                            \
  extern "C" __global__ void __launch_bounds__(prompts::THREADS)                                            \
      name(const float* __restrict__ prompts, Real* __restrict__ x, int tokens, int count, int width) {     \
    begin_kernel();                                                                                         \
    prompts::replace<N>(prompts, x, tokens, count, width);                                                  \
  }                                                                                                         \
  EXPORT_KERNEL(name)
REPLACE_PROMPTS(replace_prompts_wide, prompts::WIDE)
REPLACE_PROMPTS(replace_prompts_ones, 1)
#undef REPLACE_PROMPTS

// d_prompts += Σ over the batch of rows 1 to count of d, which become zero; d Real [B, tokens, width].
// Reads and writes 0.8 MB as above: the launch is the cost. 48 blocks, as those of insert_prompts_backward.
#define REPLACE_PROMPTS_BACKWARD(name, N)                                              \
  extern "C" __global__ void __launch_bounds__(prompts::THREADS)                       \
      name(Real* d, float* d_prompts, int batch, int tokens, int count, int width) {   \
    begin_kernel();                                                                    \
    __shared__ float parts[prompts::WARPS][32 * N];                                    \
    prompts::add_gradient<N>(d, d_prompts, parts, batch, tokens, count, width);        \
    prompts::clear<N>(d, batch, tokens, count, width);                                 \
  }                                                                                    \
  EXPORT_KERNEL(name)
REPLACE_PROMPTS_BACKWARD(replace_prompts_backward_wide, prompts::WIDE)
REPLACE_PROMPTS_BACKWARD(replace_prompts_backward_ones, 1)
#undef REPLACE_PROMPTS_BACKWARD
