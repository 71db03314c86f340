// cos and sin of every token's rotary angles, computed once per step and shared by all layers.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/memory.h"
#include "runtime/thread_pool.h"

namespace deepmnn {

class RopeTables {
 public:
  // At load: the id of the table with these frequencies and this scale (equal tables share one id).
  size_t add(const std::vector<double>& inv_freq, double scale);

  // At the start of a step: fills every table for `tokens` positions.
  void compute(ThreadPool& pool, const int32_t* positions, int64_t tokens);
  void use(MemoryUse& use, bool reset) {
    for (Table& table : tables_) table.memory.use(use, reset);
  }

  // cos and sin [half] at any position.
  void angles(size_t id, int64_t position, float* cos, float* sin) const;

  // [half] of one token.
  const float* cos(size_t id, int64_t token) const { return tables_[id].cos + token * half(id); }
  const float* sin(size_t id, int64_t token) const { return tables_[id].sin + token * half(id); }

 private:
  struct Table {
    std::vector<double> inv_freq;
    double scale;
    Arena memory;
    float* cos = nullptr;  // [tokens, half]
    float* sin = nullptr;
  };
  int64_t half(size_t id) const { return static_cast<int64_t>(tables_[id].inv_freq.size()); }

  std::vector<Table> tables_;
};

}  // namespace deepmnn
