// Rows of length one, and the gradient with respect to what they were made of.
#include "l2_norm.cuh"

namespace l2_norm {

// Warps of a block, each with a row of its own: no barrier, and 32 rows still reach 8 multiprocessors.
const int WARPS = 4;
const int THREADS = 32 * WARPS;

DEVICE int row_of_warp() { return int(blockIdx.x) * WARPS + int(threadIdx.x >> 5); }

}  // namespace l2_norm

// f = x/|x|, norms = |x|; x Real [rows, width], f [rows, width].
// 32×512 in f16 are 98 KB: the launch is the cost. A warp reads its row twice, the second time from L1. Four
// elements at a time (8 or 16 bytes) where the width divides, one otherwise.
#define L2_NORM(name, N)                                                                           \
  extern "C" __global__ void __launch_bounds__(l2_norm::THREADS)                                   \
      name(const Real* __restrict__ x, float* __restrict__ f, float* __restrict__ norms, int rows, \
           int width) {                                                                            \
    begin_kernel();                                                                                \
    int row = l2_norm::row_of_warp();                                                              \
    if (row < rows) l2_norm::forward<N>(x, f, norms, row, width);                                  \
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
    begin_kernel();                                                                                    \
    int row = l2_norm::row_of_warp();                                                                  \
    if (row < rows) l2_norm::backward<N>(df, f, norms, dx, row, width);                                \
  }                                                                                                    \
  EXPORT_KERNEL(name)
L2_NORM_BACKWARD(l2_norm_backward_fours, 4)
L2_NORM_BACKWARD(l2_norm_backward_ones, 1)
#undef L2_NORM_BACKWARD
