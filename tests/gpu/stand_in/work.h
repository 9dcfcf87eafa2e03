// Streams, events and graphs: what is to be done, in which order.
#pragma once

#include <deque>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include "stand_in.h"

namespace stand_in {

struct Graph {
  std::vector<Work> work;
  // Whose kernels are in it.
  std::set<void*> modules;
};

// How a stream is captured: what other calls may be made meanwhile.
enum Capture { GLOBAL = 0, THREAD_LOCAL = 1, RELAXED = 2 };

struct Stream {
  std::deque<Work> waiting;
  // While it is captured.
  std::unique_ptr<Graph> recording;
  Capture mode = GLOBAL;
  std::thread::id recorder;
  bool broken = false;

  Status add(Work work) {
    if (broken) return CAPTURE_INVALIDATED;
    if (recording) recording->work.push_back(std::move(work));
    else waiting.push_back(std::move(work));
    return SUCCESS;
  }

  // What cannot be part of a graph ends the capture.
  Status refuse_in_recording() {
    if (!recording) return SUCCESS;
    broken = true;
    return CAPTURE_UNSUPPORTED;
  }

  void run_one() {
    Work work = std::move(waiting.front());
    waiting.pop_front();
    work();
  }

  void run_all() {
    while (!waiting.empty()) run_one();
  }
};

// One recording of an event.
struct Mark {
  Stream* stream;
  bool done = false;
  double time = 0;

  // Whatever else the device has to do stays undone.
  void reach() {
    while (!done && !stream->waiting.empty()) stream->run_one();
  }
};

struct Event {
  bool timing;
  // None until it is recorded.
  std::shared_ptr<Mark> last;
};

}  // namespace stand_in
