// A stand-in for libcublasLt; stand_in.h says what it is and what it is not.
//
// All its algorithms add up in f32 in the order of k and round once, but for the one that splits k, which rounds
// once more before a bias, as cuBLASLt does; they differ in the time that the device's clock is told. An algorithm
// is good for the shape and the alignment that it was proposed for.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "stand_in.h"

using stand_in::Answer;
using stand_in::hold;

namespace {

enum LtStatus {
  SUCCESS = 0,
  NOT_INITIALIZED = 1,
  INVALID_VALUE = 7,
  EXECUTION_FAILED = 13,
  INTERNAL_ERROR = 14,
  NOT_SUPPORTED = 15,
};
enum Type { F32 = 0, F16 = 2, BF16 = 14 };
const int COMPUTE_32F = 68, EPILOGUE_DEFAULT = 1, EPILOGUE_BIAS = 4;

// ---------------------------------------------------------------- number types

// A float of 16 bits, whose exponent has this many.
float widen(uint16_t bits, int exponent_bits) {
  int mantissa_bits = 15 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
  int exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1), mantissa = bits & ((1 << mantissa_bits) - 1);
  float sign = bits >> 15 ? -1.0f : 1.0f;
  if (exponent == (1 << exponent_bits) - 1) return mantissa ? NAN : sign * INFINITY;
  if (exponent) mantissa += 1 << mantissa_bits;
  return sign * std::ldexp(float(mantissa), std::max(exponent, 1) - bias - mantissa_bits);
}

// To nearest even.
uint16_t narrow(float value, int exponent_bits) {
  int mantissa_bits = 15 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
  uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  uint16_t infinity = uint16_t(((1 << exponent_bits) - 1) << mantissa_bits);
  if (std::isnan(value)) return sign | infinity | 1 << (mantissa_bits - 1);
  if (std::isinf(value)) return sign | infinity;
  int exponent = value == 0 ? 1 - bias : std::max(std::ilogb(value), 1 - bias);
  // In units of the last place; a normal number brings its leading 1, which adds one to the exponent.
  double units = std::nearbyint(std::ldexp(std::fabs(double(value)), mantissa_bits - exponent));
  int stored = ((exponent + bias - 1) << mantissa_bits) + int(units);
  return sign | uint16_t(std::min(stored, int(infinity)));
}

int exponent_bits(Type type) { return type == F16 ? 5 : 8; }
size_t size_of(Type type) { return type == F32 ? 4 : 2; }

float load(const void* from, size_t index, Type type) {
  if (type == F32) return static_cast<const float*>(from)[index];
  return widen(static_cast<const uint16_t*>(from)[index], exponent_bits(type));
}

void store(void* to, size_t index, Type type, float value) {
  if (type == F32) static_cast<float*>(to)[index] = value;
  else static_cast<uint16_t*>(to)[index] = narrow(value, exponent_bits(type));
}

// ---------------------------------------------------------------- what the caller makes

// Columns first.
struct Layout {
  Type type;
  uint64_t rows, columns;
  int64_t stride;

  size_t bytes() const { return rows && columns ? ((columns - 1) * stride + rows) * size_of(type) : 0; }
};

struct Operation {
  int transpose_a = 0, transpose_b = 0, epilogue = EPILOGUE_DEFAULT;
  const void* bias = nullptr;
};

struct Preference {
  uint64_t workspace = 0;
  uint32_t reductions = ~0u;
  // Of A, B, C and D.
  uint32_t alignment[4] = {256, 256, 256, 256};
};

struct Algorithm {
  uint64_t id, m, n, k, alignment[4];
};
static_assert(sizeof(Algorithm) == 64, "cublasLtMatmulAlgo_t is 64 bytes");

struct Proposal {
  Algorithm algorithm;
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

const uint64_t ALGORITHMS = 4;
// Microseconds on the device's clock: of those that do not split k the second is the fastest.
const double COSTS[ALGORITHMS + 1] = {0, 30, 10, 20, 5};
// The third would be, on weights that are still in the cache since the product before.
const uint64_t WARM = 3;
const double WARM_COST = 4;
// The one that splits k, and in how many parts.
const uint64_t SPLITTING = 4;
const uint32_t PARTS = 3;
const size_t WORKSPACE = 64, WORKSPACE_ALIGNMENT = 256, BIAS_ALIGNMENT = 16;

// Shapes that fit together, or not.
struct Shape {
  uint64_t m, n, k;
  bool fits;

  Shape(const Operation& o, const Layout& a, const Layout& b, const Layout& c, const Layout& d) {
    m = d.rows;
    n = d.columns;
    k = o.transpose_a ? a.rows : a.columns;
    fits = (o.transpose_a ? a.columns : a.rows) == m && !o.transpose_b && b.rows == k && b.columns == n &&
           c.rows == m && c.columns == n && a.type == d.type && b.type == d.type && c.type == d.type;
    for (const Layout* l : {&a, &b, &c, &d}) fits = fits && l->stride >= int64_t(l->rows);
  }

  // Where the test wants it, there are kernels only for matrices that begin, and whose rows do, at multiples of so
  // many bytes.
  static bool has_kernel(const Preference& p, const Layout& a, const Layout& b, const Layout& d) {
    uint64_t aligned = uint64_t(stand_in::number("ROWS_ALIGNED", 1));
    bool rows = true, starts = true;
    for (const Layout* l : {&a, &b, &d}) rows = rows && l->stride * size_of(l->type) % aligned == 0;
    for (uint32_t alignment : p.alignment) starts = starts && alignment % aligned == 0;
    return rows && starts;
  }

  bool takes(const Algorithm& g) const {
    bool exists = g.id >= 1 && g.id <= ALGORITHMS && g.id != uint64_t(stand_in::number("RETIRED", 0));
    return fits && exists && g.m == m && g.n == n && g.k == k;
  }
};

template <class T>
LtStatus set(T& to, const void* from, size_t bytes) {
  if (bytes != sizeof(T)) return INVALID_VALUE;
  memcpy(&to, from, bytes);
  return SUCCESS;
}

// ---------------------------------------------------------------- the product

struct Product {
  Operation operation;
  Layout a, b, c, d;
  const void *A, *B, *C;
  void *D, *workspace;
  float alpha, beta;
  uint64_t algorithm;

  // Where D begins and ends, no input may be.
  bool overlaps() const {
    auto start = reinterpret_cast<uint64_t>(D), end = start + d.bytes();
    auto meets = [&](const void* at, const Layout& l) {
      auto from = reinterpret_cast<uint64_t>(at);
      return from < end && start < from + l.bytes();
    };
    return meets(A, a) || meets(B, b);
  }

  bool may_touch() const {
    return stand_in::may_touch("product's A", A, a.bytes()) && stand_in::may_touch("product's B", B, b.bytes()) &&
           stand_in::may_touch("product's D", D, d.bytes()) &&
           (beta == 0 || stand_in::may_touch("product's C", C, c.bytes())) &&
           (operation.epilogue != EPILOGUE_BIAS ||
            stand_in::may_touch("product's bias", operation.bias, d.rows * size_of(d.type))) &&
           stand_in::may_touch("product's workspace", workspace, WORKSPACE);
  }

  // op(A), its columns one after another.
  std::vector<float> gather() const {
    uint64_t m = d.rows, k = b.rows;
    std::vector<float> dense(m * k);
    for (uint64_t l = 0; l < k; l++)
      for (uint64_t i = 0; i < m; i++)
        dense[l * m + i] = load(A, operation.transpose_a ? i * a.stride + l : l * a.stride + i, a.type);
    return dense;
  }

  double cost() const {
    static std::atomic<const void*> before;
    bool warm = before.exchange(A) == A && a.bytes() <= stand_in::CACHE;
    return warm && algorithm == WARM ? WARM_COST : COSTS[algorithm];
  }

  void run() const {
    stand_in::spend(cost());
    if (!may_touch()) return;
    stand_in::profile("nvjet_hsh_128x256_64x4");
    // Whatever lay there is gone.
    memset(workspace, 0xff, WORKSPACE);
    uint64_t m = d.rows;
    std::vector<float> dense = gather(), sum(m);
    bool splits = algorithm == SPLITTING;
    for (uint64_t j = 0; j < d.columns; j++) {
      std::fill(sum.begin(), sum.end(), 0.0f);
      for (uint64_t l = 0; l < b.rows; l++) {
        float factor = load(B, j * b.stride + l, b.type);
        for (uint64_t i = 0; i < m; i++) sum[i] += dense[l * m + i] * factor;
      }
      for (uint64_t i = 0; i < m; i++) {
        float value = alpha * sum[i];
        if (splits && d.type != F32) value = widen(narrow(value, exponent_bits(d.type)), exponent_bits(d.type));
        if (beta != 0) value += beta * load(C, j * c.stride + i, c.type);
        if (operation.epilogue == EPILOGUE_BIAS) value += load(operation.bias, i, d.type);
        store(D, j * d.stride + i, d.type, value);
      }
    }
  }
};

bool aligned(const void* address, uint64_t alignment) { return reinterpret_cast<uint64_t>(address) % alignment == 0; }

char handle_object;

// The stream that each workspace is used on.
std::map<void*, void*> users;

// Of a call of this name, the status that the test wants it to fail with, or SUCCESS.
int begin(const char* name = __builtin_FUNCTION()) { return stand_in::called(name); }

}  // namespace

#define API extern "C" PUBLIC Answer
#define BEGIN \
  if (int status = begin()) return status

API cublasLtCreate(void** handle) {
  BEGIN;
  if (!stand_in::has_context()) return NOT_INITIALIZED;
  hold("cuBLASLt handle", 1);
  *handle = &handle_object;
  return SUCCESS;
}

API cublasLtDestroy(void*) {
  BEGIN;
  hold("cuBLASLt handle", -1);
  users.clear();
  if (!stand_in::has_context()) stand_in::misuse("a cuBLASLt handle is destroyed without its context");
  return SUCCESS;
}

extern "C" PUBLIC size_t cublasLtGetVersion() { return 130100; }

extern "C" PUBLIC const char* cublasLtGetStatusName(int status) {
  switch (status) {
    case SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
    case INTERNAL_ERROR: return "CUBLAS_STATUS_INTERNAL_ERROR";
    case NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    case INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    default: return nullptr;
  }
}

// ---------------------------------------------------------------- descriptions

API cublasLtMatmulDescCreate(void** operation, int compute, int scale) {
  BEGIN;
  // True f32, scaled by f32 numbers: nothing else is used here.
  if (compute != COMPUTE_32F || scale != F32) return NOT_SUPPORTED;
  hold("cuBLASLt operation", 1);
  *operation = new Operation;
  return SUCCESS;
}

API cublasLtMatmulDescDestroy(void* operation) {
  BEGIN;
  hold("cuBLASLt operation", -1);
  delete static_cast<Operation*>(operation);
  return SUCCESS;
}

API cublasLtMatmulDescSetAttribute(void* operation, int attribute, const void* value, size_t bytes) {
  BEGIN;
  Operation& o = *static_cast<Operation*>(operation);
  switch (attribute) {
    case 3: return set(o.transpose_a, value, bytes);
    case 4: return set(o.transpose_b, value, bytes);
    case 7: return set(o.epilogue, value, bytes);
    case 8: return set(o.bias, value, bytes);
  }
  return INVALID_VALUE;
}

API cublasLtMatrixLayoutCreate(void** layout, int type, uint64_t rows, uint64_t columns, int64_t stride) {
  BEGIN;
  if (type != F32 && type != F16 && type != BF16) return NOT_SUPPORTED;
  hold("cuBLASLt layout", 1);
  *layout = new Layout{Type(type), rows, columns, stride};
  return SUCCESS;
}

API cublasLtMatrixLayoutDestroy(void* layout) {
  BEGIN;
  hold("cuBLASLt layout", -1);
  delete static_cast<Layout*>(layout);
  return SUCCESS;
}

API cublasLtMatmulPreferenceCreate(void** preference) {
  BEGIN;
  hold("cuBLASLt preference", 1);
  *preference = new Preference;
  return SUCCESS;
}

API cublasLtMatmulPreferenceDestroy(void* preference) {
  BEGIN;
  hold("cuBLASLt preference", -1);
  delete static_cast<Preference*>(preference);
  return SUCCESS;
}

API cublasLtMatmulPreferenceSetAttribute(void* preference, int attribute, const void* value, size_t bytes) {
  BEGIN;
  Preference& p = *static_cast<Preference*>(preference);
  if (attribute == 1) return set(p.workspace, value, bytes);
  if (attribute == 3) return set(p.reductions, value, bytes);
  if (attribute >= 5 && attribute <= 8) return set(p.alignment[attribute - 5], value, bytes);
  return INVALID_VALUE;
}

// ---------------------------------------------------------------- algorithms

// The first proposal is one that cannot be used, as cuBLASLt may return, too.
API cublasLtMatmulAlgoGetHeuristic(void*, void* operation, void* a, void* b, void* c, void* d, void* preference,
                                   int most, Proposal* proposals, int* count) {
  BEGIN;
  const Preference& p = *static_cast<Preference*>(preference);
  auto layout = [](void* l) -> const Layout& { return *static_cast<Layout*>(l); };
  Shape shape(*static_cast<Operation*>(operation), layout(a), layout(b), layout(c), layout(d));
  *count = 0;
  // As from 13.3 on.
  if (stand_in::captures()) return INTERNAL_ERROR;
  if (!shape.fits || p.workspace < WORKSPACE) return INVALID_VALUE;
  // "none": proposes nothing; else it refuses.
  if (!Shape::has_kernel(p, layout(a), layout(b), layout(d)))
    return stand_in::setting("WITHOUT_KERNEL", "refused") == "none" ? SUCCESS : NOT_SUPPORTED;
  for (uint64_t id = 0; id <= ALGORITHMS && *count < most; id++) {
    Algorithm algorithm = {id, shape.m, shape.n, shape.k, {}};
    std::copy(p.alignment, p.alignment + 4, algorithm.alignment);
    if (id && !shape.takes(algorithm)) continue;
    if (id == SPLITTING && static_cast<Operation*>(operation)->epilogue != EPILOGUE_BIAS) continue;
    proposals[(*count)++] = {algorithm, WORKSPACE, id ? SUCCESS : NOT_SUPPORTED, 1.0f, {}};
  }
  return SUCCESS;
}

API cublasLtMatmulAlgoCheck(void*, void* operation, void* a, void* b, void* c, void* d, const Algorithm* algorithm,
                            Proposal* result) {
  BEGIN;
  auto layout = [](void* l) -> const Layout& { return *static_cast<Layout*>(l); };
  Shape shape(*static_cast<Operation*>(operation), layout(a), layout(b), layout(c), layout(d));
  if (!shape.takes(*algorithm)) return NOT_SUPPORTED;
  *result = {*algorithm, WORKSPACE, SUCCESS, 1.0f, {}};
  return SUCCESS;
}

API cublasLtMatmulAlgoConfigGetAttribute(const Algorithm* algorithm, int attribute, void* value, size_t bytes,
                                         size_t* written) {
  BEGIN;
  const int PARTS_OF_K = 2;
  if (attribute != PARTS_OF_K || bytes != sizeof PARTS) return INVALID_VALUE;
  uint32_t parts = algorithm->id == SPLITTING ? PARTS : 1;
  memcpy(value, &parts, sizeof parts);
  *written = sizeof parts;
  return SUCCESS;
}

API cublasLtMatmul(void*, void* operation, const float* alpha, const void* A, void* a, const void* B, void* b,
                   const float* beta, const void* C, void* c, void* D, void* d, const Algorithm* algorithm,
                   void* workspace, size_t workspace_bytes, void* stream) {
  BEGIN;
  auto layout = [](void* l) -> const Layout& { return *static_cast<Layout*>(l); };
  const Operation& o = *static_cast<Operation*>(operation);
  Shape shape(o, layout(a), layout(b), layout(c), layout(d));
  if (!shape.takes(*algorithm) || workspace_bytes < WORKSPACE) return INVALID_VALUE;
  const uint64_t* alignment = algorithm->alignment;
  if (!aligned(A, alignment[0]) || !aligned(B, alignment[1]) || !aligned(C, alignment[2]) || !aligned(D, alignment[3]))
    return INVALID_VALUE;
  if (!aligned(workspace, WORKSPACE_ALIGNMENT)) return INVALID_VALUE;
  if (o.epilogue == EPILOGUE_BIAS && !aligned(o.bias, BIAS_ALIGNMENT)) return INVALID_VALUE;
  // What only shows when it runs.
  if (algorithm->id == uint64_t(stand_in::number("FAILING", 0))) return EXECUTION_FAILED;
  auto user = users.emplace(workspace, stream).first;
  if (user->second != stream) stand_in::misuse("one workspace on two streams");
  Product product = {o, layout(a), layout(b), layout(c), layout(d), A, B, C, D, workspace, *alpha, *beta,
                     algorithm->id};
  if (product.overlaps()) stand_in::misuse("a product's D lies over its A or B");
  // A fault of the device hides behind a status of cuBLASLt's own.
  return stand_in::enqueue(stream, [product] { product.run(); }) ? EXECUTION_FAILED : SUCCESS;
}
