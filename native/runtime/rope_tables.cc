#include "runtime/rope_tables.h"

#include <cmath>

namespace deepmnn {

size_t RopeTables::add(const std::vector<double>& inv_freq, double scale) {
  for (size_t id = 0; id < tables_.size(); ++id) {
    if (tables_[id].inv_freq == inv_freq && tables_[id].scale == scale) return id;
  }
  tables_.push_back({inv_freq, scale, {}, nullptr, nullptr});
  return tables_.size() - 1;
}

void RopeTables::compute(ThreadPool& pool, const int32_t* positions, int64_t tokens) {
  for (size_t id = 0; id < tables_.size(); ++id) {
    Table& table = tables_[id];
    const int64_t floats = tokens * half(id);
    table.cos = reinterpret_cast<float*>(table.memory.reserve(2 * floats * 4, "rotary tables"));
    table.sin = table.cos + floats;
    const int64_t per_piece = 16;
    pool.run((tokens + per_piece - 1) / per_piece, [&](int64_t piece, int) {
      const int64_t end = std::min(tokens, (piece + 1) * per_piece);
      for (int64_t token = piece * per_piece; token < end; ++token)
        angles(id, positions[token], table.cos + token * half(id), table.sin + token * half(id));
    });
  }
}

// In double: at position 100 000 a float32 angle would be off by 0.004.
void RopeTables::angles(size_t id, int64_t position, float* cos, float* sin) const {
  const Table& table = tables_[id];
  for (int64_t i = 0; i < half(id); ++i) {
    const double angle = static_cast<double>(position) * table.inv_freq[static_cast<size_t>(i)];
    cos[i] = static_cast<float>(std::cos(angle) * table.scale);
    sin[i] = static_cast<float>(std::sin(angle) * table.scale);
  }
}

}  // namespace deepmnn
