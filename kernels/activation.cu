// The MLP's activation functions, forward and backward, element by element; f32 inside.
#include "activation.cuh"

namespace activation {

const int N = Wide<Real>::N;
const int THREADS = 256;

// Packs of a thread, both on their way before the first is waited for.
const int PACKS = 2;

template <class F>
DEVICE Real forward_one(Real z) {
  return from_float<Real>(F::value(to_float(z)));
}

template <class F>
DEVICE Real backward_one(Real z, Real d) {
  return from_float<Real>(to_float(d) * F::slope(to_float(z)));
}

// Where pack i of this thread begins, in packs.
DEVICE size_t pack_of(int i) { return (size_t(blockIdx.x) * PACKS + i) * THREADS + threadIdx.x; }

// The element behind the packs that this thread takes, if any: the last block has them.
DEVICE bool has_rest(int rest) { return blockIdx.x == gridDim.x - 1 && int(threadIdx.x) < rest; }

template <class F>
DEVICE void forward(const Real* __restrict__ z, Real* __restrict__ g, int packs, int rest) {
  Pack<Real, N> in[PACKS];
#pragma unroll
  for (int i = 0; i < PACKS; i++) {
    if (pack_of(i) < size_t(packs)) in[i] = load_pack<N>(z + pack_of(i) * N);
  }
#pragma unroll
  for (int i = 0; i < PACKS; i++) {
    if (pack_of(i) >= size_t(packs)) continue;
    Pack<Real, N> out;
#pragma unroll
    for (int j = 0; j < N; j++) out.at[j] = forward_one<F>(in[i].at[j]);
    store_pack(g + pack_of(i) * N, out);
  }
  if (has_rest(rest)) {
    size_t at = size_t(packs) * N + threadIdx.x;
    g[at] = forward_one<F>(z[at]);
  }
}

template <class F>
DEVICE void backward(const Real* __restrict__ z, Real* __restrict__ d, int packs, int rest) {
  Pack<Real, N> in[PACKS], upstream[PACKS];
#pragma unroll
  for (int i = 0; i < PACKS; i++) {
    if (pack_of(i) >= size_t(packs)) continue;
    in[i] = load_pack<N>(z + pack_of(i) * N);
    upstream[i] = load_pack<N>(d + pack_of(i) * N);
  }
#pragma unroll
  for (int i = 0; i < PACKS; i++) {
    if (pack_of(i) >= size_t(packs)) continue;
#pragma unroll
    for (int j = 0; j < N; j++) upstream[i].at[j] = backward_one<F>(in[i].at[j], upstream[i].at[j]);
    store_pack(d + pack_of(i) * N, upstream[i]);
  }
  if (has_rest(rest)) {
    size_t at = size_t(packs) * N + threadIdx.x;
    d[at] = backward_one<F>(z[at], d[at]);
  }
}

// Of the kernels with a bias: threads of a block, each with N columns, and rows that it takes, all on their way before
// the first is waited for.
const int BIAS_THREADS = 128;
const int BIAS_ROWS = 4;

// The columns of this thread in the rows of its block.
struct Part {
  int column;
  // Rows that there are.
  int rows;
  // Where the first row begins at that column, and from one row to the next.
  size_t start, stride;

  DEVICE Part(int n, int all_rows, int columns)
      : column((int(blockIdx.y) * BIAS_THREADS + int(threadIdx.x)) * n),
        rows(min(all_rows - int(blockIdx.x) * BIAS_ROWS, BIAS_ROWS)),
        start(size_t(blockIdx.x) * BIAS_ROWS * columns + column),
        stride(columns) {}
};

template <class F, int N>
DEVICE void bias_forward(const Real* __restrict__ z, const Real* __restrict__ bias, Real* __restrict__ g, int rows,
                         int columns) {
  Part part(N, rows, columns);
  if (part.column >= columns) return;
  Pack<Real, N> added = load_pack<N>(bias + part.column), in[BIAS_ROWS];
#pragma unroll
  for (int i = 0; i < BIAS_ROWS; i++) {
    if (i < part.rows) in[i] = load_pack<N>(z + part.start + i * part.stride);
  }
#pragma unroll
  for (int i = 0; i < BIAS_ROWS; i++) {
    if (i >= part.rows) continue;
    Pack<Real, N> out;
#pragma unroll
    for (int j = 0; j < N; j++) {
      out.at[j] = from_float<Real>(F::value(to_float(in[i].at[j]) + to_float(added.at[j])));
    }
    store_pack(g + part.start + i * part.stride, out);
  }
}

template <class F, int N>
DEVICE void bias_backward(const Real* __restrict__ z, const Real* __restrict__ bias, Real* __restrict__ d, int rows,
                          int columns) {
  Part part(N, rows, columns);
  if (part.column >= columns) return;
  Pack<Real, N> added = load_pack<N>(bias + part.column), in[BIAS_ROWS], upstream[BIAS_ROWS];
#pragma unroll
  for (int i = 0; i < BIAS_ROWS; i++) {
    if (i >= part.rows) continue;
    in[i] = load_pack<N>(z + part.start + i * part.stride);
    upstream[i] = load_pack<N>(d + part.start + i * part.stride);
  }
#pragma unroll
  for (int i = 0; i < BIAS_ROWS; i++) {
    if (i >= part.rows) continue;
#pragma unroll
    for (int j = 0; j < N; j++) {
      float slope = F::slope(to_float(in[i].at[j]) + to_float(added.at[j]));
      upstream[i].at[j] = from_float<Real>(to_float(upstream[i].at[j]) * slope);
    }
    store_pack(d + part.start + i * part.stride, upstream[i]);
  }
}

}  // namespace activation

// g = act(z), z and g Real [packs·N + rest].
// Moves z once and g once: 19.7 MB at 1600×3072 in f16, 5.9 µs of an H100's memory, less where z is still in
// L2. 512 packs a block make 1200 blocks, nine for each multiprocessor, so that the last round costs little;
// 2048 threads with two 16-byte loads each hide the latency.
#define ACTIVATION(name, F)                                                         \
  extern "C" __global__ void __launch_bounds__(activation::THREADS)                 \
      name(const Real* __restrict__ z, Real* __restrict__ g, int packs, int rest) { \
    begin_kernel();                                                                 \
    activation::forward<activation::F>(z, g, packs, rest);                          \
  }                                                                                 \
  EXPORT_KERNEL(name)
ACTIVATION(activation_quick_gelu, QuickGelu)
ACTIVATION(activation_gelu, Gelu)
#undef ACTIVATION

// d = d·act′(z), in place. Moves z and d in and d out: 29.5 MB at 1600×3072 in f16, 8.8 µs. Grid as above.
#define ACTIVATION_BACKWARD(name, F)                                                \
  extern "C" __global__ void __launch_bounds__(activation::THREADS)                 \
      name(const Real* __restrict__ z, Real* __restrict__ d, int packs, int rest) { \
    begin_kernel();                                                                 \
    activation::backward<activation::F>(z, d, packs, rest);                         \
  }                                                                                 \
  EXPORT_KERNEL(name)
ACTIVATION_BACKWARD(activation_backward_quick_gelu, QuickGelu)
ACTIVATION_BACKWARD(activation_backward_gelu, Gelu)
#undef ACTIVATION_BACKWARD

// g = act(z + b), z and g Real [rows, columns], b Real [columns]: behind a product that leaves its bias to this.
// Moves z, b and g once: 6 KB more than without a bias at 1600×3072 in f16, 19.7 MB, 5.9 µs. A thread reads its columns
// of b once for four rows, whose packs are on their way together: 1200 blocks of 128 threads, nine for each
// multiprocessor of an H100, with 64 bytes of z for each thread. In packs where rows are whole ones, else element by
// element.
#define ACTIVATION_BIAS(name, F, N)                                                            \
  extern "C" __global__ void __launch_bounds__(activation::BIAS_THREADS)                       \
      name(const Real* __restrict__ z, const Real* __restrict__ bias, Real* __restrict__ g,    \
           int rows, int columns) {                                                            \
    begin_kernel();                                                                            \
    activation::bias_forward<activation::F, N>(z, bias, g, rows, columns);                     \
  }                                                                                            \
  EXPORT_KERNEL(name)
ACTIVATION_BIAS(activation_bias_quick_gelu, QuickGelu, activation::N)
ACTIVATION_BIAS(activation_bias_gelu, Gelu, activation::N)
ACTIVATION_BIAS(activation_bias_ones_quick_gelu, QuickGelu, 1)
ACTIVATION_BIAS(activation_bias_ones_gelu, Gelu, 1)
#undef ACTIVATION_BIAS

// d = d·act′(z + b), in place. Moves z, b and d in and d out. Form and grid as above.
#define ACTIVATION_BIAS_BACKWARD(name, F, N)                                                   \
  extern "C" __global__ void __launch_bounds__(activation::BIAS_THREADS)                       \
      name(const Real* __restrict__ z, const Real* __restrict__ bias, Real* __restrict__ d,    \
           int rows, int columns) {                                                            \
    begin_kernel();                                                                            \
    activation::bias_backward<activation::F, N>(z, bias, d, rows, columns);                    \
  }                                                                                            \
  EXPORT_KERNEL(name)
ACTIVATION_BIAS_BACKWARD(activation_bias_backward_quick_gelu, QuickGelu, activation::N)
ACTIVATION_BIAS_BACKWARD(activation_bias_backward_gelu, Gelu, activation::N)
ACTIVATION_BIAS_BACKWARD(activation_bias_backward_ones_quick_gelu, QuickGelu, 1)
ACTIVATION_BIAS_BACKWARD(activation_bias_backward_ones_gelu, Gelu, 1)
#undef ACTIVATION_BIAS_BACKWARD
