// Which elements dropout keeps, for all kernels that need to know.
//
// The mask comes from Philox4x32-10 (Salmon et al. 2011), a generator without a state: word i%4 of block i/4 is
// drawn for element i wherever it is needed, so that no mask is stored for the backward pass. A block costs 20
// wide multiplications for four elements; on an H100 1.2 million elements (1600 rows of 768) take 0.8 µs of all
// multiprocessors, less than reading and writing them.
#pragma once
#include "prelude.cuh"

namespace dropout {

// The mask of one tensor of one batch.
struct Mask {
  uint32 key[2];
  uint32 site, batch;
  // The least word of an element that is kept, and what kept ones are multiplied with.
  uint32 threshold;
  float scale;
};

// `draw`: the seed's low and high half, the number of the batch, and one word that is not used.
DEVICE Mask mask_of(const uint32* draw, uint32 site, uint32 threshold, float scale) {
  Pack<uint32, 4> words = load_pack<4>(draw);
  return {{words.at[0], words.at[1]}, site, words.at[2], threshold, scale};
}

// The words of elements 4·block to 4·block + 3.
DEVICE Pack<uint32, 4> words_of(const Mask& mask, uint32 block) {
  Pack<uint32, 4> c = {{block, 0, mask.site, mask.batch}};
  uint32 key0 = mask.key[0], key1 = mask.key[1];
#pragma unroll
  for (int round = 0; round < 10; round++) {
    uint64 a = uint64(0xd2511f53u) * c.at[0], b = uint64(0xcd9e8d57u) * c.at[2];
    c = {{uint32(b >> 32) ^ c.at[1] ^ key0, uint32(b), uint32(a >> 32) ^ c.at[3] ^ key1, uint32(a)}};
    key0 += 0x9e3779b9u;
    key1 += 0xbb67ae85u;
  }
  return c;
}

// N neighbouring elements from `first` on, both multiples of 4.
template <int N>
DEVICE void apply(const Mask& mask, uint32 first, float (&v)[N]) {
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    Pack<uint32, 4> words = words_of(mask, (first + i) / 4);
#pragma unroll
    for (int j = 0; j < 4; j++) v[i + j] = words.at[j] >= mask.threshold ? mask.scale * v[i + j] : 0.0f;
  }
}

// One element.
DEVICE float apply(const Mask& mask, uint32 index, float v) {
  Pack<uint32, 4> words = words_of(mask, index / 4);
  uint32 low = index & 1 ? words.at[1] : words.at[0], high = index & 1 ? words.at[3] : words.at[2];
  return (index & 2 ? high : low) >= mask.threshold ? mask.scale * v : 0.0f;
}

}  // namespace dropout
