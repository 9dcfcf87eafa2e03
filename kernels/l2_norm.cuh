// Rows of length one, a warp for each: l2_norm.cu has the maths.
#pragma once

#include "prelude.cuh"

namespace l2_norm {

// What a row is divided by; the smallest is PyTorch's in `F.normalize`.
DEVICE float length(float squares) { return fmaxf(sqrtf(squares), 1e-12f); }

// Of a gradient d what is across f = x/|x|, whose ⟨f, d⟩ is `along`: the gradient of x.
DEVICE float across(float d, float f, float along, float norm) { return (d - f * along) / norm; }

template <int N>
DEVICE void forward(const Real* x, float* f, float* norms, int row, int width) {
  int lane = threadIdx.x & 31;
  size_t start = size_t(row) * width;
  float squares = 0.0f;
#pragma unroll 4
  for (int column = lane * N; column < width; column += 32 * N) {
    Pack<Real, N> in = load_pack<N>(x + start + column);
#pragma unroll
    for (int j = 0; j < N; j++) squares += to_float(in.at[j]) * to_float(in.at[j]);
  }
  float norm = length(warp_sum(squares));
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
DEVICE void backward(const float* df, const float* f, const float* norms, Real* dx, int row, int width) {
  int lane = threadIdx.x & 31;
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
    for (int j = 0; j < N; j++) out.at[j] = from_float<Real>(across(d.at[j], v.at[j], along, norm));
    store_pack(dx + start + column, out);
  }
}

}  // namespace l2_norm
