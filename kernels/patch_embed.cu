// From pixels to the rows that the patch product takes. (The sum of products, class and positions is normalised by
// layer_norm_tokens in layer_norm.cu.)
//
// A patch is a row of 3·p·p numbers in the order of the convolution's weights: channel, row, column. Rows are `stride`
// numbers apart, whole 16 bytes for the product; what is behind the numbers is zero.
#include "prelude.cuh"

namespace patch_embed {

const int THREADS = 256;
const int LEVELS = 256;

// Adjacent elements that a thread writes, N at a time: 16 bytes where the patch size allows it, two for
// patches of 14, one for odd ones.
const int WIDE = Wide<Real>::N;

// What each level of a channel becomes, with the roundings of CLIP's processor: the product with 1/255 in
// double rounded to float, the rest in float.
DEVICE void fill_table(float (&table)[3][LEVELS], float mean0, float mean1, float mean2, float std0,
                       float std1, float std2) {
  for (int level = threadIdx.x; level < LEVELS; level += THREADS) {
    float value = float(level * (1.0 / 255.0));
    table[0][level] = __fdiv_rn(value - mean0, std0);
    table[1][level] = __fdiv_rn(value - mean1, std1);
    table[2][level] = __fdiv_rn(value - mean2, std2);
  }
}

DEVICE void copy_to_shared(uint8* to, const uint8* from, int bytes, bool aligned) {
  int wide = aligned ? bytes / 16 : 0;
  for (int i = threadIdx.x; i < wide; i += THREADS) store_pack(to + 16 * i, load_pack<16>(from + 16 * i));
  for (int i = 16 * wide + int(threadIdx.x); i < bytes; i += THREADS) to[i] = from[i];
}

// What this block's image is mixed of: `own` of itself and `other` of image `partner`. Where that is no image
// of the batch, both shares are NaN.
struct Mixed {
  int partner;
  float own, other;
};

DEVICE Mixed mixed(const uint32* __restrict__ partners, const float* __restrict__ lambda) {
  uint32 partner = partners[blockIdx.x];
  float own = lambda[blockIdx.x], nan = __uint_as_float(0x7fc00000u);
  if (partner >= gridDim.x) return {int(blockIdx.x), nan, nan};
  return {int(partner), own, 1.0f - own};
}

// Writes the zeros behind the patches that begin in `rows` rows of this block's image, from row `top` on.
DEVICE void write_padding(Real* __restrict__ patches, int stride, int across, int patch, int top, int rows) {
  int used = 3 * patch * patch, padding = stride - used;
  for (int i = threadIdx.x; i < rows * across * padding; i += THREADS) {
    int y = top + i / (across * padding), column = i / padding % across;
    if (y % patch != 0) continue;
    size_t index = size_t(blockIdx.x) * across * across + (y / patch) * across + column;
    patches[index * stride + used + i % padding] = from_float<Real>(0.0f);
  }
}

// Writes what `rows` rows of this block's image, from row `top` on, put into the patches, runs of N numbers;
// `strip` holds their pixels, and number(channel, pixel) is what a channel's level becomes.
template <int N, class Number>
DEVICE void write_strip(Real* __restrict__ patches, const uint8* strip, const Number& number, int stride,
                        int side, int across, int patch, int top, int rows) {
  int packs = patch / N, per_row = 3 * across * packs;
  for (int i = threadIdx.x; i < rows * per_row; i += THREADS) {
    int pack = i % packs, column = i / packs % across, channel = i / (packs * across) % 3, row = i / per_row;
    const uint8* from = strip + (row * side + column * patch + pack * N) * 3 + channel;
    Pack<Real, N> out;
#pragma unroll
    for (int j = 0; j < N; j++) out.at[j] = from_float<Real>(number(channel, from + 3 * j));
    int y = top + row;
    size_t index = size_t(blockIdx.x) * across * across + (y / patch) * across + column;
    store_pack(patches + index * stride + (channel * patch + y % patch) * patch + pack * N, out);
  }
  write_padding(patches, stride, across, patch, top, rows);
}

template <int N>
DEVICE void pixels(const uint8* __restrict__ images, Real* __restrict__ patches, uint8* strip,
                   const float (&table)[3][LEVELS], int stride, int side, int across, int patch, int rows) {
  int top = int(blockIdx.y) * rows;
  // Rows and columns that fill no patch are left out.
  rows = min(rows, across * patch - top);
  size_t start = (size_t(blockIdx.x) * side + top) * side * 3;
  copy_to_shared(strip, images + start, rows * side * 3, start % 16 == 0);
  __syncthreads();
  auto number = [&](int channel, const uint8* level) { return table[channel][*level]; };
  write_strip<N>(patches, strip, number, stride, side, across, patch, top, rows);
}

template <int N>
DEVICE void pixels_mixed(const uint8* __restrict__ images, const Mixed& mix, Real* __restrict__ patches,
                         uint8* strips, const float (&table)[3][LEVELS], int stride, int side, int across,
                         int patch, int rows) {
  int top = int(blockIdx.y) * rows;
  // The partner's strip begins at the next 16 bytes.
  const int second = (rows * side * 3 + 15) / 16 * 16;
  rows = min(rows, across * patch - top);
  size_t start = (size_t(blockIdx.x) * side + top) * side * 3;
  size_t partner = (size_t(mix.partner) * side + top) * side * 3;
  copy_to_shared(strips, images + start, rows * side * 3, start % 16 == 0);
  copy_to_shared(strips + second, images + partner, rows * side * 3, partner % 16 == 0);
  __syncthreads();
  auto number = [&](int channel, const uint8* level) {
    return mix.own * table[channel][*level] + mix.other * table[channel][level[second]];
  };
  write_strip<N>(patches, strips, number, stride, side, across, patch, top, rows);
}

// Writes this thread's pack of the patches of this block's image; pack_of(at) gives the pack that begins at
// element `at` of an image.
template <int N, class PackOf>
DEVICE void write_numbers(Real* __restrict__ patches, const PackOf& pack_of, int stride, int side, int across,
                          int patch) {
  int packs = patch / N, per_image = 3 * across * across * patch * packs;
  int i = int(blockIdx.y) * THREADS + int(threadIdx.x);
  if (i >= per_image) return;
  int pack = i % packs, row = i / packs % patch, channel = i / (packs * patch) % 3;
  int index = i / (packs * patch * 3);
  int y = index / across * patch + row, x = index % across * patch + pack * N;
  Pack<Real, N> out = pack_of((size_t(channel) * side + y) * side + x);
  Real* to = patches + (size_t(blockIdx.x) * across * across + index) * stride;
  store_pack(to + (channel * patch + row) * patch + pack * N, out);
  if (pack + row + channel == 0) {
    for (int j = 3 * patch * patch; j < stride; j++) to[j] = from_float<Real>(0.0f);
  }
}

template <int N>
DEVICE void numbers(const Real* __restrict__ images, Real* __restrict__ patches, int stride, int side,
                    int across, int patch) {
  const Real* image = images + size_t(blockIdx.x) * 3 * side * side;
  auto pack_of = [&](size_t at) { return load_pack<N>(image + at); };
  write_numbers<N>(patches, pack_of, stride, side, across, patch);
}

template <int N>
DEVICE void numbers_mixed(const Real* __restrict__ images, const Mixed& mix, Real* __restrict__ patches,
                          int stride, int side, int across, int patch) {
  size_t size = size_t(3) * side * side;
  const Real* image = images + blockIdx.x * size;
  const Real* partner = images + mix.partner * size;
  auto pack_of = [&](size_t at) {
    Pack<Real, N> a = load_pack<N>(image + at), b = load_pack<N>(partner + at);
#pragma unroll
    for (int j = 0; j < N; j++) {
      a.at[j] = from_float<Real>(mix.own * to_float(a.at[j]) + mix.other * to_float(b.at[j]));
    }
    return a;
  };
  write_numbers<N>(patches, pack_of, stride, side, across, patch);
}

}  // namespace patch_embed

// patches[b, patch, (channel, row, column)] = (pixel/255 − mean)/std; images u8 [B, side, side, 3], patches
// Real [B, across², stride].
// Reads the pixels once and writes each patch once: 4.8 MB and 9.6 MB at 32 images of 224 in f16, 4.3 µs of
// an H100's memory. A block takes `rows` rows of an image (8: 896 blocks at 32×224), which lie side by side
// in memory, into shared memory, and writes runs of p numbers; the division by std is a table look-up, made
// once a block.
#define PATCH_EMBED_PIXELS(name, N)                                                                                   \
  extern "C" __global__ void __launch_bounds__(patch_embed::THREADS)                                                  \
      name(const uint8* __restrict__ images, Real* __restrict__ patches, int stride, int side, int across, int patch, \
           int rows, float mean0, float mean1, float mean2, float std0, float std1, float std2) {                     \
    begin_kernel();                                                                                                   \
    DYNAMIC_SHARED(uint8, strip);                                                                                     \
    __shared__ float table[3][patch_embed::LEVELS];                                                                   \
    patch_embed::fill_table(table, mean0, mean1, mean2, std0, std1, std2);                                            \
    patch_embed::pixels<N>(images, patches, strip, table, stride, side, across, patch, rows);                         \
  }                                                                                                                   \
  EXPORT_KERNEL(name)
PATCH_EMBED_PIXELS(patch_embed_pixels_wide, patch_embed::WIDE)
PATCH_EMBED_PIXELS(patch_embed_pixels_pairs, 2)
PATCH_EMBED_PIXELS(patch_embed_pixels_ones, 1)
#undef PATCH_EMBED_PIXELS

// The same of mixed images: λ·(image b) + (1 − λ)·(image partners[b]) with λ = lambda[b], in float, rounded
// once; partners u32 [B], a partner that is no image of the batch gives NaN. Each image is read twice, but once
// from L2 (4.8 MB at 32×224): the floor is that of the plain form, and so is the grid. A block holds the rows of
// both images. `...` are the launch bounds: where the compiler, left alone, aims at so few registers that it
// spills, they say how many blocks are enough.
#define PATCH_EMBED_PIXELS_MIXED(name, N, ...)                                                                        \
  extern "C" __global__ void __launch_bounds__(__VA_ARGS__)                                                           \
      name(const uint8* __restrict__ images, const uint32* __restrict__ partners,                                     \
           const float* __restrict__ lambda, Real* __restrict__ patches, int stride, int side, int across, int patch, \
           int rows, float mean0, float mean1, float mean2, float std0, float std1, float std2) {                     \
    begin_kernel();                                                                                                   \
    DYNAMIC_SHARED(uint8, strips);                                                                                    \
    __shared__ float table[3][patch_embed::LEVELS];                                                                   \
    patch_embed::Mixed mix = patch_embed::mixed(partners, lambda);                                                    \
    patch_embed::fill_table(table, mean0, mean1, mean2, std0, std1, std2);                                            \
    patch_embed::pixels_mixed<N>(images, mix, patches, strips, table, stride, side, across, patch, rows);             \
  }                                                                                                                   \
  EXPORT_KERNEL(name)
PATCH_EMBED_PIXELS_MIXED(patch_embed_pixels_mixed_wide, patch_embed::WIDE, patch_embed::THREADS)
PATCH_EMBED_PIXELS_MIXED(patch_embed_pixels_mixed_pairs, 2, patch_embed::THREADS)
PATCH_EMBED_PIXELS_MIXED(patch_embed_pixels_mixed_ones, 1, patch_embed::THREADS, 5)
#undef PATCH_EMBED_PIXELS_MIXED

// The same for numbers that are normalised already, Real [B, 3, side, side]: a copy, one pack a thread.
// Moves each number in and out: 19.3 MB at 32 images of 224 in f16, 5.7 µs.
#define PATCH_EMBED_NUMBERS(name, N)                                                                                   \
  extern "C" __global__ void __launch_bounds__(patch_embed::THREADS)                                                   \
      name(const Real* __restrict__ images, Real* __restrict__ patches, int stride, int side, int across, int patch) { \
    begin_kernel();                                                                                                    \
    patch_embed::numbers<N>(images, patches, stride, side, across, patch);                                             \
  }                                                                                                                    \
  EXPORT_KERNEL(name)
PATCH_EMBED_NUMBERS(patch_embed_numbers_wide, patch_embed::WIDE)
PATCH_EMBED_NUMBERS(patch_embed_numbers_ones, 1)
#undef PATCH_EMBED_NUMBERS

// And of mixed images: two packs become one, the second from L2 here too (9.6 MB).
#define PATCH_EMBED_NUMBERS_MIXED(name, N)                                                                             \
  extern "C" __global__ void __launch_bounds__(patch_embed::THREADS)                                                   \
      name(const Real* __restrict__ images, const uint32* __restrict__ partners,                                       \
           const float* __restrict__ lambda, Real* __restrict__ patches, int stride, int side, int across,             \
           int patch) {                                                                                                \
    begin_kernel();                                                                                                    \
    patch_embed::numbers_mixed<N>(images, patch_embed::mixed(partners, lambda), patches, stride, side, across, patch); \
  }                                                                                                                    \
  EXPORT_KERNEL(name)
PATCH_EMBED_NUMBERS_MIXED(patch_embed_numbers_mixed_wide, patch_embed::WIDE)
PATCH_EMBED_NUMBERS_MIXED(patch_embed_numbers_mixed_ones, 1)
#undef PATCH_EMBED_NUMBERS_MIXED
