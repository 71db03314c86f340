// program.bin: what to compute, as plain data (docs/program.md). Parsing checks every length, id and range, so that
// whoever reads a Program can index its tables without looking.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <variant>
#include <vector>

#include "kernels/kernels.h"

namespace deepmnn {

// What a buffer's first dimension counts.
enum class Dim : uint8_t { tokens = 0, context = 1, rows = 2 };
constexpr int kDims = 3;

struct BufferInfo {
  std::string name;
  bool is_int = false;  // i32, else f32
  Dim dim = Dim::tokens;
  int64_t width = 0;     // elements per row
  int64_t offset = 0;    // bytes per row of its arena; -1: supplied by the caller
  uint32_t readers = 0;  // inputs of instructions that it is
};

// Bytes of a weight that lie together in a shard's file, or zeros, which no file has.
struct Piece {
  static constexpr uint32_t kZeros = UINT32_MAX;

  uint32_t shard = kZeros;
  uint64_t offset = 0;  // in the shard's file
  uint64_t nbytes = 0;

  bool is_zeros() const { return shard == kZeros; }
  uint64_t end() const { return offset + nbytes; }
  bool operator<(const Piece& other) const {
    return std::tie(shard, offset, nbytes) < std::tie(other.shard, other.offset, other.nbytes);
  }
};

// Offsets and sizes of a weight in several pieces are multiples of this, but for the size of the last one.
constexpr uint64_t kPieceAlign = 4096;

struct WeightInfo {
  std::string name;
  Format format = Format::f32;
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<Piece> pieces;  // its bytes in order, merged where they follow one another; at least one
  uint64_t nbytes = 0;        // of all of them

  bool is_zeros() const { return pieces.size() == 1 && pieces[0].is_zeros(); }
};

// An entry of the KV cache (graph/caches.py).
struct CacheInfo {
  std::string name;
  int64_t width = 0;   // elements of a row
  int64_t ratio = 1;   // tokens for which there is one row
  int64_t window = 0;  // of the last tokens rows are read, a new token's own included; 0: of all
  bool exact = false;  // float32, whatever type the cache has

  bool is_recent() const { return window > 0; }
  bool operator==(const CacheInfo& other) const {
    return std::tie(name, width, ratio, window, exact) ==
           std::tie(other.name, other.width, other.ratio, other.window, other.exact);
  }
};

using Attr = std::variant<int64_t, double, std::string, std::vector<int64_t>, std::vector<double>>;

// How a step reads a weight.
enum class Reading : uint8_t {
  whole = 0,      // every worker all of it: a vector
  in_order = 1,   // a matrix from first to last row, each worker a part
  routed = 2,     // a matrix that is read only if routing chooses it
  looked_up = 3,  // a few rows, those of the step's ids
};
constexpr int kReadings = 4;

struct WeightUse {
  uint32_t id = 0;
  Reading reading = Reading::whole;
};

struct Instruction {
  std::string op;
  std::string name;
  std::vector<uint32_t> inputs;
  std::vector<uint32_t> outputs;
  std::vector<WeightUse> weights;
  std::vector<uint32_t> caches;  // entries that it writes
  uint64_t row_macs = 0;         // multiply-accumulates for each row
  uint64_t context_macs = 0;     // and, for each row, for each cached row that it sees
  std::map<std::string, Attr> attrs;
};

// What runs by itself: the main part, which is the model, or its draft part, which guesses from what the main part
// gave.
struct ProgramPart {
  std::vector<uint32_t> inputs, outputs;  // buffers, of which no other part has any
  size_t begin = 0, end = 0;              // of its instructions
};

struct Program {
  std::string name;
  std::vector<std::string> shards;
  std::vector<WeightInfo> weights;
  std::vector<CacheInfo> caches;
  std::vector<BufferInfo> buffers;
  int64_t arena_nbytes[kDims] = {};       // per row
  std::vector<ProgramPart> parts;         // the main part, then the draft part where there is one
  std::vector<Instruction> instructions;  // of all parts, in order
};

// Throws Error("artifact") for anything docs/program.md does not allow, including a buffer that is read before it is
// written or written twice.
Program parse_program(const uint8_t* data, size_t nbytes);

// Leaves the main part alone, and what it has of weights and caches: they come before those of the draft part alone.
void drop_draft(Program& program);

}  // namespace deepmnn
