// What is read from files at once: a weight, or all weights of one expert.
#pragma once

#include <cstdint>
#include <vector>

#include "platform/direct_file.h"
#include "runtime/memory.h"
#include "runtime/program.h"

namespace deepmnn {

// The next multiple of kReadAlign.
inline int64_t read_room(int64_t nbytes) { return (nbytes + kReadAlign - 1) / kReadAlign * kReadAlign; }

// Memory that files are read into: it begins with a multiple of kReadAlign.
class ReadMemory {
 public:
  ReadMemory() = default;
  ReadMemory(int64_t nbytes, const char* what) : memory_(sum_of(nbytes, kReadAlign), what) {}

  uint8_t* data() const {
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory_.data());
    return memory_.data() + (kReadAlign - address % kReadAlign) % kReadAlign;
  }

 private:
  Memory memory_;
};

// When a unit's bytes are needed.
enum class Need : uint8_t {
  always,  // by every step, and small: vectors, and what routing is decided by
  dense,   // by every step, in the program's order
  routed,  // when routing chooses it
  rows,    // a few rows, those of the step's ids
};

// Bytes that lie together in a file, or zeros. `at`: where they go in the unit's room; it stands to kReadAlign as
// `offset` does.
struct ReadRun {
  uint32_t shard = Piece::kZeros;
  uint64_t offset = 0;
  int64_t nbytes = 0;
  int64_t at = 0;
};

struct ReadUnit {
  Need need = Need::always;
  uint32_t instruction = 0;   // that uses it first
  std::vector<ReadRun> runs;  // mostly one
  int64_t nbytes = 0;         // of its weights
  int64_t room = 0;  // bytes of memory that it takes, a multiple of kReadAlign: direct reads bring a little more

  bool is_zeros() const;  // nothing of it is in any file
};

struct ReadUnits {
  std::vector<ReadUnit> units;                  // in the order of their first use
  std::vector<uint32_t> unit_of;                // of each weight
  std::vector<int64_t> at;                      // where each weight lies in its unit's room
  std::vector<std::vector<uint32_t>> dense_of;  // the dense units of each instruction
};

// Bytes [begin, begin + nbytes) of a weight, for a room that has bytes before `first`, a multiple of kReadAlign.
std::vector<ReadRun> read_runs(const WeightInfo& weight, uint64_t begin, uint64_t nbytes, int64_t first = 0);

// Weights that lie in the same bytes are one unit.
ReadUnits read_units(const Program& program);

}  // namespace deepmnn
