// What whoever runs kernels hands over: src/dev/twin/library.rs, which has the same layouts, and the tests'
// stand-in for libcuda.
#pragma once

#include <cstddef>

namespace twin {

// A kernel of a library, as twin_kernels lists them.
struct Kernel {
  const char* name;
  // Calls the kernel with the arguments that the pointers lead to, as cuLaunchKernel takes them.
  void (*run)(void** arguments);
  const unsigned char* sizes;
  size_t count;
  const Kernel* next;
};

// A piece of device memory: from `start` up to `end`.
struct Buffer {
  unsigned long long start, end;
};

struct Launch {
  const Kernel* kernel;
  // Of the kernel's library.
  void (*touch)();
  unsigned grid[3], block[3];
  // Bytes of dynamic shared memory, and what a block can have of both kinds.
  unsigned long long shared, shared_limit;
  void** arguments;
  // Sorted by address.
  const Buffer* buffers;
  unsigned long long buffer_count;
  // 0: ascending, 1: descending, anything else seeds a shuffle.
  unsigned long long order;
  // Not 0: tensor cores and approximations round as a device's do, and this seeds the errors of approximations.
  unsigned long long rounding;
  // 0: the kernel's loads and stores are not watched, and neither are those that the runtime makes for it.
  unsigned long long watched;
  // Not 0: blocks may wait for each other.
  unsigned long long cooperative;
  // Where a message goes.
  char* message;
  unsigned long long message_size;
};

}  // namespace twin
