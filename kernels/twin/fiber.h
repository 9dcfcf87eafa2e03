// Fibers: the threads of a block, each with a stack, of which one runs at a time.
//
// Switching saves the registers that a called function must keep and swaps stack pointers; ucontext, which
// also saves the signal mask through the kernel, is 15 to 20 times slower and serves other processors.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

#include <vector>

#if !defined(__x86_64__)
#define TWIN_UCONTEXT 1
#endif
#ifdef TWIN_UCONTEXT
#include <ucontext.h>
#endif

namespace twin {

#ifdef TWIN_UCONTEXT

struct Context {
  ucontext_t saved;
};

inline void make_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context.saved);
  context.saved.uc_stack.ss_sp = stack;
  context.saved.uc_stack.ss_size = bytes;
  context.saved.uc_link = nullptr;
  makecontext(&context.saved, entry, 0);
}

inline void switch_context(Context& from, Context& to) { swapcontext(&from.saved, &to.saved); }

#else

struct Context {
  void* stack_pointer = nullptr;
};

extern "C" void twin_switch(void** save, void* load);
asm(R"(
.text
.hidden twin_switch
.type twin_switch,@function
twin_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size twin_switch,.-twin_switch
)");

// Six registers, the entry as the address to return to, and a null return address that also leaves the
// stack as a call would.
inline void make_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
  uintptr_t top = (reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t(15);
  void** at = reinterpret_cast<void**>(top);
  *--at = nullptr;
  *--at = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; i++) *--at = nullptr;
  context.stack_pointer = at;
}

inline void switch_context(Context& from, Context& to) { twin_switch(&from.stack_pointer, to.stack_pointer); }

#endif

// The stacks of one machine, each above a page that cannot be touched. Pages come into being with use.
class Stacks {
 public:
  static constexpr size_t BYTES = 128 << 10, GUARD = 4096;

  Stacks() = default;
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  ~Stacks() {
    for (char* stack : stacks_) munmap(stack - GUARD, BYTES + GUARD);
  }

  // False where the system gives no more memory.
  bool grow(size_t count) {
    while (stacks_.size() < count) {
      void* memory = mmap(nullptr, BYTES + GUARD, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED) return false;
      mprotect(memory, GUARD, PROT_NONE);
      stacks_.push_back(static_cast<char*>(memory) + GUARD);
    }
    return true;
  }

  char* operator[](size_t i) const { return stacks_[i]; }

 private:
  std::vector<char*> stacks_;
};

}  // namespace twin
