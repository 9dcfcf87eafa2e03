// Picking single rows out of sequences.
#include "prelude.cuh"

namespace take_rows {

const int THREADS = 128;

// Adjacent elements that a thread moves: 16 bytes where the width allows it.
const int WIDE = Wide<Real>::N;

// Column where this thread's pack of a copied row begins.
template <int N>
DEVICE int column_of_thread() {
  return (int(blockIdx.y) * THREADS + int(threadIdx.x)) * N;
}

template <int N>
DEVICE void take(const Real* __restrict__ x, const uint32* __restrict__ rows, Real* __restrict__ y, int s,
                 int width) {
  int b = blockIdx.x, column = column_of_thread<N>();
  if (column >= width) return;
  uint32 row = rows[b];
  Pack<Real, N> pack;
  if (row < uint32(s)) {
    pack = load_pack<N>(x + (size_t(b) * s + row) * width + column);
  } else {
#pragma unroll
    for (int j = 0; j < N; j++) pack.at[j] = from_float<Real>(__uint_as_float(0x7fc00000u));
  }
  store_pack(y + size_t(b) * width + column, pack);
}

template <int N>
DEVICE void take_backward(const Real* __restrict__ dy, const uint32* __restrict__ rows, Real* __restrict__ dx,
                          int s, int width) {
  int b = blockIdx.x, column = column_of_thread<N>();
  uint32 row = rows[b];
  if (column >= width || row >= uint32(s)) return;
  Pack<Real, N> upstream = load_pack<N>(dy + size_t(b) * width + column);
  Real* to = dx + (size_t(b) * s + row) * width + column;
  Pack<Real, N> sum = load_pack<N>(to);
#pragma unroll
  for (int j = 0; j < N; j++) {
    sum.at[j] = from_float<Real>(to_float(sum.at[j]) + to_float(upstream.at[j]));
  }
  store_pack(to, sum);
}

}  // namespace take_rows

// y[b] = x[b, rows[b]]; x Real [B, s, width], y Real [B, width]. A row that is not in its sequence gives NaN,
// since the host does not see the indices. 98 KB at 32×768: the launch is the cost. A block for each row
// (and for each further 128 packs of it).
#define TAKE_ROWS(name, N)                                                                           \
  extern "C" __global__ void __launch_bounds__(take_rows::THREADS)                                   \
      name(const Real* __restrict__ x, const uint32* __restrict__ rows, Real* __restrict__ y, int s, \
           int width) {                                                                              \
    begin_kernel();                                                                                  \
    take_rows::take<N>(x, rows, y, s, width);                                                        \
  }                                                                                                  \
  EXPORT_KERNEL(name)
TAKE_ROWS(take_rows_wide, take_rows::WIDE)
TAKE_ROWS(take_rows_ones, 1)
#undef TAKE_ROWS

// dx[b, rows[b]] += dy[b]; a row that is not in its sequence changes nothing. Grid as above.
#define TAKE_ROWS_BACKWARD(name, N)                                                                    \
  extern "C" __global__ void __launch_bounds__(take_rows::THREADS)                                     \
      name(const Real* __restrict__ dy, const uint32* __restrict__ rows, Real* __restrict__ dx, int s, \
           int width) {                                                                                \
    begin_kernel();                                                                                    \
    take_rows::take_backward<N>(dy, rows, dx, s, width);                                               \
  }                                                                                                    \
  EXPORT_KERNEL(name)
TAKE_ROWS_BACKWARD(take_rows_backward_wide, take_rows::WIDE)
TAKE_ROWS_BACKWARD(take_rows_backward_ones, 1)
#undef TAKE_ROWS_BACKWARD
