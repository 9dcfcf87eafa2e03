// Gradients of the adapters of many layers, where these are folded into the weights: u and du, which no forward and
// backward pass has left then, and from them dA and dB. Two launches at the end of a step, whatever the number of
// layers: a table on the device lists the layers, and which block takes what of them.
#include "lora_gradients.cuh"

namespace lora_linear {

const int NARROW_THREADS = 128, NARROW_WARPS = NARROW_THREADS / 32;

// A layer as the launcher writes it into the table.
struct GroupedLayer {
  const Real* x;
  const Real* dy;
  const float* a;
  const float* b;
  float* da;
  float* db;
  // Where u and du begin in `narrow`, whose place the table does not know: scratch memory may grow and move.
  uint64 u, du;
  // Of all layers' tiles, those before this one's.
  uint64 first_tile;
  int m, k, n, out, rank, width, segments;
  float scale;
  // Slabs of rows, and the rows of one.
  int slabs, slab_rows;

  // Brings it to shared memory, where it takes no registers, for the whole block.
  DEVICE void take(GradientLayer& layer, Real* narrow) const {
    if (threadIdx.x == 0) layer = {narrow + du, x, narrow + u, dy, da, db, m, k, n, out, rank, width, segments, scale};
    __syncthreads();
  }
};

}  // namespace lora_linear

// Of every kernel of grouped layers, and what it begins with: the block's layer, and its number among the layer's blocks.
#define GROUPED_PARAMETERS \
  const lora_linear::GroupedLayer *__restrict__ layers, const Chunk *__restrict__ chunks, Real *narrow

#define GROUPED_LAYER                                                                                                 \
  using namespace lora_linear;                                                                                        \
  __shared__ GradientLayer layer;                                                                                     \
  const GroupedLayer& grouped = layers[chunks[blockIdx.x].entry];                                                     \
  int index = int(chunks[blockIdx.x].index);                                                                          \
  grouped.take(layer, narrow)

// u = x·Aᵀ and du_i = scale·dy_i·B_i.
//
// A block: 64 rows of u or of one part of du. Each of its warps has 16 rows and all terms for itself, so that there
// is nothing to wait for but memory; A and B, which the blocks of a layer read at the same time, come from the nearer
// caches. At 1600 rows of a ViT-B/32 with adapters of q, k, v and out in every block 1800 blocks, which read x and dy
// of all layers once: 177 MB, 53 µs at 3.35 TB/s.
#if TENSOR_CORES

namespace lora_linear {

// narrow[m, j] = factor·Σ_c left[m, c]·right[j, c] (right[c, j] if TRANSPOSED) for the warp's rows, 8·TILES columns
// at a time.
template <bool TRANSPOSED, int TILES>
DEVICE void narrow_rows(const Real* left, int left_stride, int rows, int depth, const float* right, int right_stride,
                        int width, float factor, Real* narrow, int narrow_stride) {
  int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
  for (int j0 = 0; j0 < width; j0 += 8 * TILES) {
    float sum[1][TILES][4] = {};
    const float* of_columns = right + (TRANSPOSED ? size_t(j0) : size_t(j0) * right_stride);
    narrow_tiles<TRANSPOSED>(sum, left, left_stride, rows, depth, of_columns, right_stride, width - j0, Share{0, 32});
#pragma unroll
    for (int t = 0; t < TILES; t++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        int row = g + 8 * (i >> 1), column = j0 + 8 * t + 2 * q + (i & 1);
        if (row < rows && column < width)
          narrow[size_t(row) * narrow_stride + column] = from_float<Real>(factor * sum[0][t][i]);
      }
    }
  }
}

}  // namespace lora_linear

extern "C" __global__ void __launch_bounds__(lora_linear::NARROW_THREADS)
    lora_gradients_start(GROUPED_PARAMETERS) {
  begin_kernel();
  GROUPED_LAYER;
  int stripes = (layer.m + 16 * NARROW_WARPS - 1) / (16 * NARROW_WARPS);
  int part = index / stripes - 1;
  int row = (index % stripes * NARROW_WARPS + int(threadIdx.x >> 5)) * 16, rows = min(16, layer.m - row);
  if (rows <= 0) return;
  if (part < 0) {
    narrow_rows<false, 3>(layer.x + size_t(row) * layer.k, layer.k, rows, layer.k, grouped.a, layer.k, layer.width,
                          1.0f, layer.u + size_t(row) * layer.width, layer.width);
    return;
  }
  const Real* dy = layer.dy + size_t(row) * layer.n + entry(layer.segments, part) * layer.out;
  const float* b = grouped.b + size_t(part) * layer.out * layer.rank;
  Real* du = layer.du + size_t(row) * layer.width + part * layer.rank;
  if (layer.rank <= 8) {
    narrow_rows<true, 1>(dy, layer.n, rows, layer.out, b, layer.rank, layer.rank, layer.scale, du, layer.width);
  } else {
    narrow_rows<true, 2>(dy, layer.n, rows, layer.out, b, layer.rank, layer.rank, layer.scale, du, layer.width);
  }
}
EXPORT_KERNEL(lora_gradients_start)

#endif  // TENSOR_CORES

// The same for any type and size: 16 rows a block.
extern "C" __global__ void __launch_bounds__(lora_linear::ANY_THREADS, 4)
    lora_gradients_start_any(GROUPED_PARAMETERS) {
  begin_kernel();
  GROUPED_LAYER;
  __shared__ AnyShared shared;
  int stripes = (layer.m + ANY_ROWS - 1) / ANY_ROWS;
  int part = index / stripes - 1, row = index % stripes * ANY_ROWS;
  int rows = min(ANY_ROWS, layer.m - row);
  if (part < 0) {
    any_narrow<false>(shared, layer.x + size_t(row) * layer.k, layer.k, rows, layer.k, grouped.a, layer.k,
                      layer.width, 1.0f, layer.u + size_t(row) * layer.width, layer.width);
    return;
  }
  any_narrow<true>(shared, layer.dy + size_t(row) * layer.n + entry(layer.segments, part) * layer.out, layer.n, rows,
                   layer.out, grouped.b + size_t(part) * layer.out * layer.rank, layer.rank, layer.rank, layer.scale,
                   layer.du + size_t(row) * layer.width + part * layer.rank, layer.width);
}
EXPORT_KERNEL(lora_gradients_start_any)

namespace lora_linear {

// The slab of the block whose number among the layer's blocks is `index`; there is room for `most` of every tile.
DEVICE GradientSlabs slabs_of(const GroupedLayer& grouped, int index, float* partial, uint32* counters, int most) {
  uint64 tile = grouped.first_tile + uint64(index / grouped.slabs);
  GradientSlabs slabs;
  slabs.partial = partial + tile * most * (GRADIENT_WIDTH * GRADIENT_COLUMNS);
  slabs.counter = counters + tile;
  slabs.slab = index % grouped.slabs;
  slabs.count = grouped.slabs;
  slabs.rows = grouped.slab_rows;
  return slabs;
}

}  // namespace lora_linear

// dA = duᵀ·x and dB_i = scale·dy_iᵀ·u_i of all layers, a block for each slab of each tile.
//
// Same sizes: 864 tiles, whose blocks read x and dy once more, and du and u for each tile: 177 MB and 65 MB, the latter
// from L2.
#if TENSOR_CORES
extern "C" __global__ void __launch_bounds__(lora_linear::GRADIENT_THREADS, 4)
    lora_gradients(GROUPED_PARAMETERS, float* partial, uint32* counters, int most) {
  begin_kernel();
  GROUPED_LAYER;
  __shared__ GradientStage stages[GRADIENT_STAGES];
  __shared__ int flag;
  gradients(stages, &flag, layer, index / grouped.slabs,
            slabs_of(grouped, index, partial, counters, most));
}
EXPORT_KERNEL(lora_gradients)
#endif

// The same for any type and size.
extern "C" __global__ void __launch_bounds__(lora_linear::GRADIENT_THREADS, 3)
    lora_gradients_any(GROUPED_PARAMETERS, float* partial, uint32* counters, int most) {
  begin_kernel();
  GROUPED_LAYER;
  __shared__ GradientAny shared;
  __shared__ int flag;
  gradients_any(shared, &flag, layer, index / grouped.slabs,
                slabs_of(grouped, index, partial, counters, most));
}
EXPORT_KERNEL(lora_gradients_any)
