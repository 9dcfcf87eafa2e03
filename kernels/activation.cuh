// The MLP's activation functions and their slopes, in f32.
#pragma once

#include "prelude.cuh"

namespace activation {

// z·σ(1.702·z). Fast exponential and division: within 1e-6, where the exact division brings a call for each
// element. An exponential above 2^126, as infinity, gives σ = 0.
struct QuickGelu {
  static DEVICE float sigmoid(float z) { return __fdividef(1.0f, 1.0f + __expf(-1.702f * z)); }
  static DEVICE float value(float z) { return z * sigmoid(z); }
  static DEVICE float slope(float z) {
    float s = sigmoid(z);
    return s * (1.0f + 1.702f * z * (1.0f - s));
  }
};

// z·Φ(z) with Φ(z) = (1 + erf(z/√2))/2; its slope is Φ(z) + z·φ(z), φ(z) = exp(−z²/2)/√(2π).
struct Gelu {
  static DEVICE float phi(float z) { return 0.5f * (1.0f + erff(z * 0.70710678f)); }
  static DEVICE float value(float z) { return z * phi(z); }
  static DEVICE float slope(float z) { return phi(z) + z * 0.39894228f * __expf(-0.5f * z * z); }
};

}  // namespace activation
