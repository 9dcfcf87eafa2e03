// What the stand-ins for libcuda (cuda.cpp) and libcublasLt (cublaslt.cpp) share.
//
// They stand in for NVIDIA's libraries where there is no GPU, so that tests can run the GPU driver's own
// code. They keep the driver's promises about order and nothing else: a copy, a kernel or a product runs as
// late as those promises allow, when something waits for it, so whatever relies on more than was promised
// meets unfinished work. Kernels run by way of the host twin's libraries. Nothing here says how fast a GPU
// is, what its machine code does, or how its driver behaves beyond what CUDA documents.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#define PUBLIC __attribute__((visibility("default")))

namespace stand_in {

// One thing that a device does. A graph does it once per launch.
using Work = std::function<void()>;

// The statuses of the driver that occur here.
enum Status {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  NOT_INITIALIZED = 3,
  STUB_LIBRARY = 34,
  NO_DEVICE = 100,
  INVALID_DEVICE = 101,
  INVALID_IMAGE = 200,
  INVALID_CONTEXT = 201,
  INVALID_HANDLE = 400,
  NOT_FOUND = 500,
  NOT_READY = 600,
  ILLEGAL_ADDRESS = 700,
  OUT_OF_RESOURCES = 701,
  COOPERATIVE_LAUNCH_TOO_LARGE = 720,
  CAPTURE_UNSUPPORTED = 900,
  CAPTURE_INVALIDATED = 901,
};

const unsigned MULTIPROCESSORS = 4;
// Bytes of its cache: a few copies of a small product's weights fill it.
const size_t CACHE = 1 << 10;

// What the test has set for STAND_IN_`name`, in the environment or since.
PUBLIC std::string setting(const char* name, const char* otherwise);
PUBLIC long number(const char* name, long otherwise);

// Puts work behind all that the stream was given before, or into the graph that it is captured as.
PUBLIC Status enqueue(void* stream, Work work);

// For work that runs: whether device memory of this size is allocated there. If not, the device is lost.
PUBLIC bool may_touch(const char* what, const void* at, size_t bytes);

// Lets the device's clock go on. It counts what was done and knows no time.
PUBLIC void spend(double microseconds);

// Whether a stream of the device is being captured.
PUBLIC bool captures();

// Counts a call, and whether it is the one that STAND_IN_FAIL wants to fail: "cuMemAlloc_v2:3:2" is the third
// of that name, with the status 2. Returns that status, or 0.
PUBLIC int called(const char* name);

// A line for a kernel that runs between the profiler's start and stop in STAND_IN_PROFILE, a file as ncu writes it.
PUBLIC void profile(const char* kernel);

// Counts a call that has failed, and says so.
PUBLIC void failed(const char* name, int status);

// What a function of the two libraries returns: a number as in C, which is counted where it is an error.
struct Answer {
  int status;

  // A library's own status for what is no failure.
  static const int NO_FAILURE = 600;

  Answer(int status, const char* name = __builtin_FUNCTION()) : status(status) {
    if (status != 0 && status != NO_FAILURE) failed(name, status);
  }
};

// Counts the objects of a kind that exist.
PUBLIC void hold(const char* kind, int change);

// Reports a use that the driver forbids, or leaves undefined, where it cannot be answered by a status.
PUBLIC void misuse(const std::string& what);

// Whether the thread has a context that exists.
PUBLIC bool has_context();

}  // namespace stand_in
