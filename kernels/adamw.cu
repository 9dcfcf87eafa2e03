// AdamW over all trained tensors in two launches, whatever their number, and loss scaling; in three launches where
// there are thousands of chunks.
//
// A table on the device lists the tensors and the chunks that they fall into; a block takes one chunk. Whether
// a step counts is decided here, so that the host need not wait: the sum of squares of the gradients is not
// finite exactly where one of them is not (or where it overflows), and then nothing is updated.
#include "prelude.cuh"

namespace adamw {

const int THREADS = 256;

// Elements that a block takes; a multiple of 4.
const int CHUNK = 4096;

// As the launcher writes them.
struct Tensor {
  float* value;
  const float* gradient;
  float* first_moment;
  float* second_moment;
  double learning_rate;
  double weight_decay;
  double scale;
  uint64 length;
};

// Positions in the vectors of a step, as `Control` and `Stat` have them.
const int CONTROL_STEPS = 0, CONTROL_LOSS_SCALE = 1, CONTROL_GOOD_STEPS = 2;
const int STAT_GRADIENT_SQUARED = 4, STAT_LOSS_SCALE = 5, STAT_SKIPPED = 6;

// What a chunk needs: addresses of its first element and the number of its elements.
struct Part {
  float* value;
  const float* gradient;
  float* first_moment;
  float* second_moment;
  float scale;
  int length;
};

DEVICE Part part_of(const Tensor& tensor, Chunk chunk) {
  size_t start = size_t(chunk.index) * CHUNK;
  size_t rest = tensor.length - start;
  int length = rest < CHUNK ? int(rest) : CHUNK;
  return {tensor.value + start, tensor.gradient + start, tensor.first_moment + start,
          tensor.second_moment + start, float(tensor.scale), length};
}

DEVICE float loss_scale_of(const float* control, int scaling) {
  return scaling ? control[CONTROL_LOSS_SCALE] : 1.0f;
}

// What gradients of length √squares are multiplied with, so that they are no longer than `clip`; as
// `torch.nn.utils.clip_grad_norm_` does it, not a number where the length is none.
DEVICE float clip_factor(float clip, float squares) {
  float factor = clip / (sqrtf(squares) + 1e-6f);
  return factor > 1.0f ? 1.0f : factor;
}

// The same in every thread of a block.
DEVICE float sum_of(const float* __restrict__ squares, int count, float* scratch) {
  float total = 0.0f;
#pragma unroll 4
  for (int i = threadIdx.x; i < count; i += THREADS) total += squares[i];
  return block_sum(total, scratch);
}

DEVICE bool is_finite(float v) { return (__float_as_uint(v) & 0x7f800000u) != 0x7f800000u; }

// What is the same for all elements of a chunk.
struct Constants {
  float beta1, beta2, rest1, rest2, eps;
  float keep, step_size, root_correction;
};

// `unscale`: what takes the loss scale from the gradients, and clips them.
DEVICE void update(float& p, float& m, float& v, float gradient, float unscale, const Constants& c) {
  float g = gradient * unscale;
  m = m * c.beta1 + g * c.rest1;
  v = v * c.beta2 + g * g * c.rest2;
  float denominator = sqrtf(v) / c.root_correction + c.eps;
  p = p * c.keep - c.step_size * m / denominator;
}

DEVICE void update_part(const Part& part, float unscale, const Constants& c) {
  int packs = part.length / 4;
#pragma unroll 2
  for (int i = threadIdx.x; i < packs; i += THREADS) {
    Pack<float, 4> g = load_pack<4>(part.gradient + 4 * i), p = load_pack<4>(part.value + 4 * i);
    Pack<float, 4> m = load_pack<4>(part.first_moment + 4 * i), v = load_pack<4>(part.second_moment + 4 * i);
#pragma unroll
    for (int j = 0; j < 4; j++) update(p.at[j], m.at[j], v.at[j], g.at[j], unscale, c);
    store_pack(part.value + 4 * i, p);
    store_pack(part.first_moment + 4 * i, m);
    store_pack(part.second_moment + 4 * i, v);
  }
  int i = 4 * packs + int(threadIdx.x);
  if (i < part.length) {
    update(part.value[i], part.first_moment[i], part.second_moment[i], part.gradient[i], unscale, c);
  }
}

}  // namespace adamw

// squares[chunk] = Σ (c·g/scale)² with the tensor's own scale c, and corrections = 1 − β1ᵗ and √(1 − β2ᵗ) for the step t that this would be.
// Reads the gradients once: 2.6 MB for the adapters of ViT-B/32 and a head, 0.8 µs. A block of 256 a chunk of
// 4096, so four 16-byte loads a thread; about 200 blocks. One block more works out the powers, in double,
// while the others read.
extern "C" __global__ void __launch_bounds__(adamw::THREADS)
    adamw_norm(const adamw::Tensor* __restrict__ tensors, const Chunk* __restrict__ chunks, int count,
               const float* __restrict__ control, int scaling, double beta1, double beta2,
               float* __restrict__ squares, double* __restrict__ corrections) {
  begin_kernel();
  using namespace adamw;
  __shared__ float scratch[32];
  if (int(blockIdx.x) == count) {
    if (threadIdx.x == 0) {
      double step = double(control[CONTROL_STEPS]) + 1.0;
      corrections[0] = 1.0 - pow(beta1, step);
      corrections[1] = sqrt(1.0 - pow(beta2, step));
    }
    return;
  }
  Chunk chunk = chunks[blockIdx.x];
  Part part = part_of(tensors[chunk.entry], chunk);
  float unscale = part.scale / loss_scale_of(control, scaling);
  float sum = 0.0f;
  int packs = part.length / 4;
#pragma unroll 4
  for (int i = threadIdx.x; i < packs; i += THREADS) {
    Pack<float, 4> g = load_pack<4>(part.gradient + 4 * i);
#pragma unroll
    for (int j = 0; j < 4; j++) sum += (g.at[j] * unscale) * (g.at[j] * unscale);
  }
  int i = 4 * packs + int(threadIdx.x);
  if (i < part.length) sum += (part.gradient[i] * unscale) * (part.gradient[i] * unscale);
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) squares[blockIdx.x] = sum;
}
EXPORT_KERNEL(adamw_norm)

// total = Σ squares, in the order of adamw_update, by one block: 0.3 MB and some 20 µs for 300 million elements,
// where every block of adamw_update would add all of the 73 000 squares, 21 GB in all.
extern "C" __global__ void __launch_bounds__(adamw::THREADS)
    adamw_total(const float* __restrict__ squares, int count, float* __restrict__ total) {
  begin_kernel();
  __shared__ float scratch[32];
  float sum = adamw::sum_of(squares, count, scratch);
  if (threadIdx.x == 0) *total = sum;
}
EXPORT_KERNEL(adamw_total)

// g = c·gradient/scale·min(1, clip/(|gradients|/scale + 1e-6)), the second factor where `clipping` asks for it,
// m = β1·m + (1 − β1)·g, v = β2·v + (1 − β2)·g²,
// p = p·(1 − rate·decay) − c·rate/(1 − β1ᵗ)·m/(√v/√(1 − β2ᵗ) + ε), rate = learning rate·factor; nothing of this
// where loss scaling finds that the squares are not finite. Then the last block writes stats and control.
// Reads p, g, m, v and writes p, m, v: 18 MB, 5.4 µs, less from L2. Every block adds all `sums` squares in the
// same order, which costs less than another launch or a wait for the last block of the first, up to some
// thousands; beyond, adamw_total has added them, and `sums` is 1. Grid as above.
extern "C" __global__ void __launch_bounds__(adamw::THREADS)
    adamw_update(const adamw::Tensor* __restrict__ tensors, const Chunk* __restrict__ chunks, int count,
                 const float* __restrict__ squares, int sums, const double* __restrict__ corrections,
                 const float* __restrict__ factor, float* control, float* __restrict__ stats,
                 uint32* __restrict__ counter, double beta1, double beta2, double eps, int scaling,
                 double growth, double backoff, int interval, int clipping, float clip) {
  begin_kernel();
  using namespace adamw;
  __shared__ float scratch[32];
  __shared__ Constants constants;
  __shared__ int flag;
  float scale = loss_scale_of(control, scaling);
  // The part is looked up before the sum, so that both are waited for together. Without any chunk there is
  // one block, with an empty part.
  Part part = {};
  if (int(blockIdx.x) < count) {
    Chunk chunk = chunks[blockIdx.x];
    const Tensor& tensor = tensors[chunk.entry];
    part = part_of(tensor, chunk);
    // One thread works out what needs double; the barriers of the sum hand it to the others.
    if (threadIdx.x == 0) {
      double rate = tensor.learning_rate * double(*factor);
      constants = {float(beta1), float(beta2), float(1.0 - beta1), float(1.0 - beta2), float(eps),
                   float(1.0 - rate * tensor.weight_decay), float(tensor.scale * rate / corrections[0]),
                   float(corrections[1])};
    }
  }
  float total = sum_of(squares, sums, scratch);
  bool skip = scaling && !is_finite(total);
  float unscale = part.scale / scale;
  if (clipping) unscale *= clip_factor(clip, total);
  if (!skip) update_part(part, unscale, constants);
  if (!last_block(counter, gridDim.x, &flag) || threadIdx.x != 0) return;
  stats[STAT_GRADIENT_SQUARED] = total;
  stats[STAT_LOSS_SCALE] = scale;
  stats[STAT_SKIPPED] = skip ? 1.0f : 0.0f;
  if (!skip) control[CONTROL_STEPS] += 1.0f;
  if (!scaling) return;
  float good = control[CONTROL_GOOD_STEPS] + 1.0f;
  if (skip) {
    control[CONTROL_LOSS_SCALE] = float(double(scale) * backoff);
    good = 0.0f;
  } else if (good >= float(interval)) {
    control[CONTROL_LOSS_SCALE] = float(double(scale) * growth);
    good = 0.0f;
  }
  control[CONTROL_GOOD_STEPS] = good;
}
EXPORT_KERNEL(adamw_update)
