#include "runtime/read_units.h"

#include <algorithm>
#include <map>
#include <utility>

#include "runtime/routing_slice.h"

namespace deepmnn {
namespace {

constexpr uint64_t kMostGap = 64 << 10;

// The weights of each expert that an instruction reads, in order: those that routing chooses together.
std::vector<std::vector<uint32_t>> expert_groups(const Instruction& instruction) {
  const size_t each = weights_per_expert(instruction);
  std::vector<std::vector<uint32_t>> groups;
  for (const WeightUse& use : instruction.weights) {
    if (use.reading != Reading::routed) continue;
    if (groups.empty() || groups.back().size() == each) groups.emplace_back();
    groups.back().push_back(use.id);
  }
  return groups;
}

// The most that any reader needs of each weight.
std::vector<Need> needs(const Program& program) {
  std::vector<Need> need(program.weights.size(), Need::rows);
  const auto raise = [&](uint32_t id, Need least) { need[id] = std::min(need[id], least); };
  for (const Instruction& instruction : program.instructions) {
    for (const WeightUse& use : instruction.weights) {
      if (use.reading == Reading::whole) raise(use.id, Need::always);
      // What comes twice, or in two ways, has no place in an order.
      if (use.reading == Reading::routed) raise(use.id, need[use.id] == Need::dense ? Need::always : Need::routed);
      if (use.reading == Reading::in_order) raise(use.id, need[use.id] == Need::rows ? Need::dense : Need::always);
    }
  }
  std::map<uint32_t, std::vector<uint32_t>> group_of;
  for (const Instruction& instruction : program.instructions) {
    const bool chosen = std::any_of(instruction.inputs.begin(), instruction.inputs.end(),
                                    [&](uint32_t id) { return program.buffers[id].is_int; });
    for (const std::vector<uint32_t>& group : expert_groups(instruction)) {
      for (uint32_t id : group) {
        // An expert is one unit, or steps could wait for parts that keep each other out of memory: what different
        // experts share is no part of any. And what nothing chooses is always needed.
        if (!chosen || group_of.try_emplace(id, group).first->second != group) raise(id, Need::always);
      }
    }
  }
  for (const RoutingSlice& slice : routing_slices(program)) {
    for (size_t i : slice.instructions) {
      for (const WeightUse& use : program.instructions[i].weights) raise(use.id, Need::always);
    }
  }
  return need;
}

class Builder {
 public:
  explicit Builder(const Program& program) : program_(program), need_(needs(program)) {
    made_.unit_of.assign(program.weights.size(), UINT32_MAX);
    made_.at.assign(program.weights.size(), 0);
  }

  ReadUnits build() {
    for (const Instruction& instruction : program_.instructions) {
      made_.dense_of.emplace_back();
      for (std::vector<uint32_t>& group : expert_groups(instruction)) {
        const auto apart =
            std::stable_partition(group.begin(), group.end(), [&](uint32_t id) { return need_[id] == Need::routed; });
        for (auto id = apart; id != group.end(); ++id) add({*id});
        group.erase(apart, group.end());
        add(std::move(group));
      }
      for (const WeightUse& use : instruction.weights) {
        add({use.id});
        // A dense one of zeros has become one that is always there.
        if (need_[use.id] == Need::dense && use.reading == Reading::in_order &&
            made_.units[made_.unit_of[use.id]].need == Need::dense) {
          made_.dense_of.back().push_back(made_.unit_of[use.id]);
        }
      }
    }
    for (uint32_t id = 0; id < program_.weights.size(); ++id) add({id});  // those that nobody reads
    return std::move(made_);
  }

 private:
  // A unit of those weights, unless they have one.
  void add(std::vector<uint32_t> ids) {
    ids.erase(std::remove_if(ids.begin(), ids.end(), [&](uint32_t id) { return made_.unit_of[id] != UINT32_MAX; }),
              ids.end());
    if (ids.empty()) return;
    std::vector<Piece> key;
    for (uint32_t id : ids) {
      const std::vector<Piece>& pieces = program_.weights[id].pieces;
      key.insert(key.end(), pieces.begin(), pieces.end());
    }
    const Need need = need_[ids[0]];
    // What comes in order is not shared: each place in the order has its own.
    const auto [found, fresh] = known_.try_emplace({need, key}, static_cast<uint32_t>(made_.units.size()));
    const bool alone = fresh || need == Need::dense;
    const uint32_t unit = alone ? static_cast<uint32_t>(made_.units.size()) : found->second;
    ReadUnit filled;
    filled.need = need;
    filled.instruction = static_cast<uint32_t>(made_.dense_of.size() - 1);
    if (alone) made_.units.push_back(filled);
    for (uint32_t id : ids) {
      made_.unit_of[id] = unit;
      made_.at[id] = place(filled, program_.weights[id]);
    }
    if (filled.is_zeros()) {  // they take no memory either
      filled.need = Need::always;
      filled.room = 0;
    }
    if (alone) made_.units[unit] = std::move(filled);
  }

  // Adds the weight to the unit, and returns where it lies.
  static int64_t place(ReadUnit& unit, const WeightInfo& info) {
    const int64_t nbytes = static_cast<int64_t>(info.nbytes);
    unit.nbytes += nbytes;
    if (!unit.runs.empty() && info.pieces.size() == 1) {
      ReadRun& last = unit.runs.back();
      const Piece& piece = info.pieces[0];
      const uint64_t end = last.offset + static_cast<uint64_t>(last.nbytes);
      const bool near = !piece.is_zeros() && last.shard == piece.shard && piece.offset >= end;
      if (near && piece.offset - end < kMostGap) {  // with what lies between them it is one read
        const int64_t at = last.at + static_cast<int64_t>(piece.offset - last.offset);
        last.nbytes = at + nbytes - last.at;
        unit.room = read_room(at + nbytes);
        return at;
      }
    }
    const std::vector<ReadRun> runs = read_runs(info, 0, info.nbytes, unit.room);
    unit.runs.insert(unit.runs.end(), runs.begin(), runs.end());
    unit.room = read_room(runs.back().at + runs.back().nbytes);
    return runs.front().at;
  }

  const Program& program_;
  const std::vector<Need> need_;
  ReadUnits made_;
  std::map<std::pair<Need, std::vector<Piece>>, uint32_t> known_;
};

}  // namespace

bool ReadUnit::is_zeros() const {
  return std::all_of(runs.begin(), runs.end(), [](const ReadRun& run) { return run.shard == Piece::kZeros; });
}

std::vector<ReadRun> read_runs(const WeightInfo& weight, uint64_t begin, uint64_t nbytes, int64_t first) {
  std::vector<ReadRun> runs;
  uint64_t passed = 0;
  int64_t at = first;
  for (const Piece& piece : weight.pieces) {
    const uint64_t from = std::max(begin, passed), to = std::min(begin + nbytes, passed + piece.nbytes);
    if (from < to) {
      const uint64_t offset = piece.is_zeros() ? 0 : piece.offset + (from - passed);
      // What begins inside a page in the file does so in memory: further pieces then begin with a page in both.
      if (runs.empty()) at += static_cast<int64_t>((piece.is_zeros() ? from : offset) % kReadAlign);
      runs.push_back({piece.shard, offset, static_cast<int64_t>(to - from), at});
      at += static_cast<int64_t>(to - from);
    }
    passed += piece.nbytes;
  }
  return runs;
}

ReadUnits read_units(const Program& program) { return Builder(program).build(); }

}  // namespace deepmnn
