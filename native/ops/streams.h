// Small matrices of one token: what hyper-connections do with its residual streams.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"

namespace deepmnn {

// y [p, d] = A x: x [q, d], A [p, q] or, transposed, [q, p]. y is not x.
void mix(const Kernels& kernels, const float* a, bool transposed, const float* x, int64_t p, int64_t q, int64_t d,
         float* y);

// x [size, size] made doubly stochastic, in place: softmax of rows plus eps, columns made to sum to one, then rows and
// columns in turn.
void sinkhorn(float* x, int64_t size, int64_t iterations, float eps);

}  // namespace deepmnn
