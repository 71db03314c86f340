// Which kernel tables this machine runs. The list of them: isa/list.h.
#pragma once

#include <vector>

#include "kernels/kernels.h"

namespace deepmnn {

// The tables that were compiled in and that this machine runs, best first; the last one is scalar's.
const std::vector<const Kernels*>& runnable_kernels();

// The best of them, or the one that `name`, or without it DEEPMNN_ISA, asks for (null or "": the best). Throws
// Error("request") for a name that is not among them.
const Kernels& select_kernels(const char* name);

}  // namespace deepmnn
