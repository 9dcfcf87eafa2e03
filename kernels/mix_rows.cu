// MixUp of the rows of a matrix, and its gradient; all in f32.
#include "prelude.cuh"

namespace mix_rows {

// A thread moves one pack: a row of 512 is one block.
const int THREADS = 128;

// y[i] = own·x[i] + other·x[k], this block's part of row i = blockIdx.x. Where k is no row, it is NaN.
template <int N>
DEVICE void weighted(const float* __restrict__ x, float* __restrict__ y, uint32 k, float own, float other,
                     int width) {
  int i = blockIdx.x, column = (int(blockIdx.y) * THREADS + int(threadIdx.x)) * N;
  if (column >= width) return;
  if (k >= gridDim.x) {
    k = i;
    own = other = __uint_as_float(0x7fc00000u);
  }
  Pack<float, N> a = load_pack<N>(x + size_t(i) * width + column);
  Pack<float, N> b = load_pack<N>(x + size_t(k) * width + column);
#pragma unroll
  for (int j = 0; j < N; j++) a.at[j] = own * a.at[j] + other * b.at[j];
  store_pack(y + size_t(i) * width + column, a);
}

}  // namespace mix_rows

// y[i] = λᵢ·x[i] + (1 − λᵢ)·x[partners[i]]; x and y [B, width], partners u32 [B], lambda [B]. A partner that is
// no row gives NaN, since the host does not see the indices.
// 0.2 MB at 32×512: the launch is the cost. A block for each row (and for each further 128 packs of it), all of
// which is on its way at once when partner and λ are there. Four elements at a time where the width divides,
// one otherwise.
#define MIX_ROWS(name, N)                                                        \
  extern "C" __global__ void __launch_bounds__(mix_rows::THREADS)                \
      name(const float* __restrict__ x, const uint32* __restrict__ partners,     \
           const float* __restrict__ lambda, float* __restrict__ y, int width) { \
    begin_kernel();                                                              \
    float own = lambda[blockIdx.x];                                              \
    mix_rows::weighted<N>(x, y, partners[blockIdx.x], own, 1.0f - own, width);   \
  }                                                                              \
  EXPORT_KERNEL(name)
MIX_ROWS(mix_rows_fours, 4)
MIX_ROWS(mix_rows_ones, 1)
#undef MIX_ROWS

// dx[i] = λᵢ·dy[i] + (1 − λₖ)·dy[k] with k = inverse[i], the row that has row i as its partner. Form and grid
// as above.
#define MIX_ROWS_BACKWARD(name, N)                                                \
  extern "C" __global__ void __launch_bounds__(mix_rows::THREADS)                 \
      name(const float* __restrict__ dy, const uint32* __restrict__ inverse,      \
           const float* __restrict__ lambda, float* __restrict__ dx, int width) { \
    begin_kernel();                                                               \
    uint32 k = inverse[blockIdx.x];                                               \
    float other = 1.0f - lambda[min(k, gridDim.x - 1)];                           \
    mix_rows::weighted<N>(dy, dx, k, lambda[blockIdx.x], other, width);           \
  }                                                                               \
  EXPORT_KERNEL(name)
MIX_ROWS_BACKWARD(mix_rows_backward_fours, 4)
MIX_ROWS_BACKWARD(mix_rows_backward_ones, 1)
#undef MIX_ROWS_BACKWARD
