// Kernels small enough to tell what the driver did to them.
#include "prelude.cuh"

// y = s·x; y may be x.
extern "C" __global__ void probe_scale(const float* x, float* y, int n, float s) {
  begin_kernel();
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = s * x[i];
}
EXPORT_KERNEL(probe_scale)

// Turns a block's numbers round by way of dynamic shared memory, from the end of `room` numbers on.
extern "C" __global__ void probe_turn(float* x, int room) {
  begin_kernel();
  DYNAMIC_SHARED(float, held);
  int n = blockDim.x, i = threadIdx.x;
  held[room - 1 - i] = x[i];
  __syncthreads();
  x[i] = held[room - n + i];
}
EXPORT_KERNEL(probe_turn)

// The same by way of static shared memory as well, for blocks of up to 64 threads.
extern "C" __global__ void __launch_bounds__(64) probe_bounded(float* x, int room) {
  begin_kernel();
  DYNAMIC_SHARED(float, held);
  __shared__ float once[2048];
  int n = blockDim.x, i = threadIdx.x;
  once[i] = x[i];
  __syncthreads();
  held[room - 1 - i] = once[i];
  __syncthreads();
  x[i] = held[room - n + i];
}
EXPORT_KERNEL(probe_bounded)
