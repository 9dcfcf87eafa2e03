// A stand-in for libcuda; stand_in.h says what it is and what it is not.
//
// What it is strict about: work runs when something waits for it and not before, and then only the stream
// that is waited for; an event that is asked about moves its stream by one step. Memory from the host is
// read and written when the stream comes by. Every call needs a current context, every handle must exist,
// everything that is touched must be allocated at that moment, and new memory is NaN. After a fault every
// call on the context fails, but for making it current. Calls that fail are counted. With -DOLD_DRIVER it has
// the functions of a driver before 12.8, with -DSTUB it is the toolkit's stub, which is for linking only.
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "modules.h"
#include "work.h"

namespace stand_in {

// ---------------------------------------------------------------- the device

struct Device {
  std::recursive_mutex lock;
  std::map<std::string, std::string> settings;
  // Uses of the context that it is retained for; it exists while there are any.
  int retained = 0;
  // The status of every further call after a fault.
  Status fault = SUCCESS;
  double clock = 0;
  bool started = false, profiled = false;
  long launches = 0, misuses = 0, watched = 0, calls = 0, failures = 0;
  // How often each function was called since STAND_IN_FAIL was set.
  std::map<std::string, long> times;
  std::map<std::string, long> held;
  // Of streams, events, graphs and so on: what exists, by kind.
  std::set<std::pair<std::string, void*>> handles;
  std::map<uint64_t, size_t> memory, pinned, unpinned;
  size_t used = 0;
  std::vector<twin::Buffer> buffers;
  // Of each runtime of the twin.
  std::map<TwinRun, void*> machines;
};

static Device& device() {
  // Never destroyed: other libraries' destructors may still call.
  static Device* the = new Device;
  return *the;
}

// The context is one object without content.
static char context_object;
static thread_local void* current_context = nullptr;

std::string setting(const char* name, const char* otherwise) {
  Device& d = device();
  std::lock_guard<std::recursive_mutex> guard(d.lock);
  auto found = d.settings.find(name);
  if (found != d.settings.end()) return found->second;
  const char* value = getenv((std::string("STAND_IN_") + name).c_str());
  return value ? value : otherwise;
}

long number(const char* name, long otherwise) {
  std::string text = setting(name, "");
  return text.empty() ? otherwise : atol(text.c_str());
}

void profile(const char* kernel) {
  std::string path = setting("PROFILE", "");
  if (path.empty() || !device().profiled) return;
  std::ofstream file(path, std::ios::app);
  if (!file.tellp()) file << "\"Kernel Name\",\"Metric Name\",\"Metric Unit\",\"Metric Value\"\n";
  file << '"' << kernel << "(…)\",\"gpu__time_duration.sum\",\"ns\",\"1,500\"\n";
}

int called(const char* name) {
  Device& d = device();
  std::lock_guard<std::recursive_mutex> guard(d.lock);
  d.calls++;
#ifdef STUB
  return STUB_LIBRARY;
#endif
  std::istringstream wanted(setting("FAIL", ""));
  std::string which, number, status;
  if (!getline(getline(getline(wanted, which, ':'), number, ':'), status)) return 0;
  if (which != name || ++d.times[which] != stol(number)) return 0;
  return stoi(status);
}

void failed(const char* name, int status) {
  std::lock_guard<std::recursive_mutex> guard(device().lock);
  device().failures++;
  fprintf(stderr, "stand-in: %s fails with %d\n", name, status);
}

void misuse(const std::string& what) {
  device().misuses++;
  fprintf(stderr, "stand-in: %s\n", what.c_str());
}

void spend(double microseconds) { device().clock += microseconds; }

void hold(const char* kind, int change) {
  std::lock_guard<std::recursive_mutex> guard(device().lock);
  device().held[kind] += change;
}

bool has_context() {
  std::lock_guard<std::recursive_mutex> guard(device().lock);
  return current_context && device().retained;
}

// Calls fn for each stream.
template <class Do>
static void each_stream(Do fn) {
  for (auto& [kind, handle] : device().handles)
    if (kind == "stream") fn(*static_cast<Stream*>(handle));
}

bool captures() {
  std::lock_guard<std::recursive_mutex> guard(device().lock);
  bool any = false;
  each_stream([&](Stream& s) { any |= bool(s.recording); });
  return any;
}

// What only a relaxed capture puts up with; any other is broken by it.
static Status unsafe_in_capture() {
  Status status = SUCCESS;
  each_stream([&](Stream& s) {
    bool minds = s.mode == GLOBAL || (s.mode == THREAD_LOCAL && s.recorder == std::this_thread::get_id());
    if (!s.recording || !minds) return;
    s.broken = true;
    status = CAPTURE_UNSUPPORTED;
  });
  return status;
}

// Nothing that waits will ever be done.
static void lose(const std::string& why) {
  fprintf(stderr, "stand-in: the device is lost: %s\n", why.c_str());
  device().fault = ILLEGAL_ADDRESS;
}

bool may_touch(const char* what, const void* at, size_t bytes) {
  uint64_t start = reinterpret_cast<uint64_t>(at);
  auto next = device().memory.upper_bound(start);
  if (next != device().memory.begin()) {
    auto piece = std::prev(next);
    if (start + bytes <= piece->first + piece->second) return true;
  }
  misuse(std::string(what) + ": " + std::to_string(bytes) + " bytes that are not allocated");
  lose("memory that is not allocated was touched");
  return false;
}

// That a host address is not of page-locked memory that was given back.
static bool host_exists(const void* at) {
  uint64_t start = reinterpret_cast<uint64_t>(at);
  auto next = device().unpinned.upper_bound(start);
  if (next == device().unpinned.begin() || start >= std::prev(next)->first + std::prev(next)->second) return true;
  misuse("a copy from or to page-locked memory that was given back");
  lose("memory that is not allocated was touched");
  return false;
}

static bool is_pinned(const void* at) {
  uint64_t start = reinterpret_cast<uint64_t>(at);
  auto next = device().pinned.upper_bound(start);
  return next != device().pinned.begin() && start < std::prev(next)->first + std::prev(next)->second;
}

// FNV-1a.
static uint64_t hash(const void* at, size_t bytes) {
  uint64_t sum = 0xcbf29ce484222325;
  for (size_t i = 0; i < bytes; i++) sum = (sum ^ static_cast<const unsigned char*>(at)[i]) * 0x100000001b3;
  return sum;
}

// ---------------------------------------------------------------- calls

enum class Needs_context { NO, YES };

// Holds the lock during a call, and knows whether it may be made.
struct Call {
  std::lock_guard<std::recursive_mutex> guard{device().lock};
  int status;

  explicit Call(Needs_context needs = Needs_context::YES, const char* name = __builtin_FUNCTION())
      : status(called(name)) {
    if (!status && !device().started) status = NOT_INITIALIZED;
    if (status || needs == Needs_context::NO) return;
    status = device().fault ? device().fault : has_context() ? SUCCESS : INVALID_CONTEXT;
  }
};

template <class T>
static void make(const char* kind, T* object, void** handle) {
  hold(kind, 1);
  device().handles.insert({kind, object});
  *handle = object;
}

static Status known(const char* kind, void* handle) {
  if (device().handles.count({kind, handle})) return SUCCESS;
  misuse(std::string("a handle that is no ") + kind);
  return INVALID_HANDLE;
}

template <class T>
static Status destroy(const char* kind, void* handle) {
  if (Status status = known(kind, handle)) return status;
  device().handles.erase({kind, handle});
  hold(kind, -1);
  delete static_cast<T*>(handle);
  return SUCCESS;
}

// Work that does nothing once the device is lost, and costs a microsecond.
static Work step(Work work) {
  return [work = std::move(work)] {
    if (device().fault) return;
    spend(1);
    work();
  };
}

Status enqueue(void* stream, Work work) {
  std::lock_guard<std::recursive_mutex> guard(device().lock);
  if (device().fault) return device().fault;
  if (!has_context()) return INVALID_CONTEXT;
  if (Status status = known("stream", stream)) return status;
  return static_cast<Stream*>(stream)->add(step(std::move(work)));
}

static void list_buffers() {
  Device& d = device();
  d.buffers.clear();
  for (auto [start, bytes] : d.memory) d.buffers.push_back({start, start + bytes});
}

}  // namespace stand_in

using namespace stand_in;

#define API extern "C" PUBLIC Answer
#define BEGIN(...)        \
  Call call{__VA_ARGS__}; \
  if (call.status) return call.status
#define SAFE_IN_ANY_CAPTURE \
  if (Status status = unsafe_in_capture()) return status
#define KNOWN(kind, handle) \
  if (Status status = known(kind, handle)) return status

// ---------------------------------------------------------------- for the test

extern "C" PUBLIC void stand_in_set(const char* name, const char* value) {
  std::lock_guard<std::recursive_mutex> guard(device().lock);
  device().settings[name] = value;
  device().times.clear();
  // As a process that has not called cuInit yet.
  if (std::string(name) == "STARTED") device().started = *value == '1';
}

// Objects that exist, of all kinds; and so far: kernels that have run, misuses, calls, calls that failed.
extern "C" PUBLIC long stand_in_held() {
  std::lock_guard<std::recursive_mutex> guard(device().lock);
  long sum = 0;
  for (auto& [kind, count] : device().held) {
    if (count) fprintf(stderr, "stand-in: %ld of kind %s\n", count, kind.c_str());
    sum += count;
  }
  return sum;
}
extern "C" PUBLIC long stand_in_launches() {
  std::lock_guard<std::recursive_mutex> guard(device().lock);
  return device().launches;
}
extern "C" PUBLIC long stand_in_misuses() {
  std::lock_guard<std::recursive_mutex> guard(device().lock);
  return device().misuses;
}

extern "C" PUBLIC long stand_in_calls() {
  std::lock_guard<std::recursive_mutex> guard(device().lock);
  return device().calls;
}
extern "C" PUBLIC long stand_in_failures() {
  std::lock_guard<std::recursive_mutex> guard(device().lock);
  return device().failures;
}

// ---------------------------------------------------------------- driver, devices, context

API cuInit(unsigned) {
  std::lock_guard<std::recursive_mutex> guard(device().lock);
  if (int status = called(__func__)) return status;
  if (!number("DEVICES", 1)) return NO_DEVICE;
  device().started = true;
  return SUCCESS;
}

// NVRTC asks every driver that it finds for private functions, and crashes where it cannot even ask.
extern "C" PUBLIC int cuGetExportTable(const void** table, const void*) {
  *table = nullptr;
  return INVALID_VALUE;
}

API cuDriverGetVersion(int* version) {
  if (int status = called(__func__)) return status;
  *version = int(number("DRIVER", 13000));
  return SUCCESS;
}

API cuDeviceGetCount(int* count) {
  BEGIN(Needs_context::NO);
  *count = int(number("DEVICES", 1));
  return SUCCESS;
}

API cuDeviceGet(int* device, int ordinal) {
  BEGIN(Needs_context::NO);
  *device = ordinal;
  return ordinal < number("DEVICES", 1) ? SUCCESS : INVALID_DEVICE;
}

API cuDeviceGetName(char* name, int size, int) {
  BEGIN(Needs_context::NO);
  snprintf(name, size_t(size), "stand-in");
  return SUCCESS;
}

API cuDeviceTotalMem_v2(size_t* bytes, int) {
  BEGIN(Needs_context::NO);
  *bytes = size_t(number("MEMORY", 1 << 30));
  return SUCCESS;
}

API cuDeviceGetAttribute(int* value, int attribute, int) {
  BEGIN(Needs_context::NO);
  int capability = int(number("CAPABILITY", 90));
  switch (attribute) {
    case 16: *value = MULTIPROCESSORS; return SUCCESS;
    case 38: *value = int(CACHE); return SUCCESS;           // L2 cache
    case 75: *value = capability / 10; return SUCCESS;
    case 76: *value = capability % 10; return SUCCESS;
    case 95: *value = 1; return SUCCESS;                    // cooperative launches
    case 97: *value = capability >= 80 ? 227 << 10 : 64 << 10; return SUCCESS;  // shared memory per block
  }
  return INVALID_VALUE;
}

API cuDevicePrimaryCtxRetain(void** context, int) {
  BEGIN(Needs_context::NO);
  device().retained++;
  hold("context", 1);
  *context = &context_object;
  return SUCCESS;
}

API cuDevicePrimaryCtxRelease_v2(int) {
  BEGIN(Needs_context::NO);
  if (device().retained == 0) return INVALID_CONTEXT;
  hold("context", -1);
  if (--device().retained == 0 && !device().handles.empty()) misuse("the context goes before what is in it");
  return SUCCESS;
}

API cuCtxSetCurrent(void* context) {
  BEGIN(Needs_context::NO);
  if (context && (context != &context_object || !device().retained)) return INVALID_CONTEXT;
  current_context = context;
  return SUCCESS;
}

struct Meaning {
  Status status;
  const char *name, *text;
};
static const Meaning MEANINGS[] = {
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {STUB_LIBRARY, "CUDA_ERROR_STUB_LIBRARY", "CUDA driver is a stub library"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {COOPERATIVE_LAUNCH_TOO_LARGE, "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE",
     "too many blocks in cooperative launch"},
    {OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
    {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
};

static int meaning(int status, const char** text, const char* Meaning::*part) {
  for (const Meaning& m : MEANINGS)
    if (m.status == status) {
      *text = m.*part;
      return SUCCESS;
    }
  *text = nullptr;
  return INVALID_VALUE;
}
extern "C" PUBLIC int cuGetErrorName(int status, const char** text) { return meaning(status, text, &Meaning::name); }
extern "C" PUBLIC int cuGetErrorString(int status, const char** text) { return meaning(status, text, &Meaning::text); }

// ---------------------------------------------------------------- memory

// So that the piece behind is not reached by one element too many.
static const size_t ALIGNMENT = 256, GAP = 4096;

API cuMemGetInfo_v2(size_t* free, size_t* total) {
  BEGIN();
  *total = size_t(number("MEMORY", 1 << 30));
  *free = *total - std::min(*total, device().used);
  return SUCCESS;
}

API cuMemAlloc_v2(uint64_t* address, size_t bytes) {
  BEGIN();
  SAFE_IN_ANY_CAPTURE;
  if (!bytes) return INVALID_VALUE;
  size_t total = size_t(number("MEMORY", 1 << 30));
  if (bytes > total - std::min(total, device().used)) return OUT_OF_MEMORY;
  size_t size = (bytes + GAP + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  void* start = aligned_alloc(ALIGNMENT, size);
  if (!start) return OUT_OF_MEMORY;
  // NaN in every number type.
  memset(start, 0xff, size);
  *address = reinterpret_cast<uint64_t>(start);
  device().memory[*address] = bytes;
  device().used += bytes;
  hold("device memory", 1);
  list_buffers();
  return SUCCESS;
}

// Does not wait: work that still needs the memory will find that it is gone.
API cuMemFree_v2(uint64_t address) {
  BEGIN();
  SAFE_IN_ANY_CAPTURE;
  auto found = device().memory.find(address);
  if (found == device().memory.end()) {
    misuse("device memory is given back that is not allocated");
    return INVALID_VALUE;
  }
  device().used -= found->second;
  device().memory.erase(found);
  hold("device memory", -1);
  list_buffers();
  free(reinterpret_cast<void*>(address));
  return SUCCESS;
}

API cuMemHostAlloc(void** address, size_t bytes, unsigned) {
  BEGIN();
  SAFE_IN_ANY_CAPTURE;
  *address = calloc(bytes, 1);
  device().pinned[reinterpret_cast<uint64_t>(*address)] = bytes;
  hold("pinned memory", 1);
  return SUCCESS;
}

// Never really freed, so that a copy that comes too late is noticed and harms nothing.
API cuMemFreeHost(void* address) {
  BEGIN();
  SAFE_IN_ANY_CAPTURE;
  auto found = device().pinned.find(reinterpret_cast<uint64_t>(address));
  if (found == device().pinned.end()) {
    misuse("page-locked memory is given back that is not allocated");
    return INVALID_VALUE;
  }
  memset(address, 0xee, found->second);
  device().unpinned.insert(*found);
  device().pinned.erase(found);
  hold("pinned memory", -1);
  return SUCCESS;
}

API cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void* stream) {
  BEGIN();
  return enqueue(stream, [=] {
    void* at = reinterpret_cast<void*>(to);
    if (may_touch("memset", at, bytes)) memset(at, value, bytes);
  });
}

API cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) {
  BEGIN();
  return enqueue(stream, [=] {
    void *target = reinterpret_cast<void*>(to), *source = reinterpret_cast<void*>(from);
    if (may_touch("copy from", source, bytes) && may_touch("copy to", target, bytes))
      memmove(target, source, bytes);
  });
}

API cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
  BEGIN();
  // What is page-locked is read when the stream comes by, and must be then what it is now.
  bool locked = is_pinned(from);
  uint64_t before = locked ? hash(from, bytes) : 0;
  return enqueue(stream, [=] {
    void* target = reinterpret_cast<void*>(to);
    if (!host_exists(from) || !may_touch("copy from the host", target, bytes)) return;
    if (locked && hash(from, bytes) != before)
      misuse("page-locked memory was written while a copy from it was on its way");
    memcpy(target, from, bytes);
  });
}

API cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
  BEGIN();
  return enqueue(stream, [=] {
    void* source = reinterpret_cast<void*>(from);
    if (host_exists(to) && may_touch("copy to the host", source, bytes)) memcpy(to, source, bytes);
  });
}

// ---------------------------------------------------------------- streams and events

API cuStreamCreate(void** stream, unsigned) {
  BEGIN();
  make("stream", new Stream, stream);
  return SUCCESS;
}

API cuStreamDestroy_v2(void* stream) {
  BEGIN();
  KNOWN("stream", stream);
  static_cast<Stream*>(stream)->run_all();
  return destroy<Stream>("stream", stream);
}

API cuStreamSynchronize(void* stream) {
  BEGIN();
  KNOWN("stream", stream);
  Stream* s = static_cast<Stream*>(stream);
  if (Status status = s->refuse_in_recording()) return status;
  s->run_all();
  return device().fault;
}

API cuEventCreate(void** event, unsigned flags) {
  BEGIN();
  make("event", new Event{!(flags & 2), nullptr}, event);
  return SUCCESS;
}

API cuEventDestroy_v2(void* event) {
  BEGIN();
  return destroy<Event>("event", event);
}

API cuEventRecord(void* event, void* stream) {
  BEGIN();
  KNOWN("event", event);
  KNOWN("stream", stream);
  Stream* s = static_cast<Stream*>(stream);
  if (Status status = s->refuse_in_recording()) return status;
  auto mark = std::make_shared<Mark>(Mark{s});
  static_cast<Event*>(event)->last = mark;
  return s->add([mark] {
    mark->done = true;
    mark->time = device().clock;
  });
}

API cuStreamWaitEvent(void* stream, void* event, unsigned) {
  BEGIN();
  KNOWN("event", event);
  KNOWN("stream", stream);
  Stream* s = static_cast<Stream*>(stream);
  if (Status status = s->refuse_in_recording()) return status;
  std::shared_ptr<Mark> mark = static_cast<Event*>(event)->last;
  return mark ? s->add([mark] { mark->reach(); }) : SUCCESS;
}

API cuEventQuery(void* event) {
  BEGIN();
  SAFE_IN_ANY_CAPTURE;
  KNOWN("event", event);
  std::shared_ptr<Mark> mark = static_cast<Event*>(event)->last;
  if (!mark || mark->done) return SUCCESS;
  // Who asks often enough gets there.
  mark->stream->run_one();
  return device().fault ? device().fault : NOT_READY;
}

API cuEventSynchronize(void* event) {
  BEGIN();
  KNOWN("event", event);
  if (std::shared_ptr<Mark> mark = static_cast<Event*>(event)->last) mark->reach();
  return device().fault;
}

#ifdef OLD_DRIVER
#define cuEventElapsedTime_v2 cuEventElapsedTime
#endif
API cuEventElapsedTime_v2(float* milliseconds, void* start, void* end) {
  BEGIN();
  KNOWN("event", start);
  KNOWN("event", end);
  Event *from = static_cast<Event*>(start), *to = static_cast<Event*>(end);
  if (!from->timing || !to->timing || !from->last || !to->last) return INVALID_HANDLE;
  if (!from->last->done || !to->last->done) return NOT_READY;
  *milliseconds = float((to->last->time - from->last->time) * 1e-3);
  return SUCCESS;
}

API cuProfilerStart() {
  BEGIN();
  device().profiled = true;
  return SUCCESS;
}

API cuProfilerStop() {
  BEGIN();
  device().profiled = false;
  return SUCCESS;
}

// ---------------------------------------------------------------- graphs

API cuStreamBeginCapture_v2(void* stream, int mode) {
  BEGIN();
  KNOWN("stream", stream);
  Stream* s = static_cast<Stream*>(stream);
  if (Status status = s->refuse_in_recording()) return status;
  s->recording = std::make_unique<Graph>();
  s->mode = Capture(mode);
  s->recorder = std::this_thread::get_id();
  return SUCCESS;
}

API cuStreamEndCapture(void* stream, void** graph) {
  Call call;
  KNOWN("stream", stream);
  Stream* s = static_cast<Stream*>(stream);
  *graph = nullptr;
  // Whether or not it succeeds, nothing is captured afterwards.
  std::unique_ptr<Graph> recorded = std::move(s->recording);
  if (call.status) return call.status;
  if (!recorded) return INVALID_VALUE;
  if (s->broken) {
    s->broken = false;
    return CAPTURE_INVALIDATED;
  }
  make("graph", recorded.release(), graph);
  return SUCCESS;
}

API cuGraphDestroy(void* graph) {
  BEGIN();
  return destroy<Graph>("graph", graph);
}

API cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
  BEGIN();
  KNOWN("graph", graph);
  make("executable graph", new Graph(*static_cast<Graph*>(graph)), executable);
  return SUCCESS;
}

API cuGraphExecDestroy(void* executable) {
  BEGIN();
  return destroy<Graph>("executable graph", executable);
}

API cuGraphUpload(void* executable, void* stream) {
  BEGIN();
  KNOWN("executable graph", executable);
  KNOWN("stream", stream);
  return static_cast<Stream*>(stream)->refuse_in_recording();
}

API cuGraphLaunch(void* executable, void* stream) {
  BEGIN();
  KNOWN("executable graph", executable);
  KNOWN("stream", stream);
  Stream* s = static_cast<Stream*>(stream);
  if (Status status = s->refuse_in_recording()) return status;
  for (const Work& work : static_cast<Graph*>(executable)->work) s->add(work);
  return SUCCESS;
}

// ---------------------------------------------------------------- kernels

API cuModuleLoadData(void** module, const void* cubin) {
  BEGIN();
  SAFE_IN_ANY_CAPTURE;
  if (!Cubin(cubin).sections) return INVALID_IMAGE;
  make("module", new Module{kernels_of(cubin), libraries(), {}}, module);
  return SUCCESS;
}

API cuModuleUnload(void* module) {
  BEGIN();
  for (auto& [kind, handle] : device().handles)
    if ((kind == "graph" || kind == "executable graph") && static_cast<Graph*>(handle)->modules.count(module))
      misuse("a module goes before a graph with its kernels");
  return destroy<Module>("module", module);
}

API cuModuleGetFunction(void** function, void* module, const char* name) {
  BEGIN();
  KNOWN("module", module);
  *function = static_cast<Module*>(module)->find(name);
  return *function ? SUCCESS : NOT_FOUND;
}

enum Attribute { MAX_THREADS = 0, STATIC_SHARED = 1, REGISTERS = 4, DYNAMIC_SHARED = 8 };

API cuFuncGetAttribute(int* value, int attribute, void* function) {
  BEGIN();
  const Function& f = *static_cast<Function*>(function);
  switch (attribute) {
    case MAX_THREADS: *value = int(f.needs.max_threads); return SUCCESS;
    case STATIC_SHARED: *value = int(f.needs.shared); return SUCCESS;
    case REGISTERS: *value = int(f.needs.registers); return SUCCESS;
    case DYNAMIC_SHARED: *value = int(f.dynamic_limit); return SUCCESS;
  }
  return INVALID_VALUE;
}

API cuFuncSetAttribute(void* function, int attribute, int value) {
  BEGIN();
  Function& f = *static_cast<Function*>(function);
  if (attribute != DYNAMIC_SHARED || value < 0 || value > (227 << 10) - int(f.needs.shared)) return INVALID_VALUE;
  f.dynamic_limit = size_t(value);
  return SUCCESS;
}

// "300:file" in STAND_IN_LOST_AFTER: the device is lost at the 300th kernel that runs while `file` is there.
static bool lost_on_request() {
  std::string after = setting("LOST_AFTER", "");
  size_t colon = after.find(':');
  if (colon == std::string::npos || !std::ifstream(after.substr(colon + 1))) return false;
  if (++device().watched < atol(after.c_str())) return false;
  lose("STAND_IN_LOST_AFTER asked for it");
  return true;
}

// Arguments as they were at the call.
struct Arguments {
  std::vector<uint64_t> slots;
  std::vector<void*> pointers;

  Arguments(const twin::Kernel& kernel, void** from) : slots(kernel.count), pointers(kernel.count) {
    for (size_t i = 0; i < kernel.count; i++) {
      memcpy(&slots[i], from[i], kernel.sizes[i]);
      pointers[i] = &slots[i];
    }
  }
};

static void run_kernel(twin::Launch launch, const TwinLibrary& library, void** arguments) {
  Device& d = device();
  if (lost_on_request()) return;
  void*& machine = d.machines[library.run];
  if (!machine) machine = library.new_machine();
  char message[4096] = "";
  launch.arguments = arguments;
  launch.buffers = d.buffers.data();
  launch.buffer_count = d.buffers.size();
  // From the last block to the first; the twin itself shuffles them.
  launch.order = 1;
  launch.message = message;
  launch.message_size = sizeof message;
  d.launches++;
  profile(launch.kernel->name);
  if (library.run(machine, &launch)) {
    misuse(std::string(launch.kernel->name) + ": " + message);
    lose("a kernel failed");
  }
}

// Both kinds of launches. Those whose blocks wait for each other may have one for each multiprocessor.
static int launch_kernel(Function* f, std::array<unsigned, 3> grid, std::array<unsigned, 3> block, unsigned shared,
                         void* stream, void** arguments, bool cooperative) {
  auto [gx, gy, gz] = grid;
  uint64_t threads = uint64_t(block[0]) * block[1] * block[2];
  if (!gx || !gy || !gz || gy > 65535 || gz > 65535 || !threads || threads > 1024) return INVALID_VALUE;
  if (threads > f->needs.max_threads || shared > f->dynamic_limit) return INVALID_VALUE;
  // A multiprocessor has so many registers; each warp gets them in steps of 8 for each of its threads.
  const uint64_t ALL_REGISTERS = 65536;
  if ((threads + 31) / 32 * 32 * ((f->needs.registers + 7) / 8 * 8) > ALL_REGISTERS) return OUT_OF_RESOURCES;
  if (cooperative && uint64_t(gx) * gy * gz > MULTIPROCESSORS) return COOPERATIVE_LAUNCH_TOO_LARGE;
  if (static_cast<Stream*>(stream)->recording) static_cast<Stream*>(stream)->recording->modules.insert(f->module);
  twin::Launch launch = {};
  launch.kernel = f->kernel;
  launch.touch = f->library.touch;
  std::copy_n(grid.begin(), 3, launch.grid);
  std::copy_n(block.begin(), 3, launch.block);
  launch.shared = shared;
  launch.shared_limit = 227 << 10;
  launch.cooperative = cooperative;
  auto given = std::make_shared<Arguments>(*f->kernel, arguments);
  return enqueue(stream, [launch, given, library = f->library] {
    run_kernel(launch, library, given->pointers.data());
  });
}

API cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** arguments, void**) {
  BEGIN();
  KNOWN("stream", stream);
  Function* f = static_cast<Function*>(function);
  return launch_kernel(f, {gx, gy, gz}, {bx, by, bz}, shared, stream, arguments, false);
}

// CUlaunchConfig and CUlaunchAttribute of cuda.h.
struct LaunchAttribute {
  int id;
  char padding[4];
  union {
    char bytes[64];
    int flag;
  } value;
};
struct LaunchConfig {
  unsigned grid[3], block[3], shared;
  void* stream;
  const LaunchAttribute* attributes;
  unsigned count;
};

API cuLaunchKernelEx(const LaunchConfig* config, void* function, void** arguments, void**) {
  BEGIN();
  KNOWN("stream", config->stream);
  const int PROGRAMMATIC_STREAM_SERIALIZATION = 6;
  for (unsigned i = 0; i < config->count; i++)
    if (config->attributes[i].id != PROGRAMMATIC_STREAM_SERIALIZATION || config->attributes[i].value.flag != 1)
      return INVALID_VALUE;
  Function* f = static_cast<Function*>(function);
  auto [gx, gy, gz] = config->grid;
  auto [bx, by, bz] = config->block;
  return launch_kernel(f, {gx, gy, gz}, {bx, by, bz}, config->shared, config->stream, arguments, false);
}

API cuLaunchCooperativeKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                              unsigned bz, unsigned shared, void* stream, void** arguments) {
  BEGIN();
  KNOWN("stream", stream);
  Function* f = static_cast<Function*>(function);
  return launch_kernel(f, {gx, gy, gz}, {bx, by, bz}, shared, stream, arguments, true);
}
