// Dense weights that do not stay in memory: they come in the program's order, read ahead as far as there is room, round
// and round. Like ExpertCache it reads nothing itself, and whoever uses it holds a lock.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "runtime/read_units.h"
#include "runtime/weight_plan.h"

namespace deepmnn {

class WeightRing {
 public:
  WeightRing(const ReadUnits& units, const WeightPlan& plan);

  bool empty() const { return order_.empty(); }
  bool has(uint32_t unit) const { return position_[unit] >= 0; }

  // The next use of the unit is now: those before it in the order are not waited for any more.
  void want(uint32_t unit);
  // Its room, null while it has not come; it then stays until unpin(). Throws Error("artifact") when it could not be
  // read; the next one who wants it tries again.
  const uint8_t* pin(uint32_t unit);
  int64_t unpin();  // how many were pinned

  // What is to be read next and where to; false while there is no room.
  bool next(uint32_t* unit, uint8_t** to);
  void arrived(const uint8_t* to);
  void failed(const uint8_t* to, const std::string& why);

 private:
  enum class State : uint8_t { reading, here, failed };
  struct Entry {
    uint32_t unit;
    int64_t number;  // how many have come before it, ever
    int64_t begin, room;
    State state = State::reading;
    bool pinned = false, done = false;
    std::string why{};
  };

  void drop_done();
  Entry* find(uint32_t unit);
  Entry* pinned(uint32_t unit);
  Entry* at(const uint8_t* to);
  int64_t number_of(uint32_t unit) const;

  std::vector<uint32_t> order_;    // the program's
  std::vector<int64_t> position_;  // [units] in order_, -1: not in it
  std::vector<int64_t> rooms_;     // [order]
  ReadMemory memory_;
  int64_t nbytes_ = 0;
  std::deque<Entry> entries_;  // in the ring, oldest first
  int64_t next_ = 0;           // number of the next one to be read
  int64_t used_ = 0;           // those before it have been used
};

}  // namespace deepmnn
