// Low-rank updates into the weights beside which they stand.
#include "lora_linear.cuh"

namespace folding {

const int ROWS = 8, WARPS = 4;

// A layer as the launcher writes it into the table.
struct Layer {
  const Real* weight;
  const float* a;
  const float* b;
  Real* folded;
  int stride, k, out, rank, parts;
  float scale;
  // Blocks side by side in a row of blocks, and rows of blocks in a segment.
  int across, down;
};

// A warp: 8 rows by 32·PACK columns; A is read once for the 8 rows.
template <int PACK>
DEVICE void fold(const Layer* layers, const Chunk* chunks) {
  Chunk chunk = chunks[blockIdx.x];
  Layer layer = layers[chunk.entry];
  const Real* weight = layer.weight;
  const float *a = layer.a, *b = layer.b;
  Real* folded = layer.folded;
  int stride = layer.stride, k = layer.k, out = layer.out, rank = layer.rank;
  float scale = layer.scale;
  int index = int(chunk.index), row_of_blocks = index / layer.across;
  int c = (index % layer.across * 32 + int(threadIdx.x & 31)) * PACK;
  int first = (row_of_blocks % layer.down * WARPS + int(threadIdx.x >> 5)) * ROWS;
  // A segment's rows, so that all of them have the same part.
  int segment = row_of_blocks / layer.down, part = lora_linear::part_on(layer.parts, segment);
  if (c >= stride || first >= out) return;
  float sum[ROWS][PACK] = {};
  if (part >= 0 && c < k) {
    const float* right = a + size_t(part) * rank * k + c;
    const float* left = b + (size_t(part) * out + first) * rank;
    for (int j = 0; j < rank; j++) {
      Pack<float, PACK == 1 ? 1 : 4> v[(PACK + 3) / 4];
#pragma unroll
      for (int i = 0; i < (PACK + 3) / 4; i++) v[i] = load_pack<PACK == 1 ? 1 : 4>(right + size_t(j) * k + 4 * i);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        float l = first + r < out ? left[r * rank + j] : 0.0f;
#pragma unroll
        for (int i = 0; i < PACK; i++) sum[r][i] += l * v[i / 4].at[i % 4];
      }
    }
  }
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    if (first + r >= out) break;
    size_t at = size_t(segment * out + first + r) * stride + c;
    Pack<Real, PACK> w = load_pack<PACK>(weight + at);
#pragma unroll
    for (int i = 0; i < PACK; i++) w.at[i] = from_float<Real>(to_float(w.at[i]) + scale * sum[r][i]);
    store_pack(folded + at, w);
  }
}

}  // namespace folding

// folded = W + scale·B·A of many layers, rounded once; what is behind the first K columns of a row is copied.
//
// N = 2304, K = 768, r = 8: W read and written 3.5 MB each; A once per 8 rows, 7 MB from L2. All layers of a
// ViT-B/32: 113 MB, 34 µs. Four warps of 8 rows by 256 columns.
extern "C" __global__ void __launch_bounds__(128)
    lora_fold(const folding::Layer* __restrict__ layers, const Chunk* __restrict__ chunks) {
  begin_kernel();
  folding::fold<Wide<Real>::N>(layers, chunks);
}
EXPORT_KERNEL(lora_fold)

// As lora_fold, for widths that are no multiple of 16 bytes.
extern "C" __global__ void __launch_bounds__(128)
    lora_fold_any(const folding::Layer* __restrict__ layers, const Chunk* __restrict__ chunks) {
  begin_kernel();
  folding::fold<1>(layers, chunks);
}
EXPORT_KERNEL(lora_fold_any)
