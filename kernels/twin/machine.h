// What the runtime knows while a kernel runs, and how it gives one up.
#pragma once

#include <dlfcn.h>

#include <array>
#include <cstdarg>
#include <cstdio>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "fiber.h"
#include "twin.h"

namespace twin {

// ---------------------------------------------------------------- threads and warps

const int WARP = 32, SLOT = 64;

// A copy on its way from global to shared memory; `group` counts the commits of its thread.
struct Copy {
  unsigned char* to;
  const void* from;
  uint32 group;
};

struct Thread {
  Context context;
  char* stack = nullptr;
  uint3 index;
  uint32 linear = 0;
  bool done = true;
  // Waits until *gate differs from `seen`; null while it can run.
  const uint64* gate = nullptr;
  uint64 seen = 0;
  // Waits until *counter, which other blocks count up, is `count`; null as above.
  const uint32* counter = nullptr;
  uint32 count = 0;
  // The last barrier or warp operation.
  const char *op = "", *where = "";
  const void* caller = nullptr;
  std::vector<Copy> copies;
  uint32 open_group = 0;
};

// The lanes of one mask meeting. The slots are doubled: a fast lane may be at the next meeting while a slow
// one still reads, but not at the one after it.
struct Meeting {
  uint32 mask = 0, arrived = 0, inside = 0;
  uint64 gate = 0;
  // Of the first to arrive.
  const char *op = "", *where = "";
  const void* caller = nullptr;
  alignas(16) unsigned char slots[2][WARP][SLOT];
};

struct Warp {
  std::vector<std::unique_ptr<Meeting>> meetings;
  // Counts the warp's __syncwarps; known[b][a] is the last of them after which lane b knows what lane a did.
  uint32 time = 0;
  uint32 known[WARP][WARP] = {};
};

// ---------------------------------------------------------------- the machine

// A range of bytes.
struct Region {
  unsigned char* start = nullptr;
  size_t bytes = 0;

  bool holds(const void* address, size_t size) const {
    const unsigned char* at = static_cast<const unsigned char*>(address);
    return at >= start && at < start + bytes && size <= size_t(start + bytes - at);
  }
};

// What happened last to a byte of shared memory; see shared_memory.h.
struct Cell {
  uint32 write_epoch, write_stamp, write_site;
  uint32 read_epoch, read_stamp, read_site, readers;
  uint32 arriving;
  uint16 writer, reader_warp;
  uint8 atomic;
};

// The same for two bytes of device memory; see global_memory.h. `read_before`: when another block read them last.
struct GlobalCell {
  uint32 write_epoch, write_site, read_epoch, read_site, read_before;
  uint16 writer, reader;
  uint8 atomic;
};

struct GlobalPage {
  static const size_t BYTES = 4096;
  GlobalCell cells[BYTES / 2];
};

// A stretch of a block's work: all of it, but in a cooperative launch up to an atomic in device memory, or to where it
// waits for others. Epochs of its start, of the last atomic in it, and up to which the block knows of others' atomics; 0
// for none.
struct BlockRun {
  uint32 start, last_atomic, last_heard;
  uint64 block;
};

// What there is of a block while others run.
struct Block {
  uint64 number = 0;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Thread* current = nullptr;
  uint32 live = 0;
  // Its barrier.
  uint64 barrier_gate = 0;
  uint32 barrier_arrived = 0;
  const char* barrier_where = "";
};

// It is the block that runs, too.
struct Machine : Block {
  Stacks stacks;
  Context host;

  const Launch* launch = nullptr;
  uint32 count = 0;
  uint3 block, block_size, grid_size;

  // Shared memory, dynamic and static, and what is known of its bytes: first those of `dynamic`.
  std::vector<unsigned char> dynamic_memory;
  Region dynamic, fixed;
  std::vector<Cell> cells;
  // Goes up at every barrier and with every block, so that what is older needs no clearing.
  uint32 epoch = 0, block_epoch = 0, launch_epoch = 0;

  // What is known of device memory, by page; the blocks of the launch so far.
  std::unordered_map<uint64, std::unique_ptr<GlobalPage>> pages;
  std::array<std::pair<uint64, GlobalPage*>, 64> recent_pages;
  std::vector<BlockRun> runs;
  // Of each counter of a cooperative launch: what it was counted up to, and in which epoch.
  std::unordered_map<const uint32*, std::vector<std::pair<uint32, uint32>>> counts;

  // The kernel's library: its constants may be read.
  Region library;
  // Bytes of device memory that launches read before they wrote them, and bytes that they wrote, each once a launch.
  uint64 moved = 0;
  // Of the block so far.
  uint64 accesses = 0;
  // The buffer of the last access.
  Buffer recent = {0, 0};

  std::string failure;
};

// __thread and not thread_local: no constructor to look for at each use. One pointer of static thread-local memory is
// to be had for a library that is loaded late too, and saves a call at each use.
inline __thread Machine* machine __attribute__((tls_model("initial-exec"))) = nullptr;

// ---------------------------------------------------------------- giving up

inline std::string format(const char* text, ...) __attribute__((format(printf, 1, 2)));
inline std::string format(const char* text, ...) {
  char line[512];
  va_list values;
  va_start(values, text);
  vsnprintf(line, sizeof line, text, values);
  va_end(values);
  return line;
}

// The call in the kernel's code that led here.
#define CALLER __builtin_return_address(0)

// A place in the kernel's code as an offset in its library; the call is just before where it returns to.
inline uint32 site_of(const void* caller) {
  return uint32(static_cast<const unsigned char*>(caller) - machine->library.start) - 1;
}

// For the host to turn into a source line.
inline std::string site_text(uint32 site) { return format("{%x}", site); }

inline std::string thread_text(uint32 linear) {
  const uint3& t = machine->threads[linear].index;
  return format("thread (%u,%u,%u)", t.x, t.y, t.z);
}

inline std::string block_text(const Machine& m) {
  return format("block (%u,%u,%u): ", m.block.x, m.block.y, m.block.z);
}

// Gives the launch up: the host goes on after its switch to the block, and nothing here ever does.
[[noreturn]] inline void fail_launch(const std::string& problem) {
  Machine& m = *machine;
  m.failure = block_text(m) + problem;
  Context abandoned;
  switch_context(abandoned, m.host);
  __builtin_unreachable();
}

// The same for what the running thread did.
[[noreturn]] inline void fail_thread(const std::string& problem) {
  fail_launch(thread_text(machine->current->linear) + ": " + problem);
}

}  // namespace twin
