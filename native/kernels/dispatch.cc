#include "kernels/dispatch.h"

#include <cstdlib>
#include <cstring>
#include <string>

#include "runtime/error.h"

namespace deepmnn {

#define CPU_HAS(feature) __builtin_cpu_supports(feature)

#define ISA(name, runs)        \
  namespace name {             \
  extern const Kernels kTable; \
  }
#include "isa/list.h"
#undef ISA

const std::vector<const Kernels*>& runnable_kernels() {
  static const std::vector<const Kernels*> tables = [] {
    std::vector<const Kernels*> runnable;
#define ISA(name, runs) \
  if (runs) runnable.push_back(&name::kTable);
#include "isa/list.h"
#undef ISA
    return runnable;
  }();
  return tables;
}

const Kernels& select_kernels(const char* name) {
  if (!name || !*name) name = std::getenv("DEEPMNN_ISA");
  if (!name || !*name) return *runnable_kernels().front();
  std::string runnable;
  for (const Kernels* table : runnable_kernels()) {
    if (std::strcmp(table->isa, name) == 0) return *table;
    runnable += (runnable.empty() ? "" : ", ") + std::string(table->isa);
  }
  throw Error("request", "instruction set '" + std::string(name) + "'; expected one this machine runs: " + runnable +
                             ". Check isa= and the environment variable DEEPMNN_ISA.");
}

}  // namespace deepmnn
