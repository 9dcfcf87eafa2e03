// Class features from the features of their prompts, and the gradient of those; all in f32.
#include "l2_norm.cuh"

namespace class_features {

// A block takes a class: its row of 512 is one pack for each thread.
const int THREADS = 128;

template <int N>
DEVICE void forward(const float* __restrict__ f, float* __restrict__ t, float* __restrict__ norms, int prompts,
                    int width) {
  __shared__ float scratch[32];
  f += size_t(blockIdx.x) * prompts * width;
  t += size_t(blockIdx.x) * width;
  float squares = 0.0f;
  for (int column = int(threadIdx.x) * N; column < width; column += THREADS * N) {
    Pack<float, N> sum = {};
#pragma unroll 8
    for (int i = 0; i < prompts; i++) {
      Pack<float, N> row = load_pack<N>(f + size_t(i) * width + column);
#pragma unroll
      for (int j = 0; j < N; j++) sum.at[j] += row.at[j];
    }
#pragma unroll
    for (int j = 0; j < N; j++) squares += sum.at[j] * sum.at[j];
    store_pack(t + column, sum);
  }
  float norm = l2_norm::length(block_sum(squares, scratch));
  for (int column = int(threadIdx.x) * N; column < width; column += THREADS * N) {
    Pack<float, N> sum = load_pack<N>(t + column);
#pragma unroll
    for (int j = 0; j < N; j++) sum.at[j] = sum.at[j] / norm;
    store_pack(t + column, sum);
  }
  if (threadIdx.x == 0) norms[blockIdx.x] = norm;
}

template <int N>
DEVICE void backward(const float* __restrict__ dt, const float* __restrict__ t,
                     const float* __restrict__ norms, float* __restrict__ df, int prompts, int width) {
  __shared__ float scratch[32];
  dt += size_t(blockIdx.x) * width;
  t += size_t(blockIdx.x) * width;
  df += size_t(blockIdx.x) * prompts * width;
  float norm = norms[blockIdx.x], along = 0.0f;
  for (int column = int(threadIdx.x) * N; column < width; column += THREADS * N) {
    Pack<float, N> d = load_pack<N>(dt + column), v = load_pack<N>(t + column);
#pragma unroll
    for (int j = 0; j < N; j++) along += v.at[j] * d.at[j];
  }
  along = block_sum(along, scratch);
  for (int column = int(threadIdx.x) * N; column < width; column += THREADS * N) {
    Pack<float, N> d = load_pack<N>(dt + column), v = load_pack<N>(t + column);
#pragma unroll
    for (int j = 0; j < N; j++) d.at[j] = l2_norm::across(d.at[j], v.at[j], along, norm);
    for (int i = 0; i < prompts; i++) store_pack(df + size_t(i) * width + column, d);
  }
}

}  // namespace class_features

// t = s/|s| and norms = |s| with s = Σ of the class's `prompts` rows of f; f [C·prompts, E], t [C, E].
// 102 classes of 512 with one prompt are 0.4 MB, from L2: the launch is the cost. A block for each class; the
// rows of several prompts are on their way together, and the second pass reads s back from L1. Four elements at
// a time where the width divides, one otherwise.
#define CLASS_FEATURES(name, N)                                                                    \
  extern "C" __global__ void __launch_bounds__(class_features::THREADS)                            \
      name(const float* __restrict__ f, float* __restrict__ t, float* __restrict__ norms,          \
           int prompts, int width) {                                                               \
    begin_kernel();                                                                                \
    class_features::forward<N>(f, t, norms, prompts, width);                                       \
  }                                                                                                \
  EXPORT_KERNEL(name)
CLASS_FEATURES(class_features_fours, 4)
CLASS_FEATURES(class_features_ones, 1)
#undef CLASS_FEATURES

// df = (dt − t·⟨t, dt⟩)/|s| for each of the class's rows. Reads dt and t and writes df; form and grid as above.
#define CLASS_FEATURES_BACKWARD(name, N)                                                               \
  extern "C" __global__ void __launch_bounds__(class_features::THREADS)                                \
      name(const float* __restrict__ dt, const float* __restrict__ t, const float* __restrict__ norms, \
           float* __restrict__ df, int prompts, int width) {                                           \
    begin_kernel();                                                                                    \
    class_features::backward<N>(dt, t, norms, df, prompts, width);                                     \
  }                                                                                                    \
  EXPORT_KERNEL(name)
CLASS_FEATURES_BACKWARD(class_features_backward_fours, 4)
CLASS_FEATURES_BACKWARD(class_features_backward_ones, 1)
#undef CLASS_FEATURES_BACKWARD
