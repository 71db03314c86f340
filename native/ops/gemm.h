// Runs linears on the pool. One dispatch for any number of them: a linear is one task, an MLA projection one task per
// head, a mixture of experts one task per chosen expert.
#pragma once

#include <cstdint>

#include "runtime/step.h"

namespace deepmnn {

// Splits the tasks into tiles (output blocks × rows) and runs them all. Outputs of different tasks must not overlap.
// Given `outputs`, task i leaves quantised rows, the first of outputs[i], and nothing in y: memory never sees the
// floats.
void run_linear(Step& step, const LinearTask* tasks, int64_t count, const QuantizedRows* outputs = nullptr);

}  // namespace deepmnn
