// Which table this machine runs.
#include <cstdlib>
#include <cstring>
#include <string>

#include "kernels/kernels.h"
#include "runtime/error.h"

namespace deepmnn {

namespace scalar {
extern const Kernels kTable;
}
namespace avx2 {
extern const Kernels kTable;
}
namespace avx512 {
extern const Kernels kTable;
}

const Kernels* scalar_kernels() { return &scalar::kTable; }

#ifdef DEEPMNN_X86
const Kernels* avx2_kernels() {
  const bool runs = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  return runs ? &avx2::kTable : nullptr;
}
const Kernels* avx512_kernels() {
  const bool runs = avx2_kernels() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vnni");
  return runs ? &avx512::kTable : nullptr;
}
#else
const Kernels* avx2_kernels() { return nullptr; }
const Kernels* avx512_kernels() { return nullptr; }
#endif

const Kernels& select_kernels(const char* name) {
  if (!name || !*name) name = std::getenv("DEEPMNN_ISA");
  const Kernels* tables[] = {avx512_kernels(), avx2_kernels(), scalar_kernels()};  // best first
  const bool any = !name || !*name;
  std::string runnable;
  for (const Kernels* table : tables) {
    if (!table) continue;
    if (any || std::strcmp(table->isa, name) == 0) return *table;
    runnable += (runnable.empty() ? "" : ", ") + std::string(table->isa);
  }
  throw Error("request", "instruction set '" + std::string(name) + "'; expected one this machine runs: " + runnable +
                             ". Check isa= and the environment variable DEEPMNN_ISA.");
}

}  // namespace deepmnn
