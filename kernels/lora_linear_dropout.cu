// The backward pass of a layer whose adapters saw dropout of its input, up to where the product takes over.
#include "dropout.cuh"
#include "lora_linear.cuh"

namespace lora_linear {

// du·A goes back through the mask, `first` elements of which belong to the rows before the block's.
struct Dropped {
  dropout::Mask mask;
  uint32 first;

  DEVICE void operator()(size_t at, float (&v)[8]) const { dropout::apply(mask, first + uint32(at), v); }
  DEVICE void operator()(size_t at, float (&v)[1]) const {
    v[0] = dropout::apply(mask, first + uint32(at), v[0]);
  }
};

}  // namespace lora_linear

// du_i = scale·dy_i·B_i and dx = mask∘(Σ du_i·A_i)·keep_scale, to which the product dy·W is then added: as
// lora_linear_backward_start, whose 25 MB it moves too, so that the mask costs no pass over dx of its own. The
// words for 8 neighbouring elements are drawn where these are stored, 0.8 µs of all multiprocessors.
#if TENSOR_CORES

#define BACKWARD_START_KERNEL(name, stripes)                                                                \
  extern "C" __global__ void __launch_bounds__(256, 2)                                                      \
      name(BACKWARD_START_PARAMETERS, const uint32* draw, uint32 site, uint32 threshold,                    \
           float keep_scale) {                                                                              \
    begin_kernel();                                                                                         \
    using namespace lora_linear;                                                                            \
    __shared__ StartShared<stripes> shared;                                                                 \
    Dropped change = {dropout::mask_of(draw, site, threshold, keep_scale), blockIdx.x * 16 * stripes * k};  \
    backward_start(shared, dy, a, b, du, dx, m, k, n, out, rank, width, count, segments, scale, change);    \
  }                                                                                                         \
  EXPORT_KERNEL(name)
BACKWARD_START_KERNEL(lora_linear_dropout_backward_start_16_rows, 1)
BACKWARD_START_KERNEL(lora_linear_dropout_backward_start_32_rows, 2)

#endif  // TENSOR_CORES

// The same for any type and size: blocks of 16 rows. A thread's elements lie in different rows, so each draws
// the four words of its neighbours too: a few percent of what the product takes in f32.
extern "C" __global__ void __launch_bounds__(128, 4)
    lora_linear_dropout_backward_start_any(BACKWARD_START_PARAMETERS, const uint32* draw,
                                           uint32 site, uint32 threshold, float keep_scale) {
  begin_kernel();
  using namespace lora_linear;
  __shared__ AnyShared shared;
  Dropped change = {dropout::mask_of(draw, site, threshold, keep_scale), blockIdx.x * ANY_ROWS * k};
  any_backward_start(shared, dy, a, b, du, dx, m, k, n, out, rank, width, count, segments, scale, change);
}
EXPORT_KERNEL(lora_linear_dropout_backward_start_any)
