// What all forms of attention share: the parameters of their kernels, and where a head's rows are.
#pragma once
#include "prelude.cuh"

namespace attention {

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / 32;

DEVICE float infinity() { return __uint_as_float(0x7f800000u); }

struct Sizes {
  int queries, keys, head;
  float scale;
  bool causal;
};

// The rows of one head of one image.
struct Rows {
  const Real* at;
  int stride, count;
};

// This block's head of this block's image in a tensor whose rows are `stride` apart.
template <class T>
DEVICE T* head_of(T* tensor, int rows, int stride, int head) {
  return tensor + (long long)int(blockIdx.z * rows) * stride + int(blockIdx.y * head);
}

// Stores 16 bytes in one access, which the compiler splits into four of 4 on sm_80 to sm_90.
template <int N>
DEVICE void store_16(Real* to, const Pack<Real, N>& v) {
#ifdef __CUDACC_RTC__
  const uint4& words = *reinterpret_cast<const uint4*>(&v);
  asm volatile("st.global.v4.b32 [%0], {%1,%2,%3,%4};" ::"l"(to), "r"(words.x), "r"(words.y), "r"(words.z),
               "r"(words.w)
               : "memory");
#else
  store_pack<N>(to, v);
#endif
}

}  // namespace attention

// The arguments of all forward and of all backward kernels, which differ in their form and in the width of
// a head that they are built for.
#define ATTENTION_PARAMETERS                                                                               \
  const Real *q, const Real *k, const Real *v, float *saved, Real *o, int queries, int keys, int head,     \
      int q_stride, int kv_stride, float scale, int causal

#define ATTENTION_BACKWARD_PARAMETERS                                                                      \
  const Real *d_o, const Real *o, const Real *q, const Real *k, const Real *v, const float *saved,         \
      Real *dq, Real *dk, Real *dv, int queries, int keys, int head, int q_stride, int kv_stride,          \
      float scale, int causal

// Declares q_rows, k_rows, v_rows and `sizes` for this block's head; `lse` are the head's numbers of `saved`.
#define ATTENTION_HEAD                                                                                     \
  using attention::head_of;                                                                                \
  attention::Sizes sizes = {queries, keys, head, scale, causal != 0};                                      \
  attention::Rows q_rows = {head_of(q, queries, q_stride, head), q_stride, queries};                       \
  attention::Rows k_rows = {head_of(k, keys, kv_stride, head), kv_stride, keys};                           \
  attention::Rows v_rows = {head_of(v, keys, kv_stride, head), kv_stride, keys};                           \
  auto lse = saved + ((long long)blockIdx.z * gridDim.y + blockIdx.y) * queries;                           \
  int o_stride = gridDim.y * head
