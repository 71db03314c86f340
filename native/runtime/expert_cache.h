// The experts that are in memory: slots, who has them, and who gives way. It reads nothing itself, and knows nothing of
// threads: whoever uses it holds a lock.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "runtime/read_units.h"
#include "runtime/residency.h"
#include "runtime/weight_plan.h"

namespace deepmnn {

class ExpertCache {
 public:
  ExpertCache(const ReadUnits& units, const WeightPlan& plan);

  // What was wanted or guessed before is forgotten. Uses from now on count for more than those before: twice as much
  // after kHalfLife tokens.
  void begin_step(int64_t tokens);

  // So many rows have been routed in the layer of this unit: once for all its units after begin_routing(). The last
  // layer has fewer than others: only those whose logits are wanted. So an expert counts by its share of its layer's
  // rows.
  void begin_routing() { routed_layer_ = kNone; }
  void route(uint32_t unit, int64_t rows);
  // A step will use this unit, for so many rows: it is read if it is not here, and stays until it has been pinned.
  void want(uint32_t unit, int64_t uses);
  // Whether there is one to be read, be there a slot for it or not.
  bool waits(bool guessed);
  // It may: it is read when there is nothing else to do. forget_guesses() takes that back.
  void guess(uint32_t unit);
  void forget_guesses();

  // A unit to be read and where to; false when there is none, or no slot for it. It is one that is wanted unless
  // `guessed`.
  bool next(bool guessed, uint32_t* unit, uint8_t** to);
  void arrived(uint32_t unit);
  void failed(uint32_t unit, const std::string& why);

  // Its room, null while it is not here. Throws Error("artifact") when it was wanted and could not be read; then the
  // next one who wants it tries again.
  const uint8_t* find(uint32_t unit);
  bool is_coming(uint32_t unit) const { return entries_[unit].wanted; }
  void pin(uint32_t unit);
  int64_t unpin();  // how many were pinned
  // How many units may be pinned at once, so that as many can be read meanwhile.
  int64_t pins(uint32_t unit) const;

  int64_t hits = 0, misses = 0, guesses = 0, good_guesses = 0;

 private:
  enum class State : uint8_t { absent, queued, reading, here, failed };
  struct Entry {
    State state = State::absent;
    bool wanted = false;    // by this step, and not pinned yet
    bool guessed = false;   // by this step
    bool by_guess = false;  // that is why it was read, and nobody has wanted it since
    bool pinned = false;
    uint32_t size = 0;  // its class
    int32_t slot = -1;
    uint32_t layer = 0;
    double score = 0.0;  // rows of late that used it
  };
  struct Slots {
    ReadMemory memory;
    int64_t room = 0;
    std::vector<uint32_t> units;  // whose they are, kNone: nobody's
  };

  static constexpr uint32_t kNone = UINT32_MAX;

  Entry& entry(uint32_t unit) { return entries_[unit]; }
  int32_t free_slot(uint32_t size, bool guessed);
  uint8_t* slot_of(const Entry& entry) const {
    const Slots& slots = slots_[entry.size];
    return slots.memory.data() + entry.slot * slots.room;
  }

  std::vector<Entry> entries_;  // [units]
  std::vector<Slots> slots_;    // [classes]
  std::vector<uint32_t> wanted_, guessed_;
  size_t next_wanted_ = 0, next_guessed_ = 0;
  std::vector<uint32_t> pinned_;
  std::map<uint32_t, std::string> failures_;
  uint32_t routed_layer_ = kNone;
  std::vector<double> layer_rows_;  // all rows of late, of each layer
  double weight_ = 1.0;             // of a row now: doubles with each kHalfLife tokens
  double row_weight_ = 1.0;         // of a row of this step: as if its tokens had come one by one
};

}  // namespace deepmnn
