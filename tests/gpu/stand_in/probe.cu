// Kernels small enough to tell what the driver did to them.
#include "prelude.cuh"

// y = s·x; y may be x.
extern "C" __global__ void probe_scale(const float* x, float* y, int n, float s) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = s * x[i];
}
EXPORT_KERNEL(probe_scale)

// Turns a block's numbers round by way of dynamic shared memory, from the end of `room` numbers on.
extern "C" __global__ void probe_turn(float* x, int room) {
  DYNAMIC_SHARED(float, held);
  int n = blockDim.x, i = threadIdx.x;
  held[room - 1 - i] = x[i];
  __syncthreads();
  x[i] = held[room - n + i];
}
EXPORT_KERNEL(probe_turn)
