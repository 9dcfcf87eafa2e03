// Modules: the names come from the cubin that NVRTC made, the code from the host twin's libraries.
#pragma once

#include <dlfcn.h>
#include <elf.h>

#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "stand_in.h"

namespace stand_in {

// ---------------------------------------------------------------- as in kernels/twin/{twin,machine}.h

struct TwinKernel {
  const char* name;
  void (*run)(void** arguments);
  const uint8_t* sizes;
  size_t count;
  const TwinKernel* next;
};

struct TwinBuffer {
  uint64_t start, end;
};

struct TwinLaunch {
  const TwinKernel* kernel;
  void (*touch)();
  uint32_t grid[3], block[3];
  uint64_t shared, shared_limit;
  void** arguments;
  const TwinBuffer* buffers;
  uint64_t buffer_count, order;
  char* message;
  uint64_t message_size;
};

using TwinRun = int (*)(void* machine, const TwinLaunch* launch);

// ---------------------------------------------------------------- kernels

// A library of kernels that the host twin has compiled.
struct TwinLibrary {
  const TwinKernel* kernels;
  void (*touch)();
  TwinRun run;
  void* (*new_machine)();
};

struct Function {
  const TwinKernel* kernel;
  TwinLibrary library;
  // Bytes of dynamic shared memory that a launch may ask for; more must be asked for first.
  size_t dynamic_limit = 48 << 10;
};

inline TwinLibrary open_library(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    misuse(std::string("a library of STAND_IN_KERNELS: ") + dlerror());
    return {};
  }
  auto find = [&](const char* name) { return dlsym(library, name); };
  auto list = reinterpret_cast<const TwinKernel* (*)()>(find("twin_kernels"));
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

// The kernels of a cubin, each of which has its code in a section of its own; none if it is no cubin.
inline std::set<std::string> kernels_of(const void* cubin) {
  const unsigned char* bytes = static_cast<const unsigned char*>(cubin);
  Elf64_Ehdr header;
  memcpy(&header, bytes, sizeof header);
  if (memcmp(header.e_ident, ELFMAG, SELFMAG) || header.e_machine != EM_CUDA) return {};
  const Elf64_Shdr* sections = reinterpret_cast<const Elf64_Shdr*>(bytes + header.e_shoff);
  const char* names = reinterpret_cast<const char*>(bytes + sections[header.e_shstrndx].sh_offset);
  const std::string prefix = ".text.";
  std::set<std::string> kernels = {""};
  for (int i = 0; i < header.e_shnum; i++) {
    std::string name = names + sections[i].sh_name;
    if (name.compare(0, prefix.size(), prefix) == 0) kernels.insert(name.substr(prefix.size()));
  }
  return kernels;
}

struct Module {
  // As the cubin has them.
  std::set<std::string> names;
  // Chosen when it is loaded, as the code would be.
  std::vector<TwinLibrary> code;
  std::map<std::string, std::unique_ptr<Function>> functions;

  Function* find(const std::string& name) {
    if (!names.count(name)) return nullptr;
    std::unique_ptr<Function>& function = functions[name];
    for (const TwinLibrary& library : code)
      for (const TwinKernel* k = library.kernels; k && !function; k = k->next)
        if (name == k->name) function.reset(new Function{k, library});
    if (!function) misuse("no library of STAND_IN_KERNELS has the kernel " + name);
    return function.get();
  }
};

}  // namespace stand_in
