#include "runtime/weight_plan.h"

#include <algorithm>
#include <map>
#include <utility>

#include "runtime/fail.h"
#include "runtime/residency.h"
#include "runtime/routing_slice.h"

namespace deepmnn {
namespace {

constexpr int64_t kLeastRing = int64_t{16} << 20;  // a shorter one has the disk wait
constexpr int64_t kRingSets = 3;                   // what one instruction needs, so many times: one is used, two come
constexpr int64_t kLeastSlots = 2;                 // one is used, one comes
constexpr int64_t kUsefulSteps = 2;                // the experts of so many choices, before anything else is resident

// The dense units that are not needed whole in memory, and the ring that the others take.
struct DenseSplit {
  std::vector<bool> resident;  // [units]
  int64_t resident_nbytes = 0;
  int64_t ring_nbytes = 0;
  int64_t nbytes() const { return resident_nbytes + ring_nbytes; }
};

class Planner {
 public:
  Planner(const Program& program, const ReadUnits& units) : program_(program), units_(units) {
    for (const WeightInfo& weight : program.weights) plan_.total_nbytes += static_cast<int64_t>(weight.nbytes);
    count_units();
  }

  WeightPlan plan(int64_t memory) {
    const std::vector<DenseSplit> splits = dense_splits();
    int64_t least = splits.front().nbytes();
    for (const DenseSplit& split : splits) least = std::min(least, split.nbytes());
    least += always_ + plan_.table_nbytes + experts_of(kLeastSlots);
    plan_.least_nbytes = std::min(least, plan_.total_nbytes);
    if (memory <= 0 || memory >= plan_.total_nbytes) return mapped();
    if (memory < plan_.least_nbytes) {
      fail_request("a memory of " + std::to_string(memory) + " bytes for weights",
                   "at least " + std::to_string(plan_.least_nbytes) + " bytes");
    }
    const int64_t left = memory - always_ - plan_.table_nbytes;
    const int64_t useful = std::min(left, useful_experts());
    place_dense(splits, left - experts_of(kLeastSlots), left - useful);
    place_experts(left - plan_.ring_nbytes - dense_resident_);
    place_tables(left - plan_.ring_nbytes - dense_resident_ - plan_.cache_nbytes);
    plan_.resident_nbytes = always_ + dense_resident_ + tables_;
    plan_.memory_nbytes = plan_.resident_nbytes + plan_.ring_nbytes + plan_.cache_nbytes + plan_.table_nbytes;
    return std::move(plan_);
  }

 private:
  void count_units() {
    std::map<int64_t, int64_t> experts;
    plan_.resident.assign(units_.units.size(), false);
    for (size_t i = 0; i < units_.units.size(); ++i) {
      const ReadUnit& unit = units_.units[i];
      if (unit.need == Need::always) {
        plan_.resident[i] = true;
        always_ += unit.room;
      }
      if (unit.need == Need::dense) dense_.push_back(static_cast<uint32_t>(i));
      if (unit.need == Need::dense) dense_room_ += unit.room;
      if (unit.need == Need::routed) ++experts[unit.room];
      if (unit.need == Need::routed) plan_.expert_nbytes += unit.nbytes;
    }
    for (const auto& [room, count] : experts) plan_.classes.push_back({room, count, 0});
    for (const Instruction& instruction : program_.instructions) {
      for (const WeightUse& use : instruction.weights) {
        if (use.reading != Reading::looked_up) continue;
        const WeightInfo& table = program_.weights[use.id];
        const int64_t block = read_room(block_nbytes(table.format, table.cols)) + kReadAlign;
        plan_.table_nbytes = std::max(plan_.table_nbytes, kTableRows * block);
      }
    }
  }

  WeightPlan mapped() {
    plan_.mapped = true;
    plan_.resident_nbytes = plan_.memory_nbytes = plan_.total_nbytes;
    plan_.table_nbytes = 0;
    return std::move(plan_);
  }

  // Everything dense resident, or only the k largest units and whatever else there is room for: a short ring will do
  // for the rest. By k, the first is all of them.
  std::vector<DenseSplit> dense_splits() const {
    std::vector<uint32_t> by_size = dense_;
    std::stable_sort(by_size.begin(), by_size.end(), [&](uint32_t a, uint32_t b) { return room(a) > room(b); });
    std::vector<DenseSplit> splits;
    DenseSplit all;
    all.resident.assign(units_.units.size(), false);
    DenseSplit split = all;
    for (uint32_t unit : dense_) all.resident[unit] = true;
    all.resident_nbytes = dense_room_;
    splits.push_back(all);
    for (size_t k = 0; k < by_size.size(); ++k) {
      const bool smaller = k == 0 || room(by_size[k]) < room(by_size[k - 1]);
      if (smaller) {
        split.ring_nbytes = ring_of(split.resident);
        splits.push_back(split);
      }
      split.resident[by_size[k]] = true;
      split.resident_nbytes += room(by_size[k]);
    }
    return splits;
  }

  // For the units that are not resident.
  int64_t ring_of(const std::vector<bool>& resident) const {
    int64_t largest = 0, all = 0;
    for (const std::vector<uint32_t>& set : units_.dense_of) {
      int64_t nbytes = 0;
      for (uint32_t unit : set) nbytes += resident[unit] ? 0 : room(unit);
      largest = std::max(largest, nbytes);
      all += nbytes;
    }
    return std::min(std::max(kLeastRing, kRingSets * largest), all + largest);
  }

  // The split that keeps most in memory, in `wanted` bytes, or where none is that small, in `most`.
  void place_dense(const std::vector<DenseSplit>& splits, int64_t most, int64_t wanted) {
    const DenseSplit* best = nullptr;
    for (int64_t bytes : {wanted, most}) {
      int64_t kept = -1;
      for (const DenseSplit& split : splits) {
        if (split.nbytes() > bytes) continue;
        const int64_t resident = std::min(dense_room_, bytes - split.ring_nbytes);
        if (resident > kept) best = &split;
        kept = std::max(kept, resident);
      }
      if (!best) continue;
      for (size_t i = 0; i < plan_.resident.size(); ++i) plan_.resident[i] = plan_.resident[i] || best->resident[i];
      plan_.ring_nbytes = best->ring_nbytes;
      dense_resident_ = best->resident_nbytes;
      spread(bytes - best->nbytes());
      return;
    }
  }

  // Further resident units, evenly over the program, so that the disk is busy all the time.
  void spread(int64_t nbytes) {
    int64_t open = 0;
    for (uint32_t unit : dense_) open += plan_.resident[unit] ? 0 : room(unit);
    const double share = std::min(1.0, static_cast<double>(nbytes) / static_cast<double>(std::max<int64_t>(open, 1)));
    double due = 0.0;
    for (uint32_t unit : dense_) {
      if (plan_.resident[unit]) continue;
      due += share * static_cast<double>(room(unit));
      if (static_cast<double>(room(unit)) > due || room(unit) > nbytes) {
        plan_.streamed_nbytes += units_.units[unit].nbytes;
        continue;
      }
      plan_.resident[unit] = true;
      dense_resident_ += room(unit);
      nbytes -= room(unit);
      due -= static_cast<double>(room(unit));
    }
  }

  // Each class has the least, and its share of the rest; what rounding leaves goes to the first ones.
  void place_experts(int64_t nbytes) {
    const double rest = static_cast<double>(nbytes - experts_of(kLeastSlots));
    const double open = static_cast<double>(experts_of(INT64_MAX) - experts_of(kLeastSlots));
    const double share = open > 0.0 ? std::clamp(rest / open, 0.0, 1.0) : 0.0;
    int64_t left = nbytes;
    for (ExpertClass& each : plan_.classes) {
      const int64_t least = std::min(kLeastSlots, each.units);
      each.slots = least + static_cast<int64_t>(share * static_cast<double>(each.units - least));
      left -= each.slots * each.room;
    }
    for (ExpertClass& each : plan_.classes) {
      const int64_t more = std::clamp<int64_t>(left / each.room, 0, each.units - each.slots);
      each.slots += more;
      left -= more * each.room;
      plan_.cache_nbytes += each.slots * each.room;
    }
  }

  // A table of which a few rows are read stays when there is nothing better.
  void place_tables(int64_t nbytes) {
    for (size_t i = 0; i < units_.units.size(); ++i) {
      const ReadUnit& unit = units_.units[i];
      if (unit.need != Need::rows || unit.room > nbytes - tables_) continue;
      plan_.resident[i] = true;
      tables_ += unit.room;
    }
  }

  // So many slots of each class.
  int64_t experts_of(int64_t slots) const {
    int64_t nbytes = 0;
    for (const ExpertClass& each : plan_.classes) nbytes += std::min(slots, each.units) * each.room;
    return nbytes;
  }

  // What lets a step's experts come while others are used.
  int64_t useful_experts() const {
    int64_t chosen = 1;
    for (const RoutingSlice& slice : routing_slices(program_)) {
      const auto& attrs = program_.instructions[slice.reader].attrs;
      const auto top_k = attrs.find("top_k");
      if (top_k != attrs.end() && std::holds_alternative<int64_t>(top_k->second)) {
        chosen = std::max(chosen, std::min<int64_t>(std::get<int64_t>(top_k->second), 1 << 16));
      }
    }
    return experts_of(std::max(kLeastSlots, kUsefulSteps * chosen));
  }

  int64_t room(uint32_t unit) const { return units_.units[unit].room; }

  const Program& program_;
  const ReadUnits& units_;
  WeightPlan plan_;
  std::vector<uint32_t> dense_;  // in program order
  int64_t always_ = 0, dense_room_ = 0, dense_resident_ = 0, tables_ = 0;
};

}  // namespace

WeightPlan plan_weights(const Program& program, const ReadUnits& units, int64_t memory) {
  return Planner(program, units).plan(memory);
}

WeightPlan plan_parts(Program& program, ReadUnits& units, int64_t memory) {
  Program main = program;
  drop_draft(main);
  units = read_units(program);
  if (main.parts.size() == program.parts.size()) return plan_weights(program, units, memory);
  WeightPlan whole = plan_weights(program, units, 0);
  if (memory > 0 && memory < whole.total_nbytes) {
    program = std::move(main);
    units = read_units(program);
    return plan_weights(program, units, memory);
  }
  whole.least_nbytes = plan_weights(main, read_units(main), 0).least_nbytes;
  return whole;
}

}  // namespace deepmnn
