#include "runtime/program.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>

#include "runtime/fail.h"

namespace deepmnn {
namespace {

constexpr char kMagic[8] = {'D', 'M', 'N', 'P', 'R', 'O', 'G', '\0'};
constexpr uint32_t kVersion = 5;
constexpr int64_t kMaxExtent = int64_t{1} << 31;  // rows, columns, widths and bytes per arena row
constexpr int64_t kMaxRatio = int64_t{1} << 20;   // tokens of a cache's row: no block has more
constexpr int64_t kAlign = 64;
// Several times what the largest model needs. They bound what a small file can make its readers do: time and memory
// then grow with its bytes, and nothing with their square.
constexpr size_t kMaxNbytes = size_t{32} << 20;
constexpr uint32_t kMaxText = 4096;  // bytes
constexpr size_t kMaxDims = 8;
constexpr size_t kMaxShards = 1 << 14;
constexpr size_t kMaxParts = 2;
constexpr size_t kMaxOutputs = 256;
constexpr size_t kMaxInstructions = size_t{1} << 18;
constexpr size_t kMaxPieces = 1 << 14;  // of weights that have several: each may be a mapping of its own
constexpr uint64_t kMaxPieceNbytes = uint64_t{1} << 48;

// Well-formed UTF-8 (RFC 3629), so that every name can be shown.
bool is_utf8(const uint8_t* text, size_t n) {
  for (size_t i = 0; i < n;) {
    const uint8_t first = text[i++];
    const int more = first < 0x80 ? 0 : first < 0xC2 ? -1 : first < 0xE0 ? 1 : first < 0xF0 ? 2 : first < 0xF5 ? 3 : -1;
    if (more < 0 || n - i < static_cast<size_t>(more)) return false;
    if ((first == 0xE0 && text[i] < 0xA0) || (first == 0xED && text[i] > 0x9F)) return false;  // too long, surrogate
    if ((first == 0xF0 && text[i] < 0x90) || (first == 0xF4 && text[i] > 0x8F)) return false;  // too long, too large
    for (int j = 0; j < more; ++j) {
      if ((text[i++] & 0xC0) != 0x80) return false;
    }
  }
  return true;
}

void require(bool ok, const std::string& what, const std::string& expected) {
  if (!ok) fail_artifact("program.bin: " + what, expected);
}

void require_most(size_t count, size_t most, const char* what) {
  require(count <= most, std::to_string(count) + " " + what, "at most " + std::to_string(most));
}

class Reader {
 public:
  Reader(const uint8_t* data, size_t nbytes) : data_(data), left_(nbytes) {}

  template <class T>
  T number(const char* what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what), sizeof(T));
    return value;
  }

  std::string str(const char* what) {
    const uint32_t length = number<uint32_t>(what);
    if (length > kMaxText) {
      fail_artifact("program.bin: a " + std::string(what) + " of " + std::to_string(length) + " bytes",
                    "at most " + std::to_string(kMaxText));
    }
    const uint8_t* bytes = take(length, what);
    if (!is_utf8(bytes, length)) fail_artifact("program.bin: a " + std::string(what) + " that is no text", "UTF-8");
    return std::string(reinterpret_cast<const char*>(bytes), length);
  }

  // A list's count, which the bytes left can really hold.
  uint32_t count(size_t item_nbytes, const char* what) {
    const uint32_t items = number<uint32_t>(what);
    if (items > left_ / item_nbytes) {
      fail_artifact(
          "program.bin: " + std::to_string(items) + " " + what + " in the last " + std::to_string(left_) + " bytes",
          "a count that fits");
    }
    return items;
  }

  template <class T>
  std::vector<T> list(const char* what) {
    std::vector<T> items(count(sizeof(T), what));
    if (!items.empty()) std::memcpy(items.data(), take(items.size() * sizeof(T), what), items.size() * sizeof(T));
    return items;
  }

  std::vector<uint32_t> ids(size_t table_size, const char* what) {
    std::vector<uint32_t> items(count(sizeof(uint32_t), what));
    for (uint32_t& item : items) item = id(table_size, what);
    return items;
  }

  uint32_t id(size_t table_size, const char* what) {
    const uint32_t item = number<uint32_t>(what);
    if (item >= table_size) {
      fail_artifact("program.bin: id " + std::to_string(item) + " among the " + what,
                    "less than " + std::to_string(table_size));
    }
    return item;
  }

  void finish() const {
    if (left_) fail_artifact("program.bin: " + std::to_string(left_) + " bytes after the program", "none");
  }

  const uint8_t* take(size_t nbytes, const char* what) {
    if (nbytes > left_) {
      fail_artifact("program.bin ends inside its " + std::string(what), std::to_string(nbytes - left_) + " more bytes");
    }
    const uint8_t* start = data_;
    data_ += nbytes;
    left_ -= nbytes;
    return start;
  }

 private:
  const uint8_t* data_;
  size_t left_;
};

void read_header(Reader& in, Program& program) {
  require(std::memcmp(in.take(sizeof kMagic, "magic"), kMagic, sizeof kMagic) == 0, "wrong first 8 bytes",
          "\"DMNPROG\\0\"");
  const uint32_t version = in.number<uint32_t>("version");
  require(version == kVersion, "version " + std::to_string(version),
          "version " + std::to_string(kVersion) + "; convert the model again");
  program.name = in.str("graph name");
}

void read_shards(Reader& in, Program& program) {
  const uint32_t shards = in.count(4, "shards");
  require_most(shards, kMaxShards, "shards");
  program.shards.resize(shards);
  for (std::string& shard : program.shards) {
    shard = in.str("shard name");
    const bool plain = !shard.empty() && shard != "." && shard != ".." &&
                       shard.find_first_of(std::string("/\\\0", 3)) == std::string::npos;
    require(plain, "shard name \"" + shard + "\"", "a file name without a path");
  }
}

Piece read_piece(Reader& in, size_t shards, const std::string& who) {
  Piece piece;
  piece.shard = in.number<uint32_t>("shard of a weight");
  piece.offset = in.number<uint64_t>("offset of a weight");
  piece.nbytes = in.number<uint64_t>("size of a weight");
  require(piece.is_zeros() || piece.shard < shards, who + "shard " + std::to_string(piece.shard),
          "one of the shards listed, or 2^32 - 1 for zeros");
  require(piece.offset % kAlign == 0 && (piece.offset == 0 || !piece.is_zeros()),
          who + "offset " + std::to_string(piece.offset), "a multiple of 64, and 0 for zeros");
  require(piece.nbytes > 0 && piece.nbytes % kAlign == 0 && piece.nbytes <= kMaxPieceNbytes,
          who + std::to_string(piece.nbytes) + " bytes", "a multiple of 64 from 64 to 2^48");
  return piece;
}

// Whole pages, so that they can be mapped one after another, and said in one way only.
void check_pieces(const std::vector<Piece>& pieces, const std::string& who) {
  for (size_t i = 0; i < pieces.size(); ++i) {
    const bool is_last = i + 1 == pieces.size();
    require(pieces[i].offset % kPieceAlign == 0 && (is_last || pieces[i].nbytes % kPieceAlign == 0),
            who + "a piece of " + std::to_string(pieces[i].nbytes) + " bytes at " + std::to_string(pieces[i].offset),
            "multiples of " + std::to_string(kPieceAlign) + " where a weight has several pieces");
    if (is_last) continue;
    const Piece& next = pieces[i + 1];
    const bool one = pieces[i].shard == next.shard && (next.is_zeros() || pieces[i].end() == next.offset);
    require(!one, who + "two pieces that follow one another", "one piece");
  }
}

void read_pieces(Reader& in, size_t shards, const std::string& who, WeightInfo& weight, size_t& pieces) {
  const uint32_t count = in.count(20, "pieces of a weight");
  require(count > 0, who + "no pieces", "at least one");
  if (count > 1) require_most(pieces += count, kMaxPieces, "pieces of weights that have several");
  for (uint32_t i = 0; i < count; ++i) {
    weight.pieces.push_back(read_piece(in, shards, who));
    weight.nbytes += weight.pieces.back().nbytes;  // at most 2^14 times 2^48
  }
  if (count > 1) check_pieces(weight.pieces, who);
}

// pieces: of the weights before it that have several.
WeightInfo read_weight(Reader& in, size_t shards, size_t& pieces) {
  WeightInfo weight;
  weight.name = in.str("weight name");
  const std::string who = "weight " + weight.name + ": ";
  const uint8_t format = in.number<uint8_t>("weight format");
  require(format < kFormatCount, who + "format " + std::to_string(format), "0 to " + std::to_string(kFormatCount - 1));
  weight.format = static_cast<Format>(format);
  weight.rows = in.number<int64_t>("weight rows");
  weight.cols = in.number<int64_t>("weight columns");
  const bool in_range =
      weight.rows > 0 && weight.cols > 0 && weight.rows <= kMaxExtent && weight.cols <= kMaxExtent / 2;
  require(in_range, who + "shape [" + std::to_string(weight.rows) + ", " + std::to_string(weight.cols) + "]",
          "sizes from 1 to 2^31 rows and 2^30 columns");
  require(weight.format != Format::vector || weight.rows == 1,
          who + "a vector with " + std::to_string(weight.rows) + " rows", "1 row");
  read_pieces(in, shards, who, weight, pieces);
  return weight;
}

BufferInfo read_buffer(Reader& in) {
  BufferInfo buffer;
  buffer.name = in.str("buffer name");
  const std::string who = "buffer " + buffer.name + ": ";
  const uint8_t dtype = in.number<uint8_t>("buffer dtype");
  require(dtype <= 1, who + "dtype " + std::to_string(dtype), "0 or 1");
  buffer.is_int = dtype == 1;
  const uint8_t dim = in.number<uint8_t>("buffer dim");
  require(dim < kDims, who + "dim " + std::to_string(dim), "0, 1 or 2");
  buffer.dim = static_cast<Dim>(dim);
  buffer.width = 1;
  const std::vector<uint32_t> dims = in.list<uint32_t>("buffer dims");
  require_most(dims.size(), kMaxDims, "dims of a buffer");
  for (uint32_t extent : dims) {
    require(extent > 0 && buffer.width <= kMaxExtent / extent, who + "its dims", "a product from 1 to 2^31");
    buffer.width *= extent;
  }
  buffer.offset = in.number<int64_t>("buffer offset");
  return buffer;
}

void read_arenas(Reader& in, Program& program) {
  for (int64_t& nbytes : program.arena_nbytes) {
    nbytes = in.number<int64_t>("arena sizes");
    require(nbytes >= 0 && nbytes <= kMaxExtent && nbytes % kAlign == 0, "arena size " + std::to_string(nbytes),
            "a multiple of 64 up to 2^31");
  }
  for (const BufferInfo& buffer : program.buffers) {
    if (buffer.offset == -1) continue;
    const int64_t arena = program.arena_nbytes[static_cast<int>(buffer.dim)];
    const bool inside = buffer.offset >= 0 && buffer.offset % kAlign == 0 && buffer.width * 4 <= arena &&
                        buffer.offset <= arena - buffer.width * 4;
    require(inside, "buffer " + buffer.name + ": offset " + std::to_string(buffer.offset),
            "a multiple of 64 that leaves the buffer inside its arena");
  }
}

Attr read_attr(Reader& in, const std::string& key) {
  const uint8_t type = in.number<uint8_t>("attribute type");
  switch (type) {
    case 0:
      return in.number<int64_t>("attribute");
    case 1:
      return in.number<double>("attribute");
    case 2:
      return in.str("attribute");
    case 3:
      return in.list<int64_t>("attribute");
    case 4:
      return in.list<double>("attribute");
  }
  fail_artifact("program.bin: attribute " + key + " of type " + std::to_string(type), "0 to 4");
}

WeightUse read_weight_use(Reader& in, const Program& program) {
  WeightUse use;
  use.id = in.id(program.weights.size(), "weights");
  const uint8_t reading = in.number<uint8_t>("way to read a weight");
  require(reading < kReadings, "a weight read in way " + std::to_string(reading), "0 to 3");
  use.reading = static_cast<Reading>(reading);
  const WeightInfo& weight = program.weights[use.id];
  require((use.reading == Reading::whole) == (weight.format == Format::vector),
          "weight " + weight.name + " read in way " + std::to_string(reading), "0 for a vector, 1 to 3 for a matrix");
  return use;
}

Instruction read_instruction(Reader& in, const Program& program) {
  Instruction instruction;
  instruction.op = in.str("op");
  instruction.name = in.str("instruction name");
  instruction.inputs = in.ids(program.buffers.size(), "input buffers");
  instruction.outputs = in.ids(program.buffers.size(), "output buffers");
  instruction.weights.resize(in.count(5, "weights"));
  for (WeightUse& use : instruction.weights) use = read_weight_use(in, program);
  instruction.caches = in.ids(program.caches.size(), "caches");
  instruction.row_macs = in.number<uint64_t>("cost");
  instruction.context_macs = in.number<uint64_t>("cost");
  const uint32_t attrs = in.count(6, "attributes");
  for (uint32_t i = 0; i < attrs; ++i) {
    const std::string key = in.str("attribute key");
    instruction.attrs[key] = read_attr(in, key);
  }
  return instruction;
}

void read_part(Reader& in, Program& program) {
  ProgramPart part;
  part.inputs = in.ids(program.buffers.size(), "graph inputs");
  part.outputs = in.ids(program.buffers.size(), "graph outputs");
  require_most(part.outputs.size(), kMaxOutputs, "graph outputs");
  part.begin = program.instructions.size();
  const uint32_t instructions = in.count(44, "instructions");
  require_most(part.begin + instructions, kMaxInstructions, "instructions");
  for (uint32_t i = 0; i < instructions; ++i) program.instructions.push_back(read_instruction(in, program));
  part.end = program.instructions.size();
  program.parts.push_back(std::move(part));
}

// Which buffers still hold what was written to them: a buffer loses its bytes to the next one placed there.
class Contents {
 public:
  explicit Contents(const Program& program) : program_(program), intact_(program.buffers.size()) {}

  bool operator[](uint32_t id) const { return intact_[id]; }

  void write(uint32_t id) {
    intact_[id] = true;
    const BufferInfo& buffer = program_.buffers[id];
    if (buffer.offset < 0) return;
    auto& spans = spans_[static_cast<int>(buffer.dim)];
    const int64_t end = buffer.offset + buffer.width * 4;
    auto span = spans.upper_bound(buffer.offset);
    if (span != spans.begin() && std::prev(span)->second.end > buffer.offset) --span;
    while (span != spans.end() && span->first < end) {
      intact_[span->second.id] = false;
      span = spans.erase(span);
    }
    spans[buffer.offset] = {end, id};
  }

 private:
  struct Span {
    int64_t end;  // bytes per row
    uint32_t id;
  };
  const Program& program_;
  std::vector<bool> intact_;
  std::map<int64_t, Span> spans_[kDims];  // by begin; they do not overlap
};

// What the caller supplies is exactly the inputs and outputs of all parts.
void check_external(const Program& program) {
  std::vector<bool> external(program.buffers.size());
  for (const ProgramPart& part : program.parts) {
    for (uint32_t id : part.inputs) external[id] = true;
    for (uint32_t id : part.outputs) external[id] = true;
  }
  for (size_t id = 0; id < program.buffers.size(); ++id) {
    require(external[id] == (program.buffers[id].offset == -1), "buffer " + program.buffers[id].name,
            "offset -1 for graph inputs and outputs, and for them only");
  }
}

// Every buffer is written once and read before its bytes go to another one, and what an instruction reads and writes
// lies apart: no op sees its indices change under it. written: by earlier parts, whose buffers are theirs alone.
void check_data_flow(const Program& program, const ProgramPart& part, std::vector<bool>& written) {
  const std::vector<bool> taken = written;
  Contents contents(program);
  for (uint32_t id : part.inputs) {
    require(!taken[id], "graph input " + program.buffers[id].name, "a buffer of no other part");
    written[id] = true;
    contents.write(id);
  }
  for (size_t i = part.begin; i < part.end; ++i) {
    const Instruction& instruction = program.instructions[i];
    const std::string who = instruction.name + " (" + instruction.op + ") ";
    for (uint32_t id : instruction.inputs) {
      require(contents[id], who + "reads " + program.buffers[id].name,
              "a buffer written before, its bytes not given to another one since");
    }
    for (uint32_t id : instruction.outputs) {
      require(!written[id], who + "writes " + program.buffers[id].name + " again", "one writer for each buffer");
      written[id] = true;
      contents.write(id);
    }
    const auto apart = [&](uint32_t id) {
      require(contents[id], who + "has " + program.buffers[id].name + " in the bytes of another buffer of its own",
              "inputs and outputs that lie apart");
    };
    std::for_each(instruction.inputs.begin(), instruction.inputs.end(), apart);
    std::for_each(instruction.outputs.begin(), instruction.outputs.end(), apart);
  }
  for (uint32_t id : part.outputs) {
    require(written[id] && !taken[id], "nothing writes output " + program.buffers[id].name, "one writer");
  }
}

CacheInfo read_cache(Reader& in) {
  CacheInfo cache;
  cache.name = in.str("cache name");
  cache.width = in.number<uint32_t>("cache width");
  cache.ratio = in.number<uint32_t>("cache ratio");
  cache.window = in.number<uint32_t>("cache window");
  const uint8_t exact = in.number<uint8_t>("cache exactness");
  const std::string who = "cache " + cache.name + ": ";
  require(cache.width > 0 && cache.width <= kMaxExtent, who + "width " + std::to_string(cache.width), "1 to 2^31");
  require(cache.ratio > 0 && cache.ratio <= kMaxRatio, who + "a row for " + std::to_string(cache.ratio) + " tokens",
          "1 to 2^20");
  require(cache.window <= kMaxExtent, who + "window " + std::to_string(cache.window), "0 to 2^31");
  require(cache.window == 0 || cache.ratio == 1, who + "a window of rows for several tokens", "a row for each token");
  require(exact <= 1, who + "exactness " + std::to_string(exact), "0 or 1");
  cache.exact = exact != 0;
  return cache;
}

}  // namespace

Program parse_program(const uint8_t* data, size_t nbytes) {
  require_most(nbytes, kMaxNbytes, "bytes");
  Reader in(data, nbytes);
  Program program;
  read_header(in, program);
  read_shards(in, program);
  const uint32_t weights = in.count(45, "weights");
  size_t pieces = 0;
  for (uint32_t i = 0; i < weights; ++i) program.weights.push_back(read_weight(in, program.shards.size(), pieces));
  program.caches.resize(in.count(17, "caches"));
  for (CacheInfo& cache : program.caches) cache = read_cache(in);
  const uint32_t buffers = in.count(18, "buffers");
  for (uint32_t i = 0; i < buffers; ++i) program.buffers.push_back(read_buffer(in));
  read_arenas(in, program);
  const uint32_t parts = in.count(12, "parts");
  require(parts > 0, "no part", "one that runs");
  require_most(parts, kMaxParts, "parts");
  for (uint32_t i = 0; i < parts; ++i) read_part(in, program);
  in.finish();
  for (const Instruction& instruction : program.instructions) {
    for (uint32_t id : instruction.inputs) ++program.buffers[id].readers;
  }
  check_external(program);
  std::vector<bool> written(program.buffers.size());
  for (const ProgramPart& part : program.parts) check_data_flow(program, part, written);
  return program;
}

void drop_draft(Program& program) {
  if (program.parts.size() < 2) return;
  program.parts.resize(1);
  program.instructions.resize(program.parts[0].end);
  size_t weights = 0, caches = 0;
  for (const Instruction& instruction : program.instructions) {
    for (const WeightUse& use : instruction.weights) weights = std::max<size_t>(weights, use.id + size_t{1});
    for (uint32_t id : instruction.caches) caches = std::max<size_t>(caches, id + size_t{1});
  }
  program.weights.resize(weights);
  program.caches.resize(caches);
}

}  // namespace deepmnn
