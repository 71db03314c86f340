// What the machine can do: cores, and the limits a benchmark is measured against.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "platform/threads.h"

namespace deepmnn {

// Physical cores behind these processors, within the control group's quota, at least 1. root: where /sys lies.
int available_cores(const std::vector<int>& processors = allowed_processors(), const std::string& root = "");

// Bytes per second that `threads` threads read from memory together: the best of several passes over a buffer much
// larger than the caches.
double measure_read_bandwidth(int threads);

// int8 multiply-accumulates per second that `threads` threads do together with the ISA's dot instruction, operands in
// registers.
double measure_int8_peak(int threads, const Kernels& kernels);

// The same for f32 multiply-accumulates, which bf16 weights use, too.
double measure_f32_peak(int threads, const Kernels& kernels);

}  // namespace deepmnn
