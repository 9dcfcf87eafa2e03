// Rows of length one, and the gradient with respect to what they were made of.
#include "prelude.cuh"

namespace l2_norm {

// Warps of a block, each with a row of its own: no barrier, and 32 rows still reach 8 multiprocessors.
const int WARPS = 4;
const int THREADS = 32 * WARPS;

DEVICE int row_of_warp() { return int(blockIdx.x) * WARPS + int(threadIdx.x >> 5); }

template <int N>
DEVICE void forward(const Real* __restrict__ x, float* __restrict__ f, float* __restrict__ norms, int rows,
                    int width) {
  int row = row_of_warp(), lane = threadIdx.x & 31;
  if (row >= rows) return;
  size_t start = size_t(row) * width;
  float squares = 0.0f;
#pragma unroll 4
  for (int column = lane * N; column < width; column += 32 * N) {
    Pack<Real, N> in = load_pack<N>(x + start + column);
#pragma unroll
    for (int j = 0; j < N; j++) squares += to_float(in.at[j]) * to_float(in.at[j]);
  }
  // The smallest divisor is PyTorch's in `F.normalize`.
  float norm = fmaxf(sqrtf(warp_sum(squares)), 1e-12f);
  for (int column = lane * N; column < width; column += 32 * N) {
    Pack<Real, N> in = load_pack<N>(x + start + column);
    Pack<float, N> out;
#pragma unroll
    for (int j = 0; j < N; j++) out.at[j] = to_float(in.at[j]) / norm;
    store_pack(f + start + column, out);
  }
  if (lane == 0) norms[row] = norm;
}

template <int N>
DEVICE void backward(const float* __restrict__ df, const float* __restrict__ f,
                     const float* __restrict__ norms, Real* __restrict__ dx, int rows, int width) {
  int row = row_of_warp(), lane = threadIdx.x & 31;
  if (row >= rows) return;
  size_t start = size_t(row) * width;
  float norm = norms[row];
  float along = 0.0f;
#pragma unroll 4
  for (int column = lane * N; column < width; column += 32 * N) {
    Pack<float, N> d = load_pack<N>(df + start + column), v = load_pack<N>(f + start + column);
#pragma unroll
    for (int j = 0; j < N; j++) along += v.at[j] * d.at[j];
  }
  along = warp_sum(along);
  for (int column = lane * N; column < width; column += 32 * N) {
    Pack<float, N> d = load_pack<N>(df + start + column), v = load_pack<N>(f + start + column);
    Pack<Real, N> out;
#pragma unroll
    for (int j = 0; j < N; j++) out.at[j] = from_float<Real>((d.at[j] - v.at[j] * along) / norm);
    store_pack(dx + start + column, out);
  }
}

}  // namespace l2_norm

// f = x/|x|, norms = |x|; x Real [rows, width], f [rows, width].
// 32×512 in f16 are 98 KB: the launch is the cost. A warp reads its row twice, the second time from L1. Four
// elements at a time (8 or 16 bytes) where the width divides, one otherwise.
#define L2_NORM(name, N)                                                                           \
  extern "C" __global__ void __launch_bounds__(l2_norm::THREADS)                                   \
      name(const Real* __restrict__ x, float* __restrict__ f, float* __restrict__ norms, int rows, \
           int width) {                                                                            \
    l2_norm::forward<N>(x, f, norms, rows, width);                                                 \
  }                                                                                                \
  EXPORT_KERNEL(name)
L2_NORM(l2_norm_fours, 4)
L2_NORM(l2_norm_ones, 1)
#undef L2_NORM

// dx = (df − f·⟨f, df⟩)/|x|; dx Real. Moves df and f in and dx out; form and grid as above.
#define L2_NORM_BACKWARD(name, N)                                                                      \
  extern "C" __global__ void __launch_bounds__(l2_norm::THREADS)                                       \
      name(const float* __restrict__ df, const float* __restrict__ f, const float* __restrict__ norms, \
           Real* __restrict__ dx, int rows, int width) {                                               \
    l2_norm::backward<N>(df, f, norms, dx, rows, width);                                               \
  }                                                                                                    \
  EXPORT_KERNEL(name)
L2_NORM_BACKWARD(l2_norm_backward_fours, 4)
L2_NORM_BACKWARD(l2_norm_backward_ones, 1)
#undef L2_NORM_BACKWARD
