// What the machine can do: cores, and the limits a benchmark is measured against.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"

namespace deepmnn {

// Physical cores this process may run on (its CPU affinity and control group quota), at least 1.
int available_cores();

// Bytes per second that `threads` threads read from memory together: the best of several passes over a buffer much
// larger than the caches.
double measure_read_bandwidth(int threads);

// int8 multiply-accumulates per second that `threads` threads do together with the ISA's dot instruction, operands in
// registers.
double measure_int8_peak(int threads, const Kernels& kernels);

// The same for f32 multiply-accumulates, which bf16 weights use, too.
double measure_f32_peak(int threads, const Kernels& kernels);

}  // namespace deepmnn
