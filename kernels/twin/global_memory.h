// Races in device memory, within a launch: launches follow each other.
//
// As in shared memory, but coarser, because there is more of it: a cell stands for two bytes, single bytes
// are not followed, and lanes of one warp count as ordered. Threads of a block are ordered by its barriers.
// Blocks are ordered by nothing but atomics in device memory: what a block did before an atomic is known to
// a block that has done one since, or has waited for a counter, which is how the last block finds the results of the
// others, and how blocks that meet find each other's.
#pragma once

#include <algorithm>

#include "machine.h"

namespace twin {

const uint16 OTHER_WARPS = 0xffff;

inline GlobalCell* global_cells_of(uint64 address) {
  Machine& m = *machine;
  uint64 number = address / GlobalPage::BYTES;
  auto& recent = m.recent_pages[number % m.recent_pages.size()];
  if (recent.first != number || !recent.second) {
    auto& page = m.pages[number];
    if (!page) page = std::make_unique<GlobalPage>();
    recent = {number, page.get()};
  }
  return recent.second->cells + address % GlobalPage::BYTES / 2;
}

// The run of a block of this launch that the epoch belongs to.
inline const BlockRun& run_at(uint32 epoch) {
  auto after = [](uint32 e, const BlockRun& run) { return e < run.start; };
  return std::upper_bound(machine->runs.begin(), machine->runs.end(), epoch, after)[-1];
}

// Whether the running thread comes after what `thread` did at `epoch`.
inline bool comes_after_global(uint32 epoch, uint16 thread) {
  const Machine& m = *machine;
  if (epoch < m.launch_epoch) return true;
  if (epoch >= m.block_epoch)
    return epoch < m.epoch || (thread != OTHER_WARPS && thread / WARP == m.current->linear / WARP);
  const BlockRun &theirs = run_at(epoch), &mine = m.runs.back();
  return theirs.block == mine.block || (theirs.last_atomic >= epoch && mine.last_heard >= theirs.last_atomic);
}

[[noreturn]] inline void fail_global_race(const char* mine, uint64 at, const void* caller, const char* theirs,
                                          uint32 epoch, uint16 thread, uint32 site) {
  Machine& m = *machine;
  bool same_block = epoch >= m.block_epoch;
  auto in_buffer = [&](const Buffer& b) { return at >= b.start && at < b.end; };
  uint64 start = in_buffer(m.recent) ? m.recent.start : 0;
  std::string who = thread == OTHER_WARPS ? "threads of several warps" : thread_text(thread);
  if (!same_block) who = "another block";
  uint64 size = m.recent.end - start;
  fail_thread(format("race: %s byte %llu of a buffer of %llu bytes at ", mine, at - start, size) +
              site_text(site_of(caller)) + ", which " + who + " " + theirs + " at " + site_text(site) +
              (same_block ? " with no barrier between" : " in the same launch"));
}

inline void read_global(const void* address, size_t bytes, const void* caller) {
  if (!machine->launch->watched) return;
  Machine& m = *machine;
  uint64 at = reinterpret_cast<uint64>(address), end = at + bytes;
  uint16 me = uint16(m.current->linear);
  for (at &= ~uint64(1); at < end; at += 2) {
    GlobalCell& cell = *global_cells_of(at);
    if (!comes_after_global(cell.write_epoch, cell.writer))
      fail_global_race("reads", at, caller, "wrote", cell.write_epoch, cell.writer, cell.write_site);
    if (cell.read_epoch < m.launch_epoch && cell.write_epoch < m.launch_epoch) m.moved += 2;
    if (cell.read_epoch < m.launch_epoch) cell.read_before = 0;
    else if (cell.read_epoch < m.block_epoch && run_at(cell.read_epoch).block != m.number)
      cell.read_before = cell.read_epoch;
    bool mine = cell.reader != OTHER_WARPS && cell.reader / WARP == me / WARP;
    cell.reader = cell.read_epoch == m.epoch && !mine ? OTHER_WARPS : me;
    cell.read_epoch = m.epoch;
    cell.read_site = site_of(caller);
  }
}

// What the block did so far is known from here on to whoever hears of this.
inline void note_atomic() {
  Machine& m = *machine;
  BlockRun& run = m.runs.back();
  // After another one in the same epoch.
  if (run.start > m.epoch) return;
  run.last_atomic = run.last_heard = m.epoch;
  if (m.launch->cooperative) m.runs.push_back({m.epoch + 1, 0, m.epoch, m.number});
}

inline void write_global(const void* address, size_t bytes, bool atomic, const void* caller) {
  if (!machine->launch->watched) return;
  Machine& m = *machine;
  uint64 at = reinterpret_cast<uint64>(address), end = at + bytes;
  uint16 me = uint16(m.current->linear);
  if (bytes == 1) return;
  for (at &= ~uint64(1); at < end; at += 2) {
    GlobalCell& cell = *global_cells_of(at);
    if (!(atomic && cell.atomic) && !comes_after_global(cell.write_epoch, cell.writer))
      fail_global_race("writes", at, caller, "wrote", cell.write_epoch, cell.writer, cell.write_site);
    if (!comes_after_global(cell.read_epoch, cell.reader))
      fail_global_race("writes", at, caller, "read", cell.read_epoch, cell.reader, cell.read_site);
    if (!comes_after_global(cell.read_before, OTHER_WARPS))
      fail_global_race("writes", at, caller, "read", cell.read_before, OTHER_WARPS, cell.read_site);
    if (cell.write_epoch < m.launch_epoch) m.moved += 2;
    cell.write_epoch = m.epoch;
    cell.writer = me;
    cell.write_site = site_of(caller);
    cell.atomic = atomic;
    cell.read_epoch = 0;
    cell.read_before = 0;
  }
  if (atomic) note_atomic();
}

}  // namespace twin
