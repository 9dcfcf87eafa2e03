// Runs a kernel on the CPU: block after block, the threads of a block as fibers on one OS thread.
//
// A fiber runs until it has to wait for others (a barrier, a shuffle, ...), then another goes on. When
// none can, another block goes on if the launch is a cooperative one, whose blocks may wait for each other, and when
// none of those can, the launch has failed; so it has when a kernel does what it must not. The launch is then given
// up where it stands: what the fibers were doing stays undone, and the message goes to the host.
#define TWIN_RUNTIME
#include <link.h>

#include <algorithm>
#include <map>
#include <utility>

#include "machine.h"
#include "memory.h"
#include "tensor_core.h"

namespace twin {

// ---------------------------------------------------------------- scheduling

static bool can_run(const Thread& t) {
  return !t.done && (!t.gate || *t.gate != t.seen) && (!t.counter || *t.counter >= t.count);
}

// The next thread in [low, high) that can run, from the one after `after` on, round and round.
static Thread* next_in(uint32 low, uint32 high, uint32 after) {
  Machine& m = *machine;
  for (uint32 step = 1, i = after; step < high - low; step++) {
    if (++i >= high) i = low;
    if (can_run(m.threads[i])) return &m.threads[i];
  }
  return nullptr;
}

// "0 to 15, 32", of rising numbers.
static std::string list_text(const std::vector<uint32>& numbers) {
  std::string text;
  for (size_t i = 0; i < numbers.size();) {
    size_t last = i;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) last++;
    text += format(text.empty() ? "%u" : ", %u", numbers[i]);
    if (last > i) text += format(" to %u", numbers[last]);
    i = last + 1;
  }
  return text;
}

// Who waits where, one line for all who wait at the same place.
static std::string deadlock_text() {
  Machine& m = *machine;
  std::map<std::pair<std::string, std::string>, std::vector<uint32>> places;
  for (uint32 i = 0; i < m.count; i++) {
    const Thread& t = m.threads[i];
    places[t.done ? std::make_pair("", "") : std::make_pair(t.op, t.where)].push_back(i);
  }
  std::string problem = "no thread can go on (a barrier, warp operation or meeting that not all reach)";
  for (auto& [place, threads] : places) {
    problem += "\n  threads " + list_text(threads);
    if (place.first.empty()) problem += " have returned";
    else problem += " wait in " + place.first + " at " + site_text(site_of(m.threads[threads[0]].caller));
  }
  return problem;
}

static void switch_to(Thread* next) {
  Thread* me = machine->current;
  machine->current = next;
  switch_context(me->context, next->context);
}

// No thread of the block can go on: others may.
static void leave_block() {
  if (!machine->launch->cooperative) fail_launch(deadlock_text());
  switch_context(machine->current->context, machine->host);
}

// Lets others run until the running thread can; those of [low, high) come first.
static void let_others_run(uint32 low, uint32 high) {
  Machine& m = *machine;
  Thread* me = m.current;
  while (!can_run(*me)) {
    Thread* next = next_in(low, high, me->linear);
    if (!next) next = next_in(0, m.count, me->linear);
    if (next) switch_to(next);
    else leave_block();
  }
}

// The same until `gate` has moved on from `seen`.
static void wait_for(const uint64& gate, uint64 seen, uint32 low, uint32 high) {
  Thread* me = machine->current;
  me->gate = &gate;
  me->seen = seen;
  let_others_run(low, high);
  me->gate = nullptr;
}

static void open_barrier() {
  machine->epoch++;
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
    Thread* next;
    while (!(next = next_in(0, m.count, me->linear))) leave_block();
    switch_to(next);
  }
}

// ---------------------------------------------------------------- barriers and warp operations

// Texts of one place are mostly one text.
static bool same(const char* a, const char* b) { return a == b || !strcmp(a, b); }

void barrier(const char* where) {
  Machine& m = *machine;
  m.current->op = "__syncthreads";
  m.current->where = where;
  m.current->caller = CALLER;
  if (m.barrier_arrived == 0) m.barrier_where = where;
  if (!same(m.barrier_where, where))
    fail_thread(format("reached __syncthreads at %s while others wait in the one at ", where) +
                m.barrier_where);
  uint64 seen = m.barrier_gate;
  if (++m.barrier_arrived >= m.live) {
    open_barrier();
  } else {
    wait_for(m.barrier_gate, seen, 0, m.count);
  }
}

void wait_for_count(const char* where, const uint32* counter, uint32 count) {
  Machine& m = *machine;
  check("wait for a count", counter, sizeof *counter, true, CALLER);
  if (!m.launch->cooperative)
    fail_thread(format("waits for other blocks at %s, and the launch is not cooperative", where));
  Thread* me = m.current;
  me->op = "a meeting";
  me->where = where;
  me->caller = CALLER;
  me->counter = counter;
  me->count = count;
  let_others_run(0, m.count);
  me->counter = nullptr;
  // What was counted later is not known of, though the counter may show it by now.
  for (auto& [value, epoch] : m.counts[counter])
    if (value >= count) {
      m.runs.back().last_heard = std::max(m.runs.back().last_heard, epoch);
      break;
    }
}

// The one operation that lanes may reach at different places of the code.
static const char* const SYNCWARP = "__syncwarp";

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

static void join_meeting(Meeting& meeting, const char* op, const char* where, const void* caller) {
  if (meeting.arrived == 0) {
    meeting.op = op;
    meeting.where = where;
    meeting.caller = caller;
  }
  if (!same(op, meeting.op) || (op != SYNCWARP && !same(where, meeting.where)))
    fail_thread(format("reached %s at ", op) + site_text(site_of(caller)) +
                " while lanes of the same mask wait in " + meeting.op + " at " +
                site_text(site_of(meeting.caller)));
}

// Publishes `value`, waits for every lane of `mask`, and has `read` look at the slots of all.
template <class T, class Read>
static void meet(uint32 mask, const char* op, const char* where, const void* caller, const T& value,
                 Read read) {
  static_assert(sizeof(T) <= SLOT, "a slot holds the value");
  Machine& m = *machine;
  Thread* me = m.current;
  uint32 lane = me->linear % WARP, first = me->linear - lane;
  me->op = op;
  me->where = where;
  me->caller = caller;
  if (!(mask >> lane & 1))
    fail_thread(format("%s with a mask (%08x) without its own lane at ", op, mask) +
                site_text(site_of(caller)));
  mask &= lanes_of(first);
  Meeting& meeting = meeting_of(m.warps[first / WARP], mask);
  join_meeting(meeting, op, where, caller);
  uint64 seen = meeting.gate;
  unsigned char(*slots)[SLOT] = meeting.slots[seen & 1];
  memcpy(slots[lane], &value, sizeof(T));
  meeting.arrived |= 1u << lane;
  meeting.inside++;
  if (meeting.arrived == mask) {
    meeting.arrived = 0;
    meeting.gate++;
    if (op == SYNCWARP) share_knowledge(m.warps[first / WARP], mask);
  } else {
    wait_for(meeting.gate, seen, first, std::min(first + WARP, m.count));
  }
  read(slots);
  meeting.inside--;
}

void warp_barrier(const char* where, uint32 mask) {
  meet(mask, SYNCWARP, where, CALLER, 0, [](auto) {});
}

uint32 ballot(const char* where, const char* op, uint32 mask, bool predicate) {
  uint32 result = 0, taking_part = mask & lanes_of(machine->current->linear & ~31u);
  meet(mask, op, where, CALLER, predicate, [&](auto slots) {
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
    fail_thread(format("%s with a width of %d, which is no power of two up to 32, at %s", op, width, where));
  int lane = machine->current->linear % WARP, source = shuffle_source(kind, lane, amount, width);
  uint32 taking_part = mask & lanes_of(machine->current->linear - lane);
  // What a lane gets that takes no part is undefined on the device; here it is a NaN.
  uint64 result = ~uint64(0);
  meet(mask, op, where, CALLER, bits, [&](auto slots) {
    if (taking_part >> source & 1) memcpy(&result, slots[source], sizeof result);
  });
  return result;
}

// ---------------------------------------------------------------- memory

// What the thread sanitizer's calls may not see, because the accesses become several there.
void check_access(const void* address, size_t bytes, const char* what) {
  check(what, address, bytes, true, CALLER);
}

template <class T, class Change>
static T change(const char* op, T* at, const void* caller, Change changed) {
  Memory memory = check(op, at, sizeof(T), true, caller);
  if (memory == Memory::global) write_global(at, sizeof(T), true, caller);
  if (memory == Memory::shared) write_shared(at, sizeof(T), true, caller);
  if (memory == Memory::local || memory == Memory::constant) fail_access(op, at, sizeof(T), true, caller);
  return std::exchange(*at, changed(*at));
}

uint32 atomic_add(uint32* at, uint32 value) {
  uint32 old = change("atomicAdd", at, CALLER, [&](uint32 old) { return old + value; });
  if (machine->launch->cooperative) machine->counts[at].push_back({old + value, machine->epoch});
  return old;
}
uint32 atomic_max(uint32* at, uint32 value) {
  return change("atomicMax", at, CALLER, [&](uint32 old) { return std::max(old, value); });
}
uint32 atomic_min(uint32* at, uint32 value) {
  return change("atomicMin", at, CALLER, [&](uint32 old) { return std::min(old, value); });
}
int atomic_max_signed(int* at, int value) {
  return change("atomicMax", at, CALLER, [&](int old) { return std::max(old, value); });
}
int atomic_min_signed(int* at, int value) {
  return change("atomicMin", at, CALLER, [&](int old) { return std::min(old, value); });
}
uint32 atomic_or(uint32* at, uint32 value) {
  return change("atomicOr", at, CALLER, [&](uint32 old) { return old | value; });
}
uint32 atomic_and(uint32* at, uint32 value) {
  return change("atomicAnd", at, CALLER, [&](uint32 old) { return old & value; });
}
uint32 atomic_exchange(uint32* at, uint32 value) {
  return change("atomicExch", at, CALLER, [&](uint32) { return value; });
}
uint32 atomic_compare_and_swap(uint32* at, uint32 expected, uint32 value) {
  return change("atomicCAS", at, CALLER, [&](uint32 old) { return old == expected ? value : old; });
}

// ---------------------------------------------------------------- asynchronous copies

static void check_kind(const char* what, const void* address, Memory wanted, const void* caller) {
  if (check(what, address, 16, true, caller) != wanted) fail_access(what, address, 16, true, caller);
}

void cp_async_16(void* shared, const void* global, bool in_range) {
  check_kind("cp.async to shared memory", shared, Memory::shared, CALLER);
  if (in_range) {
    check_kind("cp.async from global memory", global, Memory::global, CALLER);
    read_global(global, 16, CALLER);
  }
  expect_copy(shared, 16, CALLER);
  memset(shared, 0xff, 16);
  Thread& me = *machine->current;
  me.copies.push_back({static_cast<unsigned char*>(shared), in_range ? global : nullptr, me.open_group});
}

void cp_async_commit() { machine->current->open_group++; }

// Copies land here and nowhere else.
void cp_async_wait(int pending) {
  Thread& me = *machine->current;
  const void* caller = CALLER;
  auto landed = [&](const Copy& copy) {
    if (copy.group + uint32(pending) >= me.open_group) return false;
    land_copy(copy.to, 16, caller);
    if (copy.from) memcpy(copy.to, copy.from, 16);
    else memset(copy.to, 0, 16);
    return true;
  };
  me.copies.erase(std::remove_if(me.copies.begin(), me.copies.end(), landed), me.copies.end());
}

// ---------------------------------------------------------------- matrices

static void expect_whole_warp(const char* op, const void* caller) {
  uint32 first = machine->current->linear / WARP * WARP;
  if (machine->count - first < WARP)
    fail_thread(format("%s at ", op) + site_text(site_of(caller)) + " in a warp of fewer than 32 threads");
}

Accumulator mma(Accumulator d, Operands operands) {
  expect_whole_warp("mma_m16n8k16", CALLER);
  int lane = machine->current->linear % WARP, group = lane >> 2, quad = lane & 3;
  bool as_a_device = machine->launch->rounding != 0;
  meet(0xffffffffu, "mma_m16n8k16", "", CALLER, operands, [&](auto slots) {
    auto of = [&](int from) { return reinterpret_cast<const Operands*>(slots[from]); };
    // Register order of a: (row, k), (row + 8, k), (row, k + 8), (row + 8, k + 8), two k each.
    for (int i = 0; i < 4; i++) {
      int upper = i >> 1, column = 2 * quad + (i & 1);
      float a[16], b[16];
      for (int k = 0; k < 16; k++) {
        int holder = (k & 7) >> 1, half = k >> 3, odd = k & 1;
        a[k] = of(group * 4 + holder)->a[(half * 2 + upper) * 2 + odd];
        b[k] = of(column * 4 + holder)->b[half * 2 + odd];
      }
      float& sum = d.at[i];
      const int each = TENSOR_CORE_PRODUCTS;
      if (as_a_device)
        for (int k = 0; k < 16; k += each) sum = tensor_core_sum(sum, a + k, b + k, each);
      else
        for (int k = 0; k < 16; k++) sum += a[k] * b[k];
    }
  });
  return d;
}

Fragment ldmatrix(const void* row, int matrices, bool transposed) {
  expect_whole_warp("ldmatrix", CALLER);
  int lane = machine->current->linear % WARP, group = lane >> 2, quad = lane & 3;
  if (lane < 8 * matrices) {
    check_kind("ldmatrix", row, Memory::shared, CALLER);
    read_shared(row, 16, CALLER);
  }
  Fragment result = {};
  meet(0xffffffffu, "ldmatrix", "", CALLER, row, [&](auto slots) {
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

// ---------------------------------------------------------------- a device's approximations

// A function of the value, as a device's own errors are. What has no neighbours of its size stays: zeros, subnormal
// and the largest numbers, infinities, what is no number.
float approximate(float value, uint32 ulps) {
  uint32 bits = same_bits<uint32>(value), exponent = bits >> 23 & 255;
  if (exponent == 0 || exponent >= 254) return value;
  uint64 mixed = (bits + machine->launch->rounding * 0x9e3779b97f4a7c15ull) * 0xbf58476d1ce4e5b9ull;
  mixed = (mixed ^ mixed >> 31) * 0x94d049bb133111ebull;
  return same_bits<float>(mixed >> 63 ? bits + ulps : bits - ulps);
}

void trap() { fail_thread("__trap at " + site_text(site_of(CALLER))); }

// ---------------------------------------------------------------- indices

uint3 thread_index() { return machine->current->index; }
uint3 block_index() { return machine->block; }
uint3 block_size() { return machine->block_size; }
uint3 grid_size() { return machine->grid_size; }
void* dynamic_shared() { return machine->dynamic.start; }

// ---------------------------------------------------------------- blocks and launches

static void poison_shared(Machine& m) {
  if (m.dynamic.bytes) memset(m.dynamic.start, 0xff, m.dynamic.bytes);
  memset(m.fixed.start, 0xff, m.fixed.bytes);
}

// Before the block's first thread runs.
static void start_block(Machine& m, uint64 block) {
  m.number = block;
  m.live = m.count;
  m.barrier_arrived = 0;
  for (Thread& t : m.threads) {
    t.done = false;
    t.gate = nullptr;
    t.counter = nullptr;
    t.copies.clear();
    t.open_group = 0;
  }
  m.current = &m.threads[0];
}

static void set_index(Machine& m) {
  m.block.x = uint32(m.number % m.grid_size.x);
  m.block.y = uint32(m.number / m.grid_size.x % m.grid_size.y);
  m.block.z = uint32(m.number / (uint64(m.grid_size.x) * m.grid_size.y));
}

// Lets the block go on until it ends, or waits for others.
static void run_block(Machine& m) {
  set_index(m);
  m.block_epoch = ++m.epoch;
  m.runs.push_back({m.epoch, 0, 0, m.number});
  m.accesses = 0;
  poison_shared(m);
  switch_context(m.host, m.current->context);
}

// The fibers of a block, with the stacks from `first` on.
static bool make_threads(Machine& m, Block& block, size_t first) {
  const Launch& l = *m.launch;
  if (!m.stacks.grow(first + m.count)) return false;
  block.threads.resize(m.count);
  block.warps.clear();
  block.warps.resize((m.count + WARP - 1) / WARP);
  for (uint32 i = 0; i < m.count; i++) {
    Thread& t = block.threads[i];
    t.linear = i;
    t.stack = m.stacks[first + i];
    t.index = {i % l.block[0], i / l.block[0] % l.block[1], i / (l.block[0] * l.block[1])};
    make_context(t.context, t.stack, Stacks::BYTES, thread_main);
  }
  return true;
}

// The kernel's library in memory, and its thread-local memory in this OS thread: static shared memory. The loader may not
// say where that lies while another thread loads a library.
static void find_library(Machine& m) {
  auto look = [](dl_phdr_info* library, size_t, void* data) {
    Machine& m = *static_cast<Machine*>(data);
    uint64 code = reinterpret_cast<uint64>(m.launch->touch), base = library->dlpi_addr, end = base;
    bool ours = false;
    size_t fixed_bytes = 0;
    for (int i = 0; i < library->dlpi_phnum; i++) {
      const ElfW(Phdr)& part = library->dlpi_phdr[i];
      if (part.p_type == PT_TLS) fixed_bytes = part.p_memsz;
      if (part.p_type != PT_LOAD) continue;
      uint64 start = base + part.p_vaddr;
      end = std::max<uint64>(end, start + part.p_memsz);
      ours = ours || (code >= start && code < start + part.p_memsz);
    }
    if (!ours) return 0;
    m.library = {reinterpret_cast<unsigned char*>(base), size_t(end - base)};
    m.fixed = {static_cast<unsigned char*>(library->dlpi_tls_data), fixed_bytes};
    return 1;
  };
  do {
    m.launch->touch();
    dl_iterate_phdr(look, &m);
  } while (m.fixed.bytes && !m.fixed.start);
}

// Some 800 MiB of cells.
const size_t MOST_PAGES = 16384;

static bool prepare(Machine& m) {
  const Launch& l = *m.launch;
  m.block_size = {l.block[0], l.block[1], l.block[2]};
  m.grid_size = {l.grid[0], l.grid[1], l.grid[2]};
  m.count = l.block[0] * l.block[1] * l.block[2];
  if (!make_threads(m, m, 0)) return false;
  m.dynamic_memory.resize(l.shared + 128);
  unsigned char* start = m.dynamic_memory.data();
  m.dynamic = {start + -reinterpret_cast<uintptr_t>(start) % 128, l.shared};
  find_library(m);
  if (m.epoch > 1u << 31) {
    m.epoch = 0;
    m.cells.clear();
    m.pages.clear();
  }
  if (m.pages.size() > MOST_PAGES) m.pages.clear();
  m.recent_pages.fill({0, nullptr});
  m.launch_epoch = m.epoch + 1;
  m.runs.clear();
  m.counts.clear();
  m.cells.resize(std::max<size_t>(m.cells.size(), m.dynamic.bytes + m.fixed.bytes));
  m.recent = {0, 0};
  m.failure.clear();
  return true;
}

// The blocks of the launch, one after another.
static void run_in_turn(Machine& m, const std::vector<uint64>& order) {
  for (uint64 block : order) {
    start_block(m, block);
    run_block(m);
    if (!m.failure.empty()) return;
  }
}

// The blocks of a cooperative launch, each until it waits for others, round after round.
static void run_together(Machine& m, const std::vector<uint64>& order) {
  std::vector<Block> blocks(order.size());
  auto exchange = [&](Block& block) { std::swap(static_cast<Block&>(m), block); };
  for (size_t i = 0; i < blocks.size() && m.failure.empty(); i++) {
    if (!make_threads(m, blocks[i], (i + 1) * m.count)) m.failure = "no memory for the stacks of its threads";
    exchange(blocks[i]);
    start_block(m, order[i]);
    exchange(blocks[i]);
  }
  for (bool moved = true; moved && m.failure.empty();) {
    moved = false;
    for (size_t i = 0; i < blocks.size() && m.failure.empty(); i++) {
      exchange(blocks[i]);
      if (std::any_of(m.threads.begin(), m.threads.end(), can_run)) {
        moved = true;
        run_block(m);
      }
      exchange(blocks[i]);
    }
  }
  for (Block& block : blocks) {
    if (!m.failure.empty() || !block.live) continue;
    exchange(block);
    set_index(m);
    m.failure = block_text(m) + deadlock_text();
    exchange(block);
  }
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

namespace twin {

// What of the static shared memory the launch wrote: at least the kernel's.
static void check_shared_limit(Machine& m) {
  auto written = [&](const Cell& cell) { return cell.write_epoch >= m.launch_epoch; };
  auto first = m.cells.begin() + m.dynamic.bytes;
  uint64 fixed = std::count_if(first, first + m.fixed.bytes, written);
  if (fixed + m.dynamic.bytes > m.launch->shared_limit)
    m.failure = format("%zu bytes of dynamic and at least %llu of static shared memory, the device has %llu",
                       m.dynamic.bytes, fixed, m.launch->shared_limit) + " per block";
}

}  // namespace twin

extern "C" twin::Machine* twin_machine_new() { return new twin::Machine; }

// For products that no kernel forms; see tensor_core.h.
extern "C" float twin_tensor_core_sum(float start, const float* a, const float* b, int count) {
  return twin::tensor_core_sum(start, a, b, count);
}

extern "C" void twin_machine_free(twin::Machine* m) { delete m; }

extern "C" uint64 twin_moved(const twin::Machine* m) { return m->moved; }

// 0 when the kernel ran to its end; otherwise the message says what it did.
extern "C" int twin_run(twin::Machine* m, const twin::Launch* launch) {
  m->launch = launch;
  if (!twin::prepare(*m)) {
    m->failure = "no memory for the stacks of its threads";
  } else {
    // Set only now: without a machine the checks let everything pass, the library's own code included.
    twin::machine = m;
    (launch->cooperative ? twin::run_together : twin::run_in_turn)(*m, twin::block_order(*m));
    twin::machine = nullptr;
  }
  if (m->failure.empty()) twin::check_shared_limit(*m);
  if (m->failure.empty()) return 0;
  snprintf(launch->message, launch->message_size, "%s", m->failure.c_str());
  return 1;
}
