// The part of a tower that computes one row of each sequence: what stands behind the keys and values of its last block,
// and the end of the tower; forward in one launch, backward in another.
//
//   q = LN₁(x)[row]·Wqᵀ + bq,  a = attention(q, k, v),  m = x[row] + a·Woᵀ + bo
//   z = LN₂(m)·W1ᵀ + b1,  y = m + act(z)·W2ᵀ + b2,  p = LN(y)·Pᵀ,  f = p/|p|
//
// and the same backwards, from df to the gradients of q, of keys and values, and of LN₁(x)[row].
//
// For B images of ViT-B/32 that are 12 and 10 launches of work on B×768, hardly more than the launches: the
// blocks of one cooperative launch do one after another, and meet in between. At B = 32 in f16 they read 12.6 MB of
// weights each way and 4.9 MB of keys and values, 5.3 µs of an H100's memory (backward 4.9 MB more are written, 6.7 µs),
// besides eight meetings of some 1.5 µs. For 16-bit types on sm_80 and later, and widths that are multiples of 8.
//
// A product's tile is 32 rows by 8 columns (16 backward): as few columns as a 32-byte sector allows, so that there are
// tiles for most multiprocessors. Its warps share the sum over k, each with 32 terms at a time straight from memory
// into the fragments of mma: which lane holds which term does not matter as long as both factors agree, so a lane
// takes 8 neighbouring terms, 16 bytes. Sums of the warps are added in order; results are rounded as the single
// operations round them.
#include "activation.cuh"
#include "l2_norm.cuh"
#include "prelude.cuh"

#if TENSOR_CORES

namespace class_tail {

const int WARPS = 8, THREADS = 32 * WARPS;

// Rows of a product's tile, in stripes of 16, and terms of a warp's step.
const int ROWS = 32, STRIPES = ROWS / 16, DEPTH = 32;

// Columns of a tile where rows of W are columns of the result, and where they are its terms.
const int FORWARD_COLUMNS = 8, BACKWARD_COLUMNS = 16;

// A frozen layer, W [out, in] and its bias [out], or none.
struct Layer {
  const Real* weight;
  const Real* bias;
};

struct Norm {
  const float* weight;
  const float* bias;
};

struct Layers {
  Layer q, out, fc1, fc2, projection;
  Norm norm, end_norm;
};

// As backend/cuda/class_tail.rs writes it.
struct Forward {
  Layers layers;
  const Real *input, *normed, *kv;
  const uint32* rows;
  Real *chosen, *chosen_normed, *q, *attended, *middle, *mlp_normed, *hidden, *activated;
  Real *last, *end_normed, *projected;
  float *lse, *stats, *end_stats, *norms, *features;
};

struct Backward {
  Layers layers;
  const Real *q, *kv, *attended, *middle, *hidden, *last;
  const float *lse, *stats, *end_stats, *norms, *features, *d_features;
  Real *d_projected, *d_end_normed, *d_last, *d_hidden, *narrow, *d_attended, *dq, *dkv;
};

struct Sizes {
  int batch, tokens, width, mlp, heads, features;
  // The MLP's function: GELU, or quick GELU.
  bool gelu;
  float eps, end_eps, scale;

  DEVICE int head() const { return width / heads; }
};

// Where a block's warps leave their sums of a tile.
typedef float Sums[WARPS][ROWS * BACKWARD_COLUMNS];

typedef Pack<uint32, 4> Words;

DEVICE Words load_words(const Real* from) { return load_pack<4>(reinterpret_cast<const uint32*>(from)); }

DEVICE float2 unpack(uint32 word) { return unpack_pair<Real>(word); }

DEVICE uint32 load_pair(const Real* from) { return load_pack<1>(reinterpret_cast<const uint32*>(from)).at[0]; }

DEVICE void store_pair(Real* to, float low, float high) {
  store_pack(reinterpret_cast<uint32*>(to), Pack<uint32, 1>{{pack_pair<Real>(low, high)}});
}

DEVICE int lane_of() { return threadIdx.x & 31; }

DEVICE int warp_of() { return threadIdx.x >> 5; }

// Warps of all blocks, those of one block far from each other: few rows then go to many multiprocessors.
DEVICE int first_item() { return warp_of() * int(gridDim.x) + int(blockIdx.x); }

DEVICE int items_each() { return WARPS * int(gridDim.x); }

// ---------------------------------------------------------------- products

// The left factor of a product: rows that lie one after another, or the chosen `rows` of sequences of `tokens`, of which
// one that is not in its sequence is NaN.
struct Left {
  const Real* x;
  int width;
  const uint32* rows = nullptr;
  int tokens = 1;

  DEVICE Words load(int row, int column) const {
    size_t at = row;
    if (rows != nullptr) {
      if (rows[row] >= uint32(tokens)) return Words{{0x7fff7fffu, 0x7fff7fffu, 0x7fff7fffu, 0x7fff7fffu}};
      at = size_t(row) * tokens + rows[row];
    }
    return load_words(x + at * width + column);
  }
};

// This lane's terms of the left factor, for the warp's step from `term` on: 8 of each of the rows g and g + 8 of a
// stripe, with lane = 4·g + q the ones from 8·q on. Zeros outside.
DEVICE void load_left(Words (&to)[STRIPES][2], const Left& left, int row, int rows, int term, int terms) {
  int at = term + 8 * (lane_of() & 3);
#pragma unroll
  for (int s = 0; s < STRIPES; s++) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      int r = row + 16 * s + 8 * h + (lane_of() >> 2);
      to[s][h] = Words{};
      if (r < rows && at < terms) to[s][h] = left.load(r, at);
    }
  }
}

// sum += left·right for 32 terms, of which the fragments of mma hold words 0 and 1, then words 2 and 3.
DEVICE void multiply(float (&sum)[STRIPES][4], const Words (&left)[STRIPES][2], const Words& right) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    uint32 b[2] = {right.at[2 * half], right.at[2 * half + 1]};
#pragma unroll
    for (int s = 0; s < STRIPES; s++) {
      const Words &upper = left[s][0], &lower = left[s][1];
      uint32 a[4] = {upper.at[2 * half], lower.at[2 * half], upper.at[2 * half + 1], lower.at[2 * half + 1]};
      mma_m16n8k16<Real>(sum[s], a, b);
    }
  }
}

// What becomes of a sum: round(sum + bias + added) goes to y. Forward its function, where `activated` is; backward it is
// multiplied with the slope of the function at `hidden`, where that is.
struct Finish {
  Real* y;
  int columns;
  const Real* bias = nullptr;
  const Real* added = nullptr;
  Real* activated = nullptr;
  const Real* hidden = nullptr;
  bool gelu = false;

  DEVICE void operator()(int row, int column, float sum) const {
    size_t at = size_t(row) * columns + column;
    if (bias) sum += to_float(bias[column]);
    if (added) sum += to_float(added[at]);
    Real rounded = from_float<Real>(sum);
    float value = to_float(rounded);
    if (activated) {
      activated[at] = from_float<Real>(gelu ? activation::Gelu::value(value) : activation::QuickGelu::value(value));
    }
    if (hidden) {
      float z = to_float(hidden[at]);
      rounded = from_float<Real>(value * (gelu ? activation::Gelu::slope(z) : activation::QuickGelu::slope(z)));
    }
    y[at] = rounded;
  }
};

// Adds up the warps' sums of a tile, and finishes each.
template <int COLUMNS>
DEVICE void finish_tile(const Sums& sums, int row, int rows, int column, const Finish& finish) {
  __syncthreads();
  for (int i = threadIdx.x; i < ROWS * COLUMNS; i += THREADS) {
    int r = row + i / COLUMNS, c = column + i % COLUMNS;
    if (r >= rows || c >= finish.columns) continue;
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) sum += sums[warp][i];
    finish(r, c, sum);
  }
  __syncthreads();
}

// left·Wᵀ: `rows` rows of `terms` times W [columns, terms]. Not inlined, because it is called for every layer.
__device__ __noinline__ void product(Left left, const Real* w, int rows, int terms, Finish finish) {
  __shared__ Sums sums;
  const int COLUMNS = FORWARD_COLUMNS;
  int across = finish.columns / COLUMNS, tiles = across * ((rows + ROWS - 1) / ROWS);
  int lane = lane_of(), g = lane >> 2, q = lane & 3;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    int column = tile % across * COLUMNS, row = tile / across * ROWS;
    const Real* right_row = w + size_t(column + g) * terms + 8 * q;
    float sum[STRIPES][4] = {};
#pragma unroll 4
    for (int term = warp_of() * DEPTH; term < terms; term += WARPS * DEPTH) {
      Words left_words[STRIPES][2], right = {};
      load_left(left_words, left, row, rows, term, terms);
      if (term + 8 * q < terms) right = load_words(right_row + term);
      multiply(sum, left_words, right);
    }
#pragma unroll
    for (int s = 0; s < STRIPES; s++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        sums[warp_of()][(16 * s + 8 * (i >> 1) + g) * COLUMNS + 2 * q + (i & 1)] = sum[s][i];
      }
    }
    finish_tile<COLUMNS>(sums, row, rows, column, finish);
  }
}

// left·W: `rows` rows of `terms` times W [terms, columns]. Pairs of neighbours in a row of W become pairs of a column:
// one mma takes the even columns, one the odd ones.
__device__ __noinline__ void product_backward(Left left, const Real* w, int rows, int terms, Finish finish) {
  __shared__ Sums sums;
  const int COLUMNS = BACKWARD_COLUMNS, columns = finish.columns;
  int across = (columns + COLUMNS - 1) / COLUMNS, tiles = across * ((rows + ROWS - 1) / ROWS);
  int lane = lane_of(), g = lane >> 2, q = lane & 3;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    int column = tile % across * COLUMNS, row = tile / across * ROWS;
    const Real* right_column = w + size_t(8 * q) * columns + column + 2 * g;
    bool inside = column + 2 * g < columns;
    float even[STRIPES][4] = {}, odd[STRIPES][4] = {};
#pragma unroll 2
    for (int term = warp_of() * DEPTH; term < terms; term += WARPS * DEPTH) {
      Words left_words[STRIPES][2], low, high;
      load_left(left_words, left, row, rows, term, terms);
      uint32 pairs[8] = {};
      if (inside && term + 8 * q < terms) {
#pragma unroll
        for (int i = 0; i < 8; i++) pairs[i] = load_pair(right_column + size_t(term + i) * columns);
      }
#pragma unroll
      for (int i = 0; i < 4; i++) {
        low.at[i] = (pairs[2 * i] & 0xffffu) | pairs[2 * i + 1] << 16;
        high.at[i] = pairs[2 * i] >> 16 | (pairs[2 * i + 1] & 0xffff0000u);
      }
      multiply(even, left_words, low);
      multiply(odd, left_words, high);
    }
#pragma unroll
    for (int s = 0; s < STRIPES; s++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float* to = &sums[warp_of()][(16 * s + 8 * (i >> 1) + g) * COLUMNS + 4 * q + 2 * (i & 1)];
        to[0] = even[s][i];
        to[1] = odd[s][i];
      }
    }
    finish_tile<COLUMNS>(sums, row, rows, column, finish);
  }
}

// ---------------------------------------------------------------- rows

// Calls each(column) for where this lane's packs of 8 begin.
template <class Each>
DEVICE void each_pack(int width, const Each& each) {
  for (int column = lane_of() * 8; column < width; column += 256) each(column);
}

DEVICE void copy_row(const Left& from, int row, Real* to) {
  each_pack(from.width, [&](int column) {
    store_pack(reinterpret_cast<uint32*>(to + size_t(row) * from.width + column), from.load(row, column));
  });
}

// Layer norm as in layer_norm.cu, of rows of any number of packs, a warp for each.
DEVICE void norm_rows(const Real* x, const Norm& norm, Real* y, float* stats, int rows, int width, float eps) {
  for (int row = first_item(); row < rows; row += items_each()) {
    const Real* from = x + size_t(row) * width;
    float sum = 0.0f, squares = 0.0f;
    each_pack(width, [&](int column) {
      Pack<Real, 8> pack = load_pack<8>(from + column);
#pragma unroll
      for (int j = 0; j < 8; j++) sum += to_float(pack.at[j]);
    });
    float mean = __fdividef(warp_sum(sum), float(width));
    each_pack(width, [&](int column) {
      Pack<Real, 8> pack = load_pack<8>(from + column);
#pragma unroll
      for (int j = 0; j < 8; j++) squares += (to_float(pack.at[j]) - mean) * (to_float(pack.at[j]) - mean);
    });
    float inverse = rsqrtf(__fdividef(warp_sum(squares), float(width)) + eps);
    each_pack(width, [&](int column) {
      Pack<Real, 8> pack = load_pack<8>(from + column);
#pragma unroll
      for (int j = 0; j < 8; j++) {
        float normal = (to_float(pack.at[j]) - mean) * inverse;
        pack.at[j] = from_float<Real>(normal * norm.weight[column + j] + norm.bias[column + j]);
      }
      store_pack(y + size_t(row) * width + column, pack);
    });
    if (lane_of() == 0) store_pack(stats + 2 * size_t(row), Pack<float, 2>{{mean, inverse}});
  }
}

// dx = (dx, where it `adds`) + the gradient of the norm's input, as in layer_norm.cu.
DEVICE void norm_rows_backward(const Real* dy, const Real* x, const Norm& norm, const float* stats, bool adds,
                               Real* dx, int rows, int width) {
  for (int row = first_item(); row < rows; row += items_each()) {
    size_t start = size_t(row) * width;
    Pack<float, 2> both = load_pack<2>(stats + 2 * size_t(row));
    float mean = both.at[0], inverse = both.at[1], sum_g = 0.0f, sum_gx = 0.0f;
    each_pack(width, [&](int column) {
      Pack<Real, 8> upstream = load_pack<8>(dy + start + column), input = load_pack<8>(x + start + column);
#pragma unroll
      for (int j = 0; j < 8; j++) {
        float g = to_float(upstream.at[j]) * norm.weight[column + j];
        sum_g += g;
        sum_gx += g * (to_float(input.at[j]) - mean);
      }
    });
    float mean_g = __fdividef(warp_sum(sum_g), float(width));
    float mean_gx = __fdividef(warp_sum(sum_gx) * inverse, float(width));
    each_pack(width, [&](int column) {
      Pack<Real, 8> upstream = load_pack<8>(dy + start + column), input = load_pack<8>(x + start + column);
      Pack<Real, 8> out = {};
      if (adds) out = load_pack<8>(dx + start + column);
#pragma unroll
      for (int j = 0; j < 8; j++) {
        float g = to_float(upstream.at[j]) * norm.weight[column + j];
        float normal = (to_float(input.at[j]) - mean) * inverse;
        out.at[j] = from_float<Real>(to_float(out.at[j]) + (g - mean_g - normal * mean_gx) * inverse);
      }
      store_pack(dx + start + column, out);
    });
  }
}

// ---------------------------------------------------------------- attention

// One query of one head: a warp, whose lanes hold the scores of a key each and then two columns of each row.
struct Head {
  const Real *q, *k, *v;
  // Elements of a head, and from one key to the next.
  int width, stride;

  DEVICE Head(const Real* queries, const Real* kv, int item, const Sizes& sizes)
      : width(sizes.head()), stride(2 * sizes.width) {
    int image = item / sizes.heads, column = item % sizes.heads * width;
    q = queries + size_t(image) * sizes.width + column;
    k = kv + size_t(image) * sizes.tokens * stride + column;
    v = k + sizes.width;
  }

  // Where the head's columns lie in rows of one query each, and of keys.
  DEVICE size_t at(const Real* queries) const { return q - queries; }
  DEVICE size_t key_at(const Real* kv) const { return k - kv; }
};

// a·b over a row of a head.
DEVICE float dot(const Real* a, const Real* b, int width) {
  float sum = 0.0f;
#pragma unroll 4
  for (int column = 0; column < width; column += 8) {
    Words x = load_words(a + column), y = load_words(b + column);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float2 u = unpack(x.at[i]), v = unpack(y.at[i]);
      sum += u.x * v.x + u.y * v.y;
    }
  }
  return sum;
}

// `weights`: room for as many floats as there are keys.
DEVICE void attend(const Forward& t, const Sizes& sizes, float* weights) {
  int lane = lane_of(), tokens = sizes.tokens;
  for (int item = first_item(); item < sizes.batch * sizes.heads; item += items_each()) {
    Head head(t.q, t.kv, item, sizes);
    float largest = -__uint_as_float(0x7f800000u), total = 0.0f;
    for (int key = lane; key < tokens; key += 32) {
      weights[key] = dot(head.q, head.k + size_t(key) * head.stride, head.width) * sizes.scale;
      largest = fmaxf(largest, weights[key]);
    }
    largest = warp_max(largest);
    for (int key = lane; key < tokens; key += 32) {
      weights[key] = expf(weights[key] - largest);
      total += weights[key];
    }
    total = warp_sum(total);
    __syncwarp(FULL_WARP);
    for (int column = 2 * lane; column < head.width; column += 64) {
      float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll 8
      for (int key = 0; key < tokens; key++) {
        float2 value = unpack(load_pair(head.v + size_t(key) * head.stride + column));
        sum.x += weights[key] * value.x;
        sum.y += weights[key] * value.y;
      }
      store_pair(t.attended + head.at(t.q) + column, sum.x / total, sum.y / total);
    }
    if (lane == 0) t.lse[item] = largest + logf(total);
    __syncwarp(FULL_WARP);
  }
}

// `weights`: room for twice as many floats as there are keys.
DEVICE void attend_backward(const Backward& t, const Sizes& sizes, float* weights) {
  int lane = lane_of(), tokens = sizes.tokens;
  float* gradients = weights + tokens;
  for (int item = first_item(); item < sizes.batch * sizes.heads; item += items_each()) {
    Head head(t.q, t.kv, item, sizes);
    size_t at = head.at(t.q);
    const Real* d_out = t.d_attended + at;
    float delta = 0.0f, lse = t.lse[item];
    for (int column = 2 * lane; column < head.width; column += 64) {
      float2 d = unpack(load_pair(d_out + column)), o = unpack(load_pair(t.attended + at + column));
      delta += d.x * o.x + d.y * o.y;
    }
    delta = warp_sum(delta);
    for (int key = lane; key < tokens; key += 32) {
      size_t row = size_t(key) * head.stride;
      float p = expf(dot(head.q, head.k + row, head.width) * sizes.scale - lse);
      weights[key] = p;
      gradients[key] = p * (dot(d_out, head.v + row, head.width) - delta) * sizes.scale;
    }
    __syncwarp(FULL_WARP);
    Real *dk = t.dkv + head.key_at(t.kv), *dv = dk + sizes.width;
    for (int column = 2 * lane; column < head.width; column += 64) {
      float2 query = unpack(load_pair(head.q + column)), d = unpack(load_pair(d_out + column));
      float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll 8
      for (int key = 0; key < tokens; key++) {
        size_t row = size_t(key) * head.stride + column;
        float p = weights[key], ds = gradients[key];
        float2 own = unpack(load_pair(head.k + row));
        sum.x += ds * own.x;
        sum.y += ds * own.y;
        store_pair(dk + row, ds * query.x, ds * query.y);
        store_pair(dv + row, p * d.x, p * d.y);
      }
      store_pair(t.dq + at + column, sum.x, sum.y);
    }
    __syncwarp(FULL_WARP);
  }
}

// ---------------------------------------------------------------- both ways

DEVICE void forward(const Forward& t, const Sizes& sizes, uint32* counter) {
  DYNAMIC_SHARED(float, weights);
  Meetings meetings = {counter, gridDim.x};
  const Layers& layers = t.layers;
  int rows = sizes.batch, width = sizes.width, mlp = sizes.mlp;
  Left input = {t.input, width, t.rows, sizes.tokens}, normed = {t.normed, width, t.rows, sizes.tokens};
  for (int row = first_item(); row < rows; row += items_each()) {
    copy_row(input, row, t.chosen);
    copy_row(normed, row, t.chosen_normed);
  }
  product(normed, layers.q.weight, rows, width, {t.q, width, layers.q.bias});
  meetings.meet();
  attend(t, sizes, weights + warp_of() * sizes.tokens);
  meetings.meet();
  product({t.attended, width}, layers.out.weight, rows, width, {t.middle, width, layers.out.bias, t.chosen});
  meetings.meet();
  norm_rows(t.middle, layers.norm, t.mlp_normed, t.stats, rows, width, sizes.eps);
  meetings.meet();
  Finish activate = {t.hidden, mlp, layers.fc1.bias, nullptr, t.activated, nullptr, sizes.gelu};
  product({t.mlp_normed, width}, layers.fc1.weight, rows, width, activate);
  meetings.meet();
  product({t.activated, mlp}, layers.fc2.weight, rows, mlp, {t.last, width, layers.fc2.bias, t.middle});
  meetings.meet();
  norm_rows(t.last, layers.end_norm, t.end_normed, t.end_stats, rows, width, sizes.end_eps);
  meetings.meet();
  product({t.end_normed, width}, layers.projection.weight, rows, width,
          {t.projected, sizes.features, layers.projection.bias});
  meetings.meet();
  for (int row = first_item(); row < rows; row += items_each()) {
    l2_norm::forward<4>(t.projected, t.features, t.norms, row, sizes.features);
  }
  meetings.leave();
}

// `wanted`: whether the gradient of LN₁(x)[row] is; it replaces the scratch memory `narrow`.
DEVICE void backward(const Backward& t, const Sizes& sizes, bool wanted, uint32* counter) {
  DYNAMIC_SHARED(float, weights);
  Meetings meetings = {counter, gridDim.x};
  const Layers& layers = t.layers;
  int rows = sizes.batch, width = sizes.width, mlp = sizes.mlp;
  for (int row = first_item(); row < rows; row += items_each()) {
    l2_norm::backward<4>(t.d_features, t.features, t.norms, t.d_projected, row, sizes.features);
  }
  meetings.meet();
  product_backward({t.d_projected, sizes.features}, layers.projection.weight, rows, sizes.features,
                   {t.d_end_normed, width});
  meetings.meet();
  norm_rows_backward(t.d_end_normed, t.last, layers.end_norm, t.end_stats, false, t.d_last, rows, width);
  meetings.meet();
  Finish through = {t.d_hidden, mlp, nullptr, nullptr, nullptr, t.hidden, sizes.gelu};
  product_backward({t.d_last, width}, layers.fc2.weight, rows, width, through);
  meetings.meet();
  product_backward({t.d_hidden, mlp}, layers.fc1.weight, rows, mlp, {t.narrow, width});
  meetings.meet();
  norm_rows_backward(t.narrow, t.middle, layers.norm, t.stats, true, t.d_last, rows, width);
  meetings.meet();
  product_backward({t.d_last, width}, layers.out.weight, rows, width, {t.d_attended, width});
  meetings.meet();
  attend_backward(t, sizes, weights + warp_of() * 2 * sizes.tokens);
  if (wanted) {
    meetings.meet();
    product_backward({t.dq, width}, layers.q.weight, rows, width, {t.narrow, width});
  }
  meetings.leave();
}

}  // namespace class_tail

extern "C" __global__ void __launch_bounds__(class_tail::THREADS, 1)
    class_tail_forward(const class_tail::Forward* tail, uint32* counter, int batch, int tokens,
                       int width, int mlp, int heads, int features, int gelu, float eps, float end_eps,
                       float scale) {
  begin_kernel();
  class_tail::Sizes sizes = {batch, tokens, width, mlp, heads, features, gelu != 0, eps, end_eps, scale};
  class_tail::forward(*tail, sizes, counter);
}
EXPORT_KERNEL(class_tail_forward)

extern "C" __global__ void __launch_bounds__(class_tail::THREADS, 1)
    class_tail_backward(const class_tail::Backward* tail, uint32* counter, int batch, int tokens,
                        int width, int mlp, int heads, int features, int gelu, float scale, int wanted) {
  begin_kernel();
  class_tail::Sizes sizes = {batch, tokens, width, mlp, heads, features, gelu != 0, 0.0f, 0.0f, scale};
  class_tail::backward(*tail, sizes, wanted != 0, counter);
}
EXPORT_KERNEL(class_tail_backward)

#endif  // TENSOR_CORES
