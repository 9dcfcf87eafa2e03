// Sums as tensor cores form them, after measurements of an A100: Fasi et al., "Numerical behavior of NVIDIA tensor
// cores" (2021); Li et al., "FTTN" (2024); Khattak and Mikaitis, "Accurate Models of NVIDIA Tensor Cores" (2025).
// Eight exact products and the accumulator are aligned to the largest exponent among them, what is more than one bit
// below a float's last is cut off, and their exact sum is cut to a float. An H100 adds up sixteen and keeps two bits:
// of the devices whose tensor cores the kernels use, this is the one that rounds most.
#pragma once

#include <algorithm>
#include <cmath>

#include "twin.h"

namespace twin {

const int TENSOR_CORE_PRODUCTS = 8;
// Below the leading bit of the largest.
const int TENSOR_CORE_BITS = 24;

// Subnormal numbers have that of the smallest normal ones.
inline int exponent_of(float v) { return std::max(int(same_bits<uint32>(v) >> 23 & 255), 1) - 127; }

inline double power_of_two(int exponent) { return same_bits<double>(uint64(exponent + 1023) << 52); }

// Rounds towards zero; what is too large for a float is infinite.
inline float cut_to_float(double v) {
  float nearest = float(v);
  bool too_large = !std::isinf(nearest) && std::fabs(nearest) > std::fabs(v);
  return too_large ? same_bits<float>(same_bits<uint32>(nearest) - 1) : nearest;
}

// start + Σ a·b over at most TENSOR_CORE_PRODUCTS products. Doubles hold them, and the sum of what is kept, exactly.
inline float tensor_core_sum(float start, const float* a, const float* b, int count) {
  double terms[1 + TENSOR_CORE_PRODUCTS] = {start}, plain = start;
  int largest = start != 0.0f ? exponent_of(start) : -300;
  for (int i = 0; i < count; i++) {
    double product = double(a[i]) * b[i];
    if (product != 0.0) largest = std::max(largest, exponent_of(a[i]) + exponent_of(b[i]));
    terms[1 + i] = product;
    plain += product;
  }
  if (!std::isfinite(plain)) return float(plain);
  double scale = power_of_two(TENSOR_CORE_BITS - largest), sum = 0.0;
  for (int i = 0; i <= count; i++) sum += double((long long)(terms[i] * scale));
  return cut_to_float(sum * power_of_two(largest - TENSOR_CORE_BITS));
}

}  // namespace twin
