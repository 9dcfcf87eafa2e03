// Random resized crops of u8 images: antialiased bicubic filtering in float, along the rows and down the
// columns.
#include "prelude.cuh"

namespace crop_resize {

// The usual row of 3·224 bytes is three blocks.
const int THREADS = 224;

// Rows of the result that a block makes, and those of the image whose weights are in shared memory at a time.
const int ROWS = 8;
const int CHUNK = 32;

// Neighbours along a row whose weights are in registers at a time; all of them where the image shrinks to no
// less than two thirds.
const int TAPS = 6;

// Columns of `crops`: top, left, height, width, mirrored.
const int FIELDS = 5;

// Keys' cubic convolution kernel with a = −0.5.
DEVICE float bicubic(float x) {
  const float A = -0.5f;
  x = fabsf(x);
  if (x < 1.0f) return ((A + 2.0f) * x - (A + 3.0f)) * x * x + 1.0f;
  if (x < 2.0f) return ((x - 5.0f) * x + 8.0f) * x * A - 4.0f * A;
  return 0.0f;
}

// A side of a crop: where it begins in the image, its length, and by how much it shrinks.
struct Side {
  int start, inputs;
  float scale, reduction;

  // Moved and cut until it lies within the image, since the host does not see it.
  DEVICE Side(uint32 wanted_start, uint32 length, int available, int outputs) {
    inputs = int(min(max(length, 1u), uint32(available)));
    start = int(min(wanted_start, uint32(available - inputs)));
    scale = float(inputs) / float(outputs);
    reduction = fmaxf(scale, 1.0f);
  }

  DEVICE float weight(int input, float centre) const { return bicubic((input + 0.5f - centre) / reduction); }
};

// What one coordinate of the result takes: inputs from `first` to `end`, whose weights add up to `total`.
struct Taps {
  float centre, total;
  int first, end;
};

DEVICE Taps taps_of(const Side& side, int output) {
  Taps taps;
  float support = 2.0f * side.reduction;
  taps.centre = (output + 0.5f) * side.scale;
  taps.first = max(int(taps.centre - support + 0.5f), 0);
  taps.end = min(int(taps.centre + support + 0.5f), side.inputs);
  taps.total = 0.0f;
  for (int i = taps.first; i < taps.end; i++) taps.total += side.weight(i, taps.centre);
  return taps;
}

// The share of an input, 0 for one that is none of the taps.
DEVICE float share(const Side& side, const Taps& taps, int input) {
  return input >= taps.first && input < taps.end ? side.weight(input, taps.centre) / taps.total : 0.0f;
}

// Adds what `rows` rows of the image from `line` on, filtered along the row, give to each of ROWS results.
DEVICE void add_rows(const uint8* __restrict__ line, size_t stride, int rows, const Side& side,
                     const Taps& taps, const float (&shares)[CHUNK][ROWS], float (&sum)[ROWS]) {
  for (int first = taps.first; first < taps.end; first += TAPS) {
    int count = taps.end - first;
    float along[TAPS];
#pragma unroll
    for (int k = 0; k < TAPS; k++) along[k] = share(side, taps, first + k);
#pragma unroll 2
    for (int row = 0; row < rows; row++) {
      const uint8* from = line + row * stride + 3 * first;
      float value = 0.0f;
#pragma unroll
      for (int k = 0; k < TAPS; k++) {
        if (k < count) value += along[k] * float(from[3 * k]);
      }
#pragma unroll
      for (int r = 0; r < ROWS; r++) sum[r] += shares[row][r] * value;
    }
  }
}

}  // namespace crop_resize

// y[b] = the rectangle crops[b] of images[b], resized and mirrored where asked; images u8 [B, height, width,
// 3], crops u32 [B, 5], y u8 [B, side, side, 3]. A crop that is not inside the image is moved and cut until
// it is.
//
// Reads the crops and writes y: at most 6.3 and 4.8 MB from 256 to 224 px at 32 images, 3.3 µs of an H100's
// memory; some 60 instructions for each byte make it about 10 µs. A block makes 8 rows of 224 bytes, 3·28
// blocks an image. A thread takes one byte column of all 8: it filters each row of the image once, in
// registers, and adds it to the 8 sums with that row's shares, which the block has in shared memory: one
// pass, and nothing to keep between two. Any size goes through the same loops, 6 neighbours and 32 rows at a
// time.
extern "C" __global__ void __launch_bounds__(crop_resize::THREADS)
    crop_resize_levels(const uint8* __restrict__ images, const uint32* __restrict__ crops,
                       uint8* __restrict__ y, int height, int width, int side) {
  begin_kernel();
  using namespace crop_resize;
  __shared__ Taps rows[ROWS];
  __shared__ float shares[CHUNK][ROWS];
  const uint32* crop = crops + size_t(blockIdx.x) * FIELDS;
  Side down(crop[0], crop[2], height, side), across(crop[1], crop[3], width, side);
  // Threads and rows behind the last compute the last, and do not store it.
  int at = int(blockIdx.y) * THREADS + int(threadIdx.x), top = int(blockIdx.z) * ROWS;
  int column = min(at / 3, side - 1), channel = at % 3;
  Taps taps = taps_of(across, crop[4] != 0 ? side - 1 - column : column);
  if (threadIdx.x < ROWS) rows[threadIdx.x] = taps_of(down, min(top + int(threadIdx.x), side - 1));
  __syncthreads();

  float sum[ROWS] = {};
  size_t stride = size_t(width) * 3;
  const uint8* image = images + (size_t(blockIdx.x) * height + down.start) * stride;
  int end = rows[ROWS - 1].end;
  for (int first = rows[0].first; first < end; first += CHUNK) {
    for (int i = threadIdx.x; i < CHUNK * ROWS; i += THREADS) {
      shares[i / ROWS][i % ROWS] = share(down, rows[i % ROWS], first + i / ROWS);
    }
    __syncthreads();
    const uint8* line = image + first * stride + size_t(across.start) * 3 + channel;
    add_rows(line, stride, min(CHUNK, end - first), across, taps, shares, sum);
    __syncthreads();
  }
  if (at >= 3 * side) return;
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    if (top + r >= side) break;
    float level = fminf(fmaxf(sum[r] + 0.5f, 0.0f), 255.0f);
    y[((size_t(blockIdx.x) * side + top + r) * side) * 3 + at] = uint8(int(level));
  }
}
EXPORT_KERNEL(crop_resize_levels)
