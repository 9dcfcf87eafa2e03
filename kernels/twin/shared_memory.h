// Races in shared memory, reads of what nobody wrote, and reads of what is still on its way.
//
// For every byte a cell keeps the last write and the reads since. Two accesses of different threads, one
// of them a write, need a barrier between them: of the block (the epoch then differs), or of lanes of their
// warp (__syncwarp). Shuffles and the like do not order memory.
//
// Within a warp a clock counts the __syncwarps. An access carries the time at which it was made; what lane
// a did at time s is known to lane b once a chain of common __syncwarps after s leads from a to b:
// known[b][a] > s.
#pragma once

#include "machine.h"

namespace twin {

const uint16 SEVERAL_WARPS = 0xffff;

inline Cell* cells_of(const void* address) {
  Machine& m = *machine;
  const unsigned char* at = static_cast<const unsigned char*>(address);
  size_t offset = m.dynamic.holds(at, 1) ? at - m.dynamic.start : m.dynamic.bytes + (at - m.fixed.start);
  return &m.cells[offset];
}

// The host turns "{+offset}" into the name of the variable.
inline std::string shared_text(const void* address) {
  Machine& m = *machine;
  const unsigned char* at = static_cast<const unsigned char*>(address);
  if (m.dynamic.holds(at, 1)) return format("byte %td of dynamic shared memory", at - m.dynamic.start);
  return format("{+%tx} of static shared memory", at - m.fixed.start);
}

// Whether the running thread comes after what `other` did in this epoch at `stamp`.
inline bool comes_after(uint32 other, uint32 stamp) {
  const Machine& m = *machine;
  uint32 me = m.current->linear;
  if (other == me) return true;
  return other / WARP == me / WARP && m.warps[me / WARP].known[me % WARP][other % WARP] > stamp;
}

// The same for lanes of the running thread's warp; gives one that it does not come after, or -1.
inline int lane_not_before(uint32 lanes, uint32 stamp) {
  uint32 first = machine->current->linear / WARP * WARP;
  for (; lanes; lanes &= lanes - 1) {
    int lane = __builtin_ctz(lanes);
    if (!comes_after(first + lane, stamp)) return lane;
  }
  return -1;
}

[[noreturn]] inline void fail_race(const char* mine, const void* at, const void* caller, const char* theirs,
                                   const std::string& other, uint32 site) {
  fail_thread(format("race: %s ", mine) + shared_text(at) + " at " + site_text(site_of(caller)) + ", which " +
              other + " " + theirs + " at " + site_text(site) + " with no barrier between");
}

[[noreturn]] inline void fail_arriving(const char* mine, const void* at, const void* caller, uint32 site) {
  fail_thread(format("%s ", mine) + shared_text(at) + " at " + site_text(site_of(caller)) +
              ", where the cp.async of " + site_text(site) +
              " has not arrived: a cp_async_wait is missing or lets too many groups pend");
}

inline void note_read(Cell& cell, uint32 epoch, uint32 thread, uint32 time, uint32 site) {
  uint32 bit = 1u << thread % WARP;
  uint16 warp = uint16(thread / WARP);
  if (cell.read_epoch != epoch) {
    cell.read_epoch = epoch;
    cell.reader_warp = warp;
    cell.readers = bit;
  } else if (cell.reader_warp != warp) {
    cell.reader_warp = SEVERAL_WARPS;
  } else if (cell.read_stamp != time && lane_not_before(cell.readers, cell.read_stamp) < 0) {
    cell.readers = bit;  // Whoever comes after this read comes after the others.
  } else {
    cell.readers |= bit;
  }
  cell.read_stamp = time;
  cell.read_site = site;
}

inline void read_shared(const void* address, size_t bytes, const void* caller) {
  if (!machine->launch->watched) return;
  Machine& m = *machine;
  const unsigned char* at = static_cast<const unsigned char*>(address);
  // Looked up once: the compiler cannot know that writing a cell leaves them as they are.
  uint32 me = m.current->linear, epoch = m.epoch, block_epoch = m.block_epoch;
  uint32 time = m.warps[me / WARP].time, site = site_of(caller);
  Cell* cells = cells_of(address);
  for (size_t i = 0; i < bytes; i++) {
    Cell& cell = cells[i];
    if (cell.arriving == block_epoch) fail_arriving("reads", at + i, caller, cell.write_site);
    if (cell.write_epoch < block_epoch)
      fail_thread("reads " + shared_text(at + i) + " at " + site_text(site) +
                  ", which this block has not written yet");
    if (cell.write_epoch == epoch && !comes_after(cell.writer, cell.write_stamp))
      fail_race("reads", at + i, caller, "wrote", thread_text(cell.writer), cell.write_site);
    note_read(cell, epoch, me, time, site);
  }
}

// That the running thread comes after all reads of the cell.
inline void check_reads_before(const Cell& cell, const void* at, const void* caller) {
  Machine& m = *machine;
  uint32 me = m.current->linear;
  if (cell.read_epoch != m.epoch) return;
  if (cell.reader_warp == SEVERAL_WARPS)
    fail_race("writes", at, caller, "read", "threads of several warps", cell.read_site);
  uint32 first = cell.reader_warp * WARP;
  int lane = cell.reader_warp == me / WARP ? lane_not_before(cell.readers, cell.read_stamp)
                                           : __builtin_ctz(cell.readers);
  if (lane >= 0) fail_race("writes", at, caller, "read", thread_text(first + lane), cell.read_site);
}

// `atomic`: two such writes need no order between them.
inline void write_shared(const void* address, size_t bytes, bool atomic, const void* caller) {
  if (!machine->launch->watched) return;
  Machine& m = *machine;
  const unsigned char* at = static_cast<const unsigned char*>(address);
  uint32 me = m.current->linear;
  Cell* cells = cells_of(address);
  for (size_t i = 0; i < bytes; i++) {
    Cell& cell = cells[i];
    if (cell.arriving == m.block_epoch) fail_arriving("writes", at + i, caller, cell.write_site);
    if (atomic && cell.write_epoch < m.block_epoch)
      fail_thread("changes " + shared_text(at + i) + " at " + site_text(site_of(caller)) +
                  ", which this block has not written yet");
    bool both_atomic = atomic && cell.atomic;
    if (cell.write_epoch == m.epoch && !both_atomic && !comes_after(cell.writer, cell.write_stamp))
      fail_race("writes", at + i, caller, "wrote", thread_text(cell.writer), cell.write_site);
    check_reads_before(cell, at + i, caller);
    cell.write_epoch = m.epoch;
    cell.write_stamp = m.warps[me / WARP].time;
    cell.write_site = site_of(caller);
    cell.writer = uint16(me);
    cell.atomic = atomic;
    cell.read_epoch = 0;
  }
}

// A copy is a write that begins here ...
inline void expect_copy(const void* address, size_t bytes, const void* caller) {
  if (!machine->launch->watched) return;
  write_shared(address, bytes, false, caller);
  Cell* cells = cells_of(address);
  for (size_t i = 0; i < bytes; i++) cells[i].arriving = machine->block_epoch;
}

// ... and ends here; in between nobody can have touched the bytes.
inline void land_copy(const void* address, size_t bytes, const void* caller) {
  if (!machine->launch->watched) return;
  Cell* cells = cells_of(address);
  for (size_t i = 0; i < bytes; i++) cells[i].arriving = 0;
  write_shared(address, bytes, false, caller);
}

// The lanes of `mask` now know all that any of them knows.
inline void share_knowledge(Warp& warp, uint32 mask) {
  if (!machine->launch->watched) return;
  uint32 joined[WARP] = {};
  warp.time++;
  for (int b = 0; b < WARP; b++)
    for (int a = 0; a < WARP && mask >> b & 1; a++)
      joined[a] = mask >> a & 1 ? warp.time : joined[a] > warp.known[b][a] ? joined[a] : warp.known[b][a];
  for (int b = 0; b < WARP; b++)
    if (mask >> b & 1) memcpy(warp.known[b], joined, sizeof joined);
}

}  // namespace twin
