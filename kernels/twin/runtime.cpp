// Runs a kernel on the CPU: block after block, the threads of a block as fibers on one OS thread.
//
// A fiber runs until it has to wait for others (a barrier, a shuffle, ...), then another goes on. When
// none can, the launch has failed; so it has when a kernel does what it must not. The launch is then given
// up where it stands: what the fibers were doing stays undone, and the message goes to the host.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <memory>
#include <string>

#include <dlfcn.h>
#include <link.h>

#define TWIN_RUNTIME
#include "fiber.h"
#include "twin.h"

namespace twin {

// ---------------------------------------------------------------- what the host hands over

// A piece of device memory: from `start` up to `end`.
struct Buffer {
  uint64 start, end;
};

struct Launch {
  const Kernel* kernel;
  // Of the kernel's library.
  void (*touch)();
  uint32 grid[3], block[3];
  uint64 shared;
  void** arguments;
  // Sorted by address.
  const Buffer* buffers;
  uint64 buffer_count;
  // 0: ascending, 1: descending, anything else seeds a shuffle.
  uint64 order;
  // Where a message goes.
  char* message;
  uint64 message_size;
};

// ---------------------------------------------------------------- the state of a launch

const int WARP = 32, SLOT = 64;

// A copy on its way from global to shared memory; `group` counts the commits of its thread.
struct Copy {
  unsigned char* to;
  const void* from;
  uint32 group;
};

struct Thread {
  Context context;
  uint3 index;
  uint32 linear = 0;
  bool done = true;
  // Waits until *gate differs from `seen`; nowhere: runs.
  const uint64* gate = nullptr;
  uint64 seen = 0;
  const char *op = "", *where = "";
  std::vector<Copy> copies;
  uint32 open_group = 0;
};

// The lanes of one mask meeting. The slots are doubled: a fast lane may be at the next meeting while a slow
// one still reads, but not at the one after it.
struct Meeting {
  uint32 mask = 0, arrived = 0, inside = 0;
  uint64 gate = 0;
  const char *op = "", *where = "";
  alignas(16) unsigned char slots[2][WARP][SLOT];
};

struct Warp {
  std::vector<std::unique_ptr<Meeting>> meetings;
};

struct Machine {
  Stacks stacks;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Context host;
  Thread* current = nullptr;

  const Launch* launch = nullptr;
  uint32 count = 0, live = 0;
  uint3 block, block_size, grid_size;

  // The block's barrier.
  uint64 barrier_gate = 0;
  uint32 barrier_arrived = 0;
  const char* barrier_where = "";

  std::vector<unsigned char> dynamic_memory;
  unsigned char *dynamic = nullptr, *fixed = nullptr;
  size_t fixed_bytes = 0;

  std::string failure;
};

// __thread and not thread_local: no constructor to look for at each use.
static __thread Machine* machine = nullptr;

static std::string format(const char* text, ...) __attribute__((format(printf, 1, 2)));
static std::string format(const char* text, ...) {
  char line[512];
  va_list values;
  va_start(values, text);
  vsnprintf(line, sizeof line, text, values);
  va_end(values);
  return line;
}

// The call in the kernel's code that led here, for the host to turn into a source line.
#define CALLER __builtin_return_address(0)

// Gives the launch up: the host goes on after its switch to the block, and nothing here ever does.
[[noreturn]] static void fail_launch(const std::string& problem) {
  Machine& m = *machine;
  m.failure = format("block (%u,%u,%u): ", m.block.x, m.block.y, m.block.z) + problem;
  Context abandoned;
  switch_context(abandoned, m.host);
  __builtin_unreachable();
}

// The same for what the running thread did.
[[noreturn]] static void fail_thread(const std::string& problem, const void* caller = nullptr) {
  const uint3& t = machine->current->index;
  std::string place;
  if (caller) {
    Dl_info library;
    if (dladdr(caller, &library))
      place = format(" at {%zx}", size_t(static_cast<const char*>(caller) - static_cast<char*>(library.dli_fbase)));
  }
  fail_launch(format("thread (%u,%u,%u): ", t.x, t.y, t.z) + problem + place);
}

// ---------------------------------------------------------------- scheduling

static bool can_run(const Thread& t) { return !t.done && (!t.gate || *t.gate != t.seen); }

// The next thread in [low, high) that can run, from the one after `after` on, round and round.
static Thread* next_in(uint32 low, uint32 high, uint32 after) {
  Machine& m = *machine;
  for (uint32 step = 1, i = after; step < high - low; step++) {
    if (++i >= high) i = low;
    if (can_run(m.threads[i])) return &m.threads[i];
  }
  return nullptr;
}

// Who waits where, one line for all who wait at the same place.
[[noreturn]] static void fail_deadlock() {
  Machine& m = *machine;
  std::vector<std::pair<std::string, std::string>> places;
  for (uint32 i = 0; i < m.count; i++) {
    const Thread& t = m.threads[i];
    std::string place = t.done ? "have returned" : std::string("wait in ") + t.op + " at " + t.where;
    auto known = std::find_if(places.begin(), places.end(), [&](auto& p) { return p.first == place; });
    if (known == places.end()) known = places.insert(places.end(), {place, ""});
    if (known->second.size() < 40) known->second += format(known->second.empty() ? "%u" : ",%u", i);
    else if (known->second.back() != '.') known->second += "...";
  }
  std::string problem = "no thread can go on (a barrier or warp operation that not all reach)";
  for (auto& p : places) problem += "\n  threads " + p.second + " " + p.first;
  fail_launch(problem);
}

static void switch_to(Thread* next) {
  Thread* me = machine->current;
  machine->current = next;
  switch_context(me->context, next->context);
}

// Lets others run until `gate` has moved on from `seen`; those of [low, high) come first.
static void wait_for(const uint64& gate, uint64 seen, uint32 low, uint32 high) {
  Machine& m = *machine;
  Thread* me = m.current;
  me->gate = &gate;
  me->seen = seen;
  while (gate == seen) {
    Thread* next = next_in(low, high, me->linear);
    if (!next) next = next_in(0, m.count, me->linear);
    if (!next) fail_deadlock();
    switch_to(next);
  }
  me->gate = nullptr;
}

static void open_barrier() {
  machine->barrier_arrived = 0;
  machine->barrier_gate++;
}

// A thread from its first block to the end of the launch.
static void thread_main() {
  for (;;) {
    machine->launch->kernel->run(machine->launch->arguments);
    Machine& m = *machine;
    Thread* me = m.current;
    me->done = true;
    m.live--;
    // Threads that have returned no longer count, as on the device.
    if (m.live && m.barrier_arrived >= m.live) open_barrier();
    if (!m.live) {
      switch_context(me->context, m.host);
      continue;
    }
    Thread* next = next_in(0, m.count, me->linear);
    if (!next) fail_deadlock();
    switch_to(next);
  }
}

// ---------------------------------------------------------------- barriers and warp operations

void barrier(const char* where) {
  Machine& m = *machine;
  m.current->op = "__syncthreads";
  m.current->where = where;
  if (m.barrier_arrived == 0) m.barrier_where = where;
  if (strcmp(m.barrier_where, where) != 0)
    fail_thread(format("reached __syncthreads at %s while others wait in the one at %s", where, m.barrier_where));
  uint64 seen = m.barrier_gate;
  if (++m.barrier_arrived >= m.live) {
    open_barrier();
  } else {
    wait_for(m.barrier_gate, seen, 0, m.count);
  }
}

static Meeting& meeting_of(Warp& warp, uint32 mask) {
  Meeting* unused = nullptr;
  for (auto& meeting : warp.meetings) {
    if (meeting->mask == mask) return *meeting;
    if (!meeting->inside) unused = meeting.get();
  }
  if (!unused) {
    warp.meetings.push_back(std::make_unique<Meeting>());
    unused = warp.meetings.back().get();
  }
  unused->mask = mask;
  return *unused;
}

// Lanes of the warp that the block has: the last warp may be short.
static uint32 lanes_of(uint32 first) {
  uint32 lanes = machine->count - first;
  return lanes >= 32 ? 0xffffffffu : (1u << lanes) - 1;
}

static void join_meeting(Meeting& meeting, const char* op, const char* where) {
  if (meeting.arrived == 0) {
    meeting.op = op;
    meeting.where = where;
  }
  bool barriers = !strcmp(op, "__syncwarp") && !strcmp(meeting.op, "__syncwarp");
  if (!barriers && (strcmp(op, meeting.op) || strcmp(where, meeting.where)))
    fail_thread(format("reached %s at %s while lanes of the same mask wait in %s at %s", op, where, meeting.op,
                       meeting.where));
}

// Publishes `value`, waits for every lane of `mask`, and has `read` look at the slots of all.
template <class T, class Read>
static void meet(uint32 mask, const char* op, const char* where, const T& value, Read read) {
  static_assert(sizeof(T) <= SLOT, "a slot holds the value");
  Machine& m = *machine;
  Thread* me = m.current;
  uint32 lane = me->linear % WARP, first = me->linear - lane;
  me->op = op;
  me->where = where;
  if (!(mask >> lane & 1)) fail_thread(format("%s at %s with a mask (%08x) without its own lane", op, where, mask));
  mask &= lanes_of(first);
  Meeting& meeting = meeting_of(m.warps[first / WARP], mask);
  join_meeting(meeting, op, where);
  uint64 seen = meeting.gate;
  unsigned char(*slots)[SLOT] = meeting.slots[seen & 1];
  memcpy(slots[lane], &value, sizeof(T));
  meeting.arrived |= 1u << lane;
  meeting.inside++;
  if (meeting.arrived == mask) {
    meeting.arrived = 0;
    meeting.gate++;
  } else {
    wait_for(meeting.gate, seen, first, std::min(first + WARP, m.count));
  }
  read(slots);
  meeting.inside--;
}

void warp_barrier(const char* where, uint32 mask) {
  meet(mask, "__syncwarp", where, 0, [](auto) {});
}

uint32 ballot(const char* where, const char* op, uint32 mask, bool predicate) {
  uint32 result = 0, taking_part = mask & lanes_of(machine->current->linear & ~31u);
  meet(mask, op, where, predicate, [&](auto slots) {
    for (int i = 0; i < WARP; i++)
      if (taking_part >> i & 1) result |= uint32(slots[i][0] != 0) << i;
  });
  return result;
}

static int shuffle_source(Shuffle kind, int lane, int amount, int width) {
  int low = lane & ~(width - 1);
  int source = kind == Shuffle::index ? low + (amount & (width - 1))
               : kind == Shuffle::up  ? lane - amount
               : kind == Shuffle::down ? lane + amount
                                       : lane ^ amount;
  // Lower groups can be read by an exclusive or, higher ones cannot.
  bool inside = source < low + width && (source >= low || (kind == Shuffle::exclusive_or && source >= 0));
  return inside ? source : lane;
}

uint64 shuffle_bits(const char* where, Shuffle kind, uint32 mask, uint64 bits, int amount, int width) {
  static const char* const ops[] = {"__shfl_sync", "__shfl_up_sync", "__shfl_down_sync", "__shfl_xor_sync"};
  const char* op = ops[int(kind)];
  if (width < 1 || width > WARP || (width & (width - 1)))
    fail_thread(format("%s at %s with a width of %d, which is no power of two up to 32", op, where, width));
  int lane = machine->current->linear % WARP, source = shuffle_source(kind, lane, amount, width);
  uint32 taking_part = mask & lanes_of(machine->current->linear - lane);
  // What a lane gets that takes no part is undefined on the device; here it is a NaN.
  uint64 result = ~uint64(0);
  meet(mask, op, where, bits, [&](auto slots) {
    if (taking_part >> source & 1) memcpy(&result, slots[source], sizeof result);
  });
  return result;
}

// ---------------------------------------------------------------- memory

static bool in_shared(const void* address, size_t bytes) {
  Machine& m = *machine;
  const unsigned char* at = static_cast<const unsigned char*>(address);
  auto inside = [&](unsigned char* start, size_t size) { return at >= start && at + bytes <= start + size; };
  return inside(m.dynamic, m.launch->shared) || inside(m.fixed, m.fixed_bytes);
}

static bool in_global(const void* address, size_t bytes) {
  const Launch& l = *machine->launch;
  uint64 at = reinterpret_cast<uint64>(address);
  const Buffer* next =
      std::upper_bound(l.buffers, l.buffers + l.buffer_count, at, [](uint64 a, const Buffer& b) { return a < b.start; });
  return next != l.buffers && at + bytes <= next[-1].end;
}

static void check(const void* address, size_t bytes, bool allowed, const char* what, const void* caller) {
  if (reinterpret_cast<uintptr_t>(address) % bytes)
    fail_thread(format("%s of %zu bytes at %p, which is not aligned to them", what, bytes, address), caller);
  if (!allowed) fail_thread(format("%s of %zu bytes at %p, out of bounds", what, bytes, address), caller);
}

void check_access(const void* address, size_t bytes, const char* what) {
  check(address, bytes, in_shared(address, bytes) || in_global(address, bytes), what, CALLER);
}

uint32 atomic_add(uint32* at, uint32 value) {
  check(at, 4, in_shared(at, 4) || in_global(at, 4), "atomicAdd", CALLER);
  return std::exchange(*at, *at + value);
}

uint32 atomic_max(uint32* at, uint32 value) {
  check(at, 4, in_shared(at, 4) || in_global(at, 4), "atomicMax", CALLER);
  return std::exchange(*at, std::max(*at, value));
}

uint32 atomic_min(uint32* at, uint32 value) {
  check(at, 4, in_shared(at, 4) || in_global(at, 4), "atomicMin", CALLER);
  return std::exchange(*at, std::min(*at, value));
}

int atomic_max_signed(int* at, int value) {
  check(at, 4, in_shared(at, 4) || in_global(at, 4), "atomicMax", CALLER);
  return std::exchange(*at, std::max(*at, value));
}

int atomic_min_signed(int* at, int value) {
  check(at, 4, in_shared(at, 4) || in_global(at, 4), "atomicMin", CALLER);
  return std::exchange(*at, std::min(*at, value));
}

uint32 atomic_or(uint32* at, uint32 value) {
  check(at, 4, in_shared(at, 4) || in_global(at, 4), "atomicOr", CALLER);
  return std::exchange(*at, *at | value);
}

uint32 atomic_and(uint32* at, uint32 value) {
  check(at, 4, in_shared(at, 4) || in_global(at, 4), "atomicAnd", CALLER);
  return std::exchange(*at, *at & value);
}

uint32 atomic_exchange(uint32* at, uint32 value) {
  check(at, 4, in_shared(at, 4) || in_global(at, 4), "atomicExch", CALLER);
  return std::exchange(*at, value);
}

uint32 atomic_compare_and_swap(uint32* at, uint32 expected, uint32 value) {
  check(at, 4, in_shared(at, 4) || in_global(at, 4), "atomicCAS", CALLER);
  return std::exchange(*at, *at == expected ? value : *at);
}

// ---------------------------------------------------------------- asynchronous copies

void cp_async_16(void* shared, const void* global, bool in_range) {
  check(shared, 16, in_shared(shared, 16), "cp.async to shared memory", CALLER);
  if (in_range) check(global, 16, in_global(global, 16), "cp.async from global memory", CALLER);
  memset(shared, 0xff, 16);
  Thread& me = *machine->current;
  me.copies.push_back({static_cast<unsigned char*>(shared), in_range ? global : nullptr, me.open_group});
}

void cp_async_commit() { machine->current->open_group++; }

// Copies land here and nowhere else, so what is read before is poison.
void cp_async_wait(int pending) {
  Thread& me = *machine->current;
  auto landed = [&](const Copy& copy) {
    if (copy.group + pending >= me.open_group) return false;
    if (copy.from) memcpy(copy.to, copy.from, 16);
    else memset(copy.to, 0, 16);
    return true;
  };
  me.copies.erase(std::remove_if(me.copies.begin(), me.copies.end(), landed), me.copies.end());
}

// ---------------------------------------------------------------- matrices

Accumulator mma(Accumulator d, Operands operands) {
  int lane = machine->current->linear % WARP, group = lane >> 2, quad = lane & 3;
  meet(0xffffffffu, "mma_m16n8k16", "the prelude", operands, [&](auto slots) {
    auto of = [&](int from) { return reinterpret_cast<const Operands*>(slots[from]); };
    // Register order of a: (row, k), (row + 8, k), (row, k + 8), (row + 8, k + 8), two k each.
    for (int i = 0; i < 4; i++) {
      int upper = i >> 1, column = 2 * quad + (i & 1);
      for (int k = 0; k < 16; k++) {
        int holder = (k & 7) >> 1, half = k >> 3, odd = k & 1;
        float a = of(group * 4 + holder)->a[(half * 2 + upper) * 2 + odd];
        float b = of(column * 4 + holder)->b[half * 2 + odd];
        d.at[i] += a * b;
      }
    }
  });
  return d;
}

Fragment ldmatrix(const void* row, int matrices, bool transposed) {
  int lane = machine->current->linear % WARP, group = lane >> 2, quad = lane & 3;
  if (lane < 8 * matrices) check(row, 16, in_shared(row, 16), "ldmatrix", CALLER);
  Fragment result = {};
  meet(0xffffffffu, "ldmatrix", "the prelude", row, [&](auto slots) {
    auto element = [&](int matrix, int i, int j) {
      const uint16* from;
      memcpy(&from, slots[matrix * 8 + i], sizeof from);
      return uint32(from[j]);
    };
    for (int m = 0; m < matrices; m++)
      result.at[m] = transposed ? element(m, 2 * quad, group) | element(m, 2 * quad + 1, group) << 16
                                : element(m, group, 2 * quad) | element(m, group, 2 * quad + 1) << 16;
  });
  return result;
}

// ---------------------------------------------------------------- half precision

static float widen_half(uint16 bits) {
  uint32 sign = uint32(bits & 0x8000) << 16, exponent = bits >> 10 & 31, mantissa = bits & 0x3ff;
  if (exponent == 31) return same_bits<float>(sign | 0x7f800000u | mantissa << 13);
  if (exponent) return same_bits<float>(sign | (exponent + 112) << 23 | mantissa << 13);
  float subnormal = ldexpf(float(mantissa), -24);
  return sign ? -subnormal : subnormal;
}

float half_to_float(uint16 bits) {
  static const std::vector<float> table = [] {
    std::vector<float> all(1 << 16);
    for (uint32 i = 0; i < all.size(); i++) all[i] = widen_half(uint16(i));
    return all;
  }();
  return table[bits];
}

// To nearest even. Below 2^-14 the steps are 2^-24: adding 0.5 makes the float's own rounding do it.
uint16 float_to_half(float value) {
  uint32 bits = same_bits<uint32>(value), magnitude = bits & 0x7fffffffu;
  uint16 sign = uint16(bits >> 16 & 0x8000);
  if (magnitude > 0x7f800000u) return 0x7fff;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00;
  if (magnitude < 0x38800000u)
    return sign | uint16(same_bits<uint32>(same_bits<float>(magnitude) + 0.5f) - 0x3f000000u);
  uint32 rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return sign | uint16((rounded - 0x38000000u) >> 13);
}

void trap() { fail_thread("__trap", CALLER); }

// ---------------------------------------------------------------- indices

uint3 thread_index() { return machine->current->index; }
uint3 block_index() { return machine->block; }
uint3 block_size() { return machine->block_size; }
uint3 grid_size() { return machine->grid_size; }
void* dynamic_shared() { return machine->dynamic; }

// ---------------------------------------------------------------- blocks and launches

static void poison_shared(Machine& m) {
  if (m.launch->shared) memset(m.dynamic, 0xff, m.launch->shared);
  memset(m.fixed, 0xff, m.fixed_bytes);
}

static void run_block(Machine& m, uint64 block) {
  m.block.x = uint32(block % m.grid_size.x);
  m.block.y = uint32(block / m.grid_size.x % m.grid_size.y);
  m.block.z = uint32(block / (uint64(m.grid_size.x) * m.grid_size.y));
  m.live = m.count;
  m.barrier_arrived = 0;
  for (Thread& t : m.threads) {
    t.done = false;
    t.gate = nullptr;
    t.copies.clear();
    t.open_group = 0;
  }
  poison_shared(m);
  m.current = &m.threads[0];
  switch_context(m.host, m.threads[0].context);
}

// The static shared memory of the kernel's library: its thread-local memory, in this OS thread.
static void find_fixed(Machine& m) {
  m.launch->touch();
  m.fixed = nullptr;
  m.fixed_bytes = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* library, size_t, void* data) {
        Machine& m = *static_cast<Machine*>(data);
        uint64 code = reinterpret_cast<uint64>(m.launch->touch);
        const ElfW(Phdr)* local = nullptr;
        bool ours = false;
        for (int i = 0; i < library->dlpi_phnum; i++) {
          const ElfW(Phdr)& part = library->dlpi_phdr[i];
          uint64 start = library->dlpi_addr + part.p_vaddr;
          if (part.p_type == PT_LOAD && code >= start && code < start + part.p_memsz) ours = true;
          if (part.p_type == PT_TLS) local = &part;
        }
        if (!ours || !local) return 0;
        m.fixed = static_cast<unsigned char*>(library->dlpi_tls_data);
        m.fixed_bytes = local->p_memsz;
        return 1;
      },
      &m);
}

static bool prepare(Machine& m) {
  const Launch& l = *m.launch;
  m.block_size = {l.block[0], l.block[1], l.block[2]};
  m.grid_size = {l.grid[0], l.grid[1], l.grid[2]};
  m.count = l.block[0] * l.block[1] * l.block[2];
  if (!m.stacks.grow(m.count)) return false;
  m.threads.resize(m.count);
  m.warps.clear();
  m.warps.resize((m.count + WARP - 1) / WARP);
  for (uint32 i = 0; i < m.count; i++) {
    Thread& t = m.threads[i];
    t.linear = i;
    t.index = {i % l.block[0], i / l.block[0] % l.block[1], i / (l.block[0] * l.block[1])};
    make_context(t.context, m.stacks[i], Stacks::BYTES, thread_main);
  }
  m.dynamic_memory.resize(l.shared + 128);
  m.dynamic = m.dynamic_memory.data();
  m.dynamic += -reinterpret_cast<uintptr_t>(m.dynamic) % 128;
  find_fixed(m);
  m.failure.clear();
  return true;
}

static std::vector<uint64> block_order(const Machine& m) {
  std::vector<uint64> blocks(uint64(m.grid_size.x) * m.grid_size.y * m.grid_size.z);
  for (uint64 i = 0; i < blocks.size(); i++) blocks[i] = i;
  uint64 state = m.launch->order;
  if (state == 1) std::reverse(blocks.begin(), blocks.end());
  if (state <= 1) return blocks;
  for (uint64 i = blocks.size(); i > 1; i--) {
    // Knuth's MMIX generator; its upper bits are the good ones.
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    std::swap(blocks[i - 1], blocks[(state >> 33) % i]);
  }
  return blocks;
}

}  // namespace twin

extern "C" __attribute__((visibility("default"))) twin::Machine* twin_machine_new() { return new twin::Machine; }

extern "C" __attribute__((visibility("default"))) void twin_machine_free(twin::Machine* m) { delete m; }

// 0 when the kernel ran to its end; otherwise the message says what it did.
extern "C" __attribute__((visibility("default"))) int twin_run(twin::Machine* m, const twin::Launch* launch) {
  m->launch = launch;
  twin::machine = m;
  if (!twin::prepare(*m)) {
    m->failure = "no memory for the stacks of its threads";
  } else {
    for (uint64 block : twin::block_order(*m)) {
      twin::run_block(*m, block);
      if (!m->failure.empty()) break;
    }
  }
  twin::machine = nullptr;
  if (m->failure.empty()) return 0;
  snprintf(launch->message, launch->message_size, "%s", m->failure.c_str());
  return 1;
}
