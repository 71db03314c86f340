// Ops take weights from whatever residency there is: one that has bytes only while they are pinned gives the same
// logits as one that has them always, and is asked for the experts that routing chose and for no others.
#include "runtime/residency.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include "kernels/dispatch.h"
#include "platform/direct_file.h"
#include "runtime/clock.h"
#include "runtime/op.h"
#include "runtime/step.h"
#include "runtime/streamed_weights.h"
#include "tests/check.h"

namespace deepmnn {
namespace {

constexpr int64_t kWidth = 32, kExperts = 6, kChosen = 2, kSize = 16, kVocab = 16;
enum Id : uint32_t { table, router, norm, head, bias, first_expert };

using Bytes = std::vector<std::vector<uint8_t>>;

class Held : public Residency {
 public:
  explicit Held(Bytes bytes) : bytes_(std::move(bytes)) {}
  void pin(const uint32_t* ids, int64_t n, Weight* out) override {
    for (int64_t i = 0; i < n; ++i) out[i].data = bytes_[ids[i]].data();
  }
  void pin_rows(uint32_t id, const int32_t* rows, int64_t n, const uint8_t** blocks) override {
    Weight whole;
    pin(&id, 1, &whole);
    for (int64_t i = 0; i < n; ++i) blocks[i] = whole.data + rows[i] / kBlockRows * block_nbytes(Format::f32, kWidth);
  }
  void unpin() override {}

 protected:
  Bytes bytes_;
};

// Hands out copies, and destroys them when they are given back.
class Fleeting : public Held {
 public:
  using Held::Held;
  void pin(const uint32_t* ids, int64_t n, Weight* out) override {
    for (int64_t i = 0; i < n; ++i) {
      copies_.push_back(std::make_unique<std::vector<uint8_t>>(bytes_[ids[i]]));
      out[i].data = copies_.back()->data();
      pinned.insert(ids[i]);
    }
  }
  void unpin() override {
    for (const auto& copy : copies_) std::fill(copy->begin(), copy->end(), uint8_t{0xFF});  // NaNs
    copies_.clear();
    pinned.clear();
  }

  std::set<uint32_t> pinned;

 private:
  std::vector<std::unique_ptr<std::vector<uint8_t>>> copies_;
};

// ids → table → router → the best two of six experts → their mixture → norm → head with bias → logits.
Program mixture() {
  Program program;
  const auto weight = [&](int64_t rows, int64_t cols, Format format) {
    WeightInfo info;
    info.rows = rows;
    info.cols = cols;
    info.format = format;
    program.weights.push_back(info);
  };
  weight(kVocab, kWidth, Format::f32);
  weight(kExperts, kWidth, Format::f32);
  weight(1, kWidth, Format::vector);
  weight(kVocab, kWidth, Format::f32);
  weight(1, kVocab, Format::vector);
  for (int64_t i = 0; i < kExperts; ++i) {
    weight(2 * kSize, kWidth, Format::f32);
    weight(kWidth, kSize, Format::f32);
  }
  int64_t next = 0;
  const auto buffer = [&](const char* name, bool is_int, int64_t width, bool external = false) {
    program.buffers.push_back({name, is_int, Dim::tokens, width, external ? -1 : next});
    if (!external) next += (width * 4 + 63) / 64 * 64;
  };
  buffer("ids", true, 1, true);
  buffer("x", false, kWidth);
  buffer("scores", false, kExperts);
  buffer("indices", true, kChosen);
  buffer("weights", false, kChosen);
  buffer("mixture", false, kWidth);
  buffer("normed", false, kWidth);
  buffer("logits", false, kVocab, true);
  program.arena_nbytes[static_cast<int>(Dim::tokens)] = next;
  const WeightUse in_order{router, Reading::in_order};
  std::vector<WeightUse> experts;
  for (uint32_t i = 0; i < 2 * kExperts; ++i) experts.push_back({first_expert + i, Reading::routed});
  const auto op = [&](const char* name, std::vector<uint32_t> inputs, uint32_t output, std::vector<WeightUse> weights,
                      std::map<std::string, Attr> attrs) {
    program.instructions.push_back({name, name, std::move(inputs), {output}, std::move(weights), {}, 0, 0, attrs});
  };
  op("embedding", {0}, 1, {{table, Reading::looked_up}}, {});
  op("linear", {1}, 2, {in_order}, {});
  op("top_k", {2}, 3, {}, {{"top_k", kChosen}});
  op("gather", {2, 3}, 4, {}, {});
  op("moe", {1, 3, 4}, 5, experts,
     {{"experts", kExperts}, {"top_k", kChosen}, {"intermediate_size", kSize}, {"limit", 0.0}});
  op("rms_norm", {5}, 6, {{norm, Reading::whole}}, {{"heads", int64_t{1}}, {"eps", 1e-5}});
  op("linear", {6}, 7, {{head, Reading::in_order}, {bias, Reading::whole}}, {});
  program.parts.push_back({{0}, {7}, 0, program.instructions.size()});
  return program;
}

Bytes random_bytes(const Program& program) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  Bytes bytes;
  for (const WeightInfo& weight : program.weights) {
    std::vector<uint8_t> data(static_cast<size_t>(packed_nbytes(weight.format, weight.rows, weight.cols)));
    for (size_t at = 0; at < data.size(); at += 4) {
      const float value = normal(random);
      std::memcpy(data.data() + at, &value, 4);
    }
    bytes.push_back(data);
  }
  return bytes;
}

// Runs steps of these ids as Model does; `after` is called after every op with its index and what it has chosen.
template <class After>
std::vector<float> run(const Program& program, std::unique_ptr<Residency> residency, const std::vector<int32_t>& ids,
                       After&& after) {
  WeightStore weights(program, std::move(residency));
  RopeTables ropes;
  std::vector<std::unique_ptr<Op>> ops;
  for (const Instruction& one : program.instructions) ops.push_back(make_op(OpSpec(program, one, ropes), one.op));
  ThreadPool pool(2, 2);
  KvCache cache({}, 1, 1, CacheType::f32);
  Scratch scratch;
  QuantizedCache quantized;
  std::vector<float> all;
  for (const int32_t& id : ids) {
    Batch batch;
    batch.ids = &id;
    batch.tokens = 1;
    std::vector<float> logits(kVocab);
    void* target = logits.data();
    Arena arena;
    Step step{batch,
              cache,
              pool,
              select_kernels("scalar"),
              ropes,
              weights,
              scratch,
              quantized,
              MlaForm::automatic,
              {1, 0, 0},
              {arena.reserve(program.arena_nbytes[0], "values"), nullptr, nullptr},
              nullptr,
              nullptr,
              nullptr,
              0,
              0,
              &target};
    for (size_t i = 0; i < ops.size(); ++i) {
      weights.unpin();
      scratch.reset();
      ops[i]->run(step);
      after(i, reinterpret_cast<int32_t*>(step.arenas[0] + program.buffers[3].offset));
    }
    all.insert(all.end(), logits.begin(), logits.end());
  }
  return all;
}

void weights_are_read_while_they_are_pinned_alone() {
  const Program program = mixture();
  const Bytes bytes = random_bytes(program);
  const std::vector<int32_t> ids = {3, 0, 15, 7, 3};
  const auto nothing = [](size_t, const int32_t*) {};
  const std::vector<float> wanted = run(program, std::make_unique<Held>(bytes), ids, nothing);
  auto fleeting = std::make_unique<Fleeting>(bytes);
  Fleeting& seen = *fleeting;
  std::set<uint32_t> experts;
  const std::vector<float> found = run(program, std::move(fleeting), ids, [&](size_t index, const int32_t* chosen) {
    std::set<uint32_t> expected;
    for (const WeightUse& use : program.instructions[index].weights) expected.insert(use.id);
    if (program.instructions[index].op == "moe") {
      expected.clear();
      for (int64_t i = 0; i < kChosen; ++i) {
        const uint32_t expert = first_expert + 2 * static_cast<uint32_t>(chosen[i]);
        expected.insert({expert, expert + 1});
      }
      experts.insert(expected.begin(), expected.end());
    }
    CHECK(seen.pinned == expected);
  });
  CHECK(found == wanted);
  CHECK(experts.size() > 2 * kChosen);  // tokens chose differently
  CHECK(*std::max_element(found.begin(), found.end()) > 0.1f);
}

// The program's weights in a file, with where they lie.
class Stored {
 public:
  Stored(Program& program, const Bytes& bytes)
      : directory_(std::filesystem::temp_directory_path() / ("deepmnn-residency-" + std::to_string(now_ns()))) {
    std::filesystem::create_directory(directory_);
    program.shards = {"weights"};
    std::ofstream file(directory_ / "weights", std::ios::binary);
    uint64_t offset = 0;
    for (size_t i = 0; i < bytes.size(); ++i) {
      program.weights[i].pieces = {{0, offset, bytes[i].size()}};
      program.weights[i].nbytes = bytes[i].size();
      file.write(reinterpret_cast<const char*>(bytes[i].data()), static_cast<std::streamsize>(bytes[i].size()));
      offset += bytes[i].size();
    }
  }
  ~Stored() { std::filesystem::remove_all(directory_); }
  std::string directory() const { return directory_.string(); }

 private:
  const std::filesystem::path directory_;
};

// As few bytes as possible: two experts at once, the head anew in each step, rows of the table.
void weights_are_read_from_files() {
  Program program = mixture();
  const Bytes bytes = random_bytes(program);
  const Stored stored(program, bytes);
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < 200; ++i) ids.push_back(i * 7 % kVocab);
  const auto nothing = [](size_t, const int32_t*) {};
  const std::vector<float> wanted = run(program, std::make_unique<Held>(bytes), ids, nothing);
  ReadUnits units = read_units(program);
  WeightPlan plan;
  plan.resident.assign(units.units.size(), false);
  for (size_t i = 0; i < units.units.size(); ++i) {
    const ReadUnit& unit = units.units[i];
    if (unit.need == Need::always) plan.resident[i] = true;
    if (unit.need == Need::dense) plan.ring_nbytes += 2 * unit.room;
    if (unit.need != Need::routed) continue;
    const auto same = [&](const ExpertClass& each) { return each.room == unit.room; };
    if (std::none_of(plan.classes.begin(), plan.classes.end(), same)) plan.classes.push_back({unit.room, 1, 2});
  }
  plan.table_nbytes = kTableRows * 4 * kReadAlign;
  auto streamed = std::make_unique<StreamedWeights>(stored.directory(), program, std::move(units), plan);
  const StreamedWeights& seen = *streamed;
  CHECK(plan.ring_nbytes > 0);
  const std::vector<float> found =
      run(program, std::move(streamed), ids, [&](size_t, const int32_t*) { CHECK(seen.counts().read_nbytes >= 0); });
  CHECK(found == wanted);
}

}  // namespace
}  // namespace deepmnn

int main() {
  deepmnn::weights_are_read_while_they_are_pinned_alone();
  deepmnn::weights_are_read_from_files();
}
