// Which memory a kernel may touch: device memory within its buffers, the block's shared memory, the thread's
// own stack, and constants of the kernel's library. Every load and store of a kernel asks here first.
#pragma once

#include <algorithm>

#include "global_memory.h"
#include "machine.h"
#include "shared_memory.h"

namespace twin {

inline const Buffer* buffer_before(uint64 address) {
  const Launch& l = *machine->launch;
  auto after = [](uint64 a, const Buffer& b) { return a < b.start; };
  const Buffer* next = std::upper_bound(l.buffers, l.buffers + l.buffer_count, address, after);
  return next == l.buffers ? nullptr : next - 1;
}

inline bool in_global(const void* address, size_t bytes) {
  Machine& m = *machine;
  uint64 at = reinterpret_cast<uint64>(address);
  auto holds = [&](const Buffer& b) { return at >= b.start && at < b.end && bytes <= b.end - at; };
  if (holds(m.recent)) return true;
  const Buffer* before = buffer_before(at);
  if (!before || !holds(*before)) return false;
  m.recent = *before;
  return true;
}

inline bool in_own_stack(const void* address) {
  Machine& m = *machine;
  const char* stack = m.current->stack;
  return address >= stack && address < stack + Stacks::BYTES;
}

// Where an address is that must not be touched.
inline std::string place_text(const void* address) {
  Machine& m = *machine;
  uint64 at = reinterpret_cast<uint64>(address);
  if (at < 4096) return "a null pointer";
  for (uint32 i = 0; i < m.count; i++)
    if (address >= m.threads[i].stack && address < m.threads[i].stack + Stacks::BYTES)
      return "the local memory of " + thread_text(i);
  // Buffers and shared memory may lie beside each other: the nearest is meant.
  const Launch& l = *m.launch;
  const Buffer* before = buffer_before(at);
  const Buffer* next = before ? before + 1 : l.buffers;
  if (next == l.buffers + l.buffer_count) next = nullptr;
  uint64 behind = before ? at - std::min(at, before->end) : ~0ull, ahead = next ? next->start - at : ~0ull;
  const unsigned char* byte = static_cast<const unsigned char*>(address);
  for (const Region& r : {m.dynamic, m.fixed}) {
    const char* kind = r.start == m.dynamic.start ? "dynamic" : "static";
    const unsigned char* end = r.start + r.bytes;
    if (!r.bytes || byte < r.start - 64 || byte >= end + 4096) continue;
    uint64 away = byte < r.start ? r.start - byte : byte - std::min(byte, end);
    if (away <= std::min(behind, ahead))
      return format("byte %td of %zu bytes of %s shared memory", byte - r.start, r.bytes, kind);
  }
  if (before && at - before->start <= ahead)
    return format("byte %llu of a buffer of %llu bytes", at - before->start, before->end - before->start);
  if (next)
    return format("%llu bytes before a buffer of %llu bytes", ahead, next->end - next->start);
  return format("%p, which is no device memory", address);
}

[[noreturn]] inline void fail_access(const char* what, const void* address, size_t bytes, bool aligned,
                                     const void* caller) {
  std::string access = format("%s of %zu bytes at ", what, bytes) + site_text(site_of(caller)) + ": ";
  if (aligned) fail_thread("out of bounds: " + access + place_text(address));
  fail_thread("misaligned: " + access + format("address %p is no multiple of %zu", address, bytes));
}

// Some seconds; what waits here for another block waits forever.
const uint64 MOST_ACCESSES = 100000000;

enum class Memory { global, shared, local, constant };

// The checks of an access that is one instruction on the device, all but races.
inline Memory check(const char* what, const void* address, size_t bytes, bool whole, const void* caller) {
  Machine& m = *machine;
  if (++m.accesses > MOST_ACCESSES)
    fail_thread(format("after %llu accesses the block still runs; the last was at ", MOST_ACCESSES) +
                site_text(site_of(caller)));
  bool aligned = !whole || reinterpret_cast<uintptr_t>(address) % bytes == 0;
  if (!aligned) fail_access(what, address, bytes, false, caller);
  // Device memory last: it is searched for.
  if (m.dynamic.holds(address, bytes) || m.fixed.holds(address, bytes)) return Memory::shared;
  if (in_own_stack(address)) return Memory::local;
  if (in_global(address, bytes)) return Memory::global;
  if (m.library.holds(address, bytes)) return Memory::constant;
  fail_access(what, address, bytes, true, caller);
}

inline void load(const void* address, size_t bytes, bool whole, const void* caller) {
  if (!machine) return;
  Memory memory = check("read", address, bytes, whole, caller);
  if (memory == Memory::global) read_global(address, bytes, caller);
  if (memory == Memory::shared) read_shared(address, bytes, caller);
}

inline void store(const void* address, size_t bytes, bool whole, const void* caller) {
  if (!machine) return;
  Memory memory = check("write", address, bytes, whole, caller);
  if (memory == Memory::global) write_global(address, bytes, false, caller);
  if (memory == Memory::shared) write_shared(address, bytes, false, caller);
  if (memory == Memory::constant) fail_access("write to a constant", address, bytes, true, caller);
}

}  // namespace twin

// ---------------------------------------------------------------- the compiler's calls (-fsanitize=thread)

#define TWIN_ACCESS(size)                                                                          \
  extern "C" void __tsan_read##size(void* at) { twin::load(at, size, true, CALLER); }              \
  extern "C" void __tsan_write##size(void* at) { twin::store(at, size, true, CALLER); }            \
  extern "C" void __tsan_unaligned_read##size(void* at) { twin::load(at, size, false, CALLER); }   \
  extern "C" void __tsan_unaligned_write##size(void* at) { twin::store(at, size, false, CALLER); }
TWIN_ACCESS(1)
TWIN_ACCESS(2)
TWIN_ACCESS(4)
TWIN_ACCESS(8)
TWIN_ACCESS(16)
#undef TWIN_ACCESS

extern "C" void __tsan_read_range(void* at, size_t bytes) { twin::load(at, bytes, false, CALLER); }
extern "C" void __tsan_write_range(void* at, size_t bytes) { twin::store(at, bytes, false, CALLER); }
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}

// Clang's names for the copies that it makes of large structs.
extern "C" void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  twin::load(from, bytes, false, CALLER);
  twin::store(to, bytes, false, CALLER);
  return memcpy(to, from, bytes);
}
extern "C" void* __tsan_memset(void* to, int value, size_t bytes) {
  twin::store(to, bytes, false, CALLER);
  return memset(to, value, bytes);
}
