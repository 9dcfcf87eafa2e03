// Modules: the names come from the cubin that NVRTC made, the code from the host twin's libraries.
#pragma once

#include <dlfcn.h>
#include <elf.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "launch.h"
#include "stand_in.h"

namespace stand_in {

using TwinRun = int (*)(void* machine, const twin::Launch* launch);

// ---------------------------------------------------------------- kernels

// A library of kernels that the host twin has compiled.
struct TwinLibrary {
  const twin::Kernel* kernels;
  void (*touch)();
  TwinRun run;
  void* (*new_machine)();
};

// What a cubin says of a kernel.
struct Needs {
  // Threads of a block that it was compiled for.
  uint32_t max_threads = 1024;
  uint32_t registers = 0;
  // Bytes of static shared memory.
  uint32_t shared = 0;
};

// Shared memory that a launch may have in all without asking for more first.
const size_t SHARED_WITHOUT_ASKING = 48 << 10;

struct Function {
  const twin::Kernel* kernel;
  TwinLibrary library;
  // Its module's handle.
  void* module;
  Needs needs;
  // Bytes of dynamic shared memory that a launch may ask for; more must be asked for first.
  size_t dynamic_limit;
};

inline TwinLibrary open_library(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    misuse(std::string("a library of STAND_IN_KERNELS: ") + dlerror());
    return {};
  }
  auto find = [&](const char* name) { return dlsym(library, name); };
  auto list = reinterpret_cast<const twin::Kernel* (*)()>(find("twin_kernels"));
  return {list(), reinterpret_cast<void (*)()>(find("twin_touch")), reinterpret_cast<TwinRun>(find("twin_run")),
          reinterpret_cast<void* (*)()>(find("twin_machine_new"))};
}

// The libraries of STAND_IN_KERNELS, which stay loaded.
inline std::vector<TwinLibrary> libraries() {
  static std::map<std::string, TwinLibrary> loaded;
  std::vector<TwinLibrary> named;
  std::istringstream list(setting("KERNELS", ""));
  for (std::string path; std::getline(list, path, ':');) {
    if (!loaded.count(path)) loaded[path] = open_library(path);
    if (loaded[path].run) named.push_back(loaded[path]);
  }
  return named;
}

// ---------------------------------------------------------------- cubins

// An ELF file of 64 bits.
struct Cubin {
  const unsigned char* bytes;
  const Elf64_Shdr* sections = nullptr;
  int count = 0;
  const char* names = nullptr;

  explicit Cubin(const void* image) : bytes(static_cast<const unsigned char*>(image)) {
    Elf64_Ehdr header;
    memcpy(&header, bytes, sizeof header);
    if (memcmp(header.e_ident, ELFMAG, SELFMAG) || header.e_machine != EM_CUDA) return;
    sections = reinterpret_cast<const Elf64_Shdr*>(bytes + header.e_shoff);
    count = header.e_shnum;
    names = reinterpret_cast<const char*>(bytes + sections[header.e_shstrndx].sh_offset);
  }

  std::string name(int section) const { return names + sections[section].sh_name; }

  // The name of a symbol.
  std::string symbol(uint32_t index) const {
    for (int i = 0; i < count; i++) {
      if (sections[i].sh_type != SHT_SYMTAB) continue;
      auto* symbols = reinterpret_cast<const Elf64_Sym*>(bytes + sections[i].sh_offset);
      return reinterpret_cast<const char*>(bytes + sections[sections[i].sh_link].sh_offset) + symbols[index].st_name;
    }
    return "";
  }

  // The attributes of a section .nv.info: its kind, and its value where that has a size of its own.
  template <class Visit>
  void attributes(int section, Visit visit) const {
    const unsigned char* at = bytes + sections[section].sh_offset;
    const unsigned char* end = at + sections[section].sh_size;
    while (at + 4 <= end) {
      bool sized = at[0] == 4;
      uint16_t size;
      memcpy(&size, at + 2, 2);
      if (sized) visit(at[1], at + 4);
      at += sized ? 4 + size : 4;
    }
  }
};

// What follows a prefix, or nothing.
inline std::string behind(const std::string& text, const std::string& prefix) {
  return text.compare(0, prefix.size(), prefix) ? "" : text.substr(prefix.size());
}

// The kernels of a cubin, each of which has its code in a section of its own; none if it is no cubin.
inline std::map<std::string, Needs> kernels_of(const void* image) {
  // Kinds of attributes, as cuobjdump and ptxas have them.
  const int MAX_THREADS = 0x05, REGISTERS = 0x2f;
  // What the system keeps of a block's shared memory, from sm_90 on; the driver does not count it.
  const uint32_t RESERVED = number("CAPABILITY", 90) >= 90 ? 1024 : 0;
  Cubin cubin(image);
  std::map<std::string, Needs> kernels;
  auto word = [](const unsigned char* at) {
    uint32_t value;
    memcpy(&value, at, 4);
    return value;
  };
  for (int i = 0; i < cubin.count; i++)
    if (std::string kernel = behind(cubin.name(i), ".text."); !kernel.empty()) kernels[kernel];
  for (int i = 0; i < cubin.count; i++) {
    std::string name = cubin.name(i);
    auto needs = [&](const std::string& kernel) -> Needs* {
      auto found = kernels.find(kernel);
      return found == kernels.end() ? nullptr : &found->second;
    };
    if (Needs* of = needs(behind(name, ".nv.shared."))) {
      uint32_t bytes = uint32_t(cubin.sections[i].sh_size);
      of->shared = bytes - std::min(bytes, RESERVED);
    }
    if (Needs* of = needs(behind(name, ".nv.info.")))
      cubin.attributes(i, [&](int kind, const unsigned char* at) {
        if (kind == MAX_THREADS) of->max_threads = word(at) * word(at + 4) * word(at + 8);
      });
    if (name == ".nv.info")
      cubin.attributes(i, [&](int kind, const unsigned char* at) {
        Needs* of = kind == REGISTERS ? needs(cubin.symbol(word(at))) : nullptr;
        if (of) of->registers = word(at + 4);
      });
  }
  return kernels;
}

struct Module {
  // As the cubin has them.
  std::map<std::string, Needs> kernels;
  // Chosen when it is loaded, as the code would be.
  std::vector<TwinLibrary> code;
  std::map<std::string, std::unique_ptr<Function>> functions;

  Function* find(const std::string& name) {
    auto known = kernels.find(name);
    if (known == kernels.end()) return nullptr;
    const Needs& needs = known->second;
    std::unique_ptr<Function>& function = functions[name];
    for (const TwinLibrary& library : code)
      for (const twin::Kernel* k = library.kernels; k && !function; k = k->next)
        if (name == k->name)
          function.reset(new Function{k, library, this, needs, SHARED_WITHOUT_ASKING - needs.shared});
    if (!function) misuse("no library of STAND_IN_KERNELS has the kernel " + name);
    return function.get();
  }
};

}  // namespace stand_in
