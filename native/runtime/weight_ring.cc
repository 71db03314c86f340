#include "runtime/weight_ring.h"

#include <algorithm>

#include "runtime/fail.h"

namespace deepmnn {

WeightRing::WeightRing(const ReadUnits& units, const WeightPlan& plan)
    : position_(units.units.size(), -1), nbytes_(plan.ring_nbytes) {
  for (const std::vector<uint32_t>& set : units.dense_of) {
    for (uint32_t unit : set) {
      if (plan.resident[unit]) continue;
      position_[unit] = static_cast<int64_t>(order_.size());
      order_.push_back(unit);
      rooms_.push_back(units.units[unit].room);
    }
  }
  if (order_.empty()) return;
  memory_ = ReadMemory(nbytes_, "weights that are read ahead");
}

// Of the unit's next use.
int64_t WeightRing::number_of(uint32_t unit) const {
  const int64_t count = static_cast<int64_t>(order_.size());
  return used_ + (position_[unit] - used_ % count + count) % count;
}

void WeightRing::want(uint32_t unit) {
  if (pinned(unit)) return;
  used_ = number_of(unit);
  for (Entry& entry : entries_) {
    if (entry.number < used_ && !entry.pinned) entry.done = true;
    if (entry.number == used_ && entry.state == State::failed) entry.done = true;
  }
  drop_done();
  const bool coming = std::any_of(entries_.begin(), entries_.end(),
                                  [&](const Entry& entry) { return entry.number == used_ && !entry.done; });
  if (coming) return;
  for (Entry& entry : entries_) entry.done = entry.done || !entry.pinned;  // an earlier one failed: from here on anew
  drop_done();
  next_ = used_;
}

WeightRing::Entry* WeightRing::find(uint32_t unit) {
  const int64_t number = number_of(unit);
  const auto found = std::find_if(entries_.begin(), entries_.end(),
                                  [&](const Entry& entry) { return entry.number == number && !entry.done; });
  return found == entries_.end() ? nullptr : &*found;
}

WeightRing::Entry* WeightRing::pinned(uint32_t unit) {
  const auto found = std::find_if(entries_.begin(), entries_.end(),
                                  [&](const Entry& entry) { return entry.unit == unit && entry.pinned; });
  return found == entries_.end() ? nullptr : &*found;
}

const uint8_t* WeightRing::pin(uint32_t unit) {
  Entry* entry = pinned(unit);
  if (!entry) entry = find(unit);
  if (!entry || entry->state == State::reading) return nullptr;
  if (entry->state == State::failed) {
    const std::string why = entry->why;
    entry->done = true;
    drop_done();
    throw Error("artifact", why);
  }
  entry->pinned = true;
  return memory_.data() + entry->begin;
}

int64_t WeightRing::unpin() {
  int64_t pinned = 0;
  for (Entry& entry : entries_) {
    if (!entry.pinned) continue;
    ++pinned;
    entry.done = true;
    entry.pinned = false;
    used_ = std::max(used_, entry.number + 1);
  }
  drop_done();
  return pinned;
}

// From the oldest on; what is still being read keeps its room.
void WeightRing::drop_done() {
  while (!entries_.empty() && entries_.front().done && entries_.front().state != State::reading) entries_.pop_front();
}

bool WeightRing::next(uint32_t* unit, uint8_t** to) {
  if (order_.empty()) return false;
  const size_t position = static_cast<size_t>(next_) % order_.size();
  const int64_t room = rooms_[position];
  int64_t begin = 0;
  if (!entries_.empty()) {
    const int64_t head = entries_.front().begin, tail = entries_.back().begin + entries_.back().room;
    const bool wrapped = entries_.back().begin < head;
    begin = tail;
    if (wrapped ? tail + room > head : tail + room > nbytes_) {
      if (wrapped || room > head) return false;
      begin = 0;
    }
  }
  if (begin + room > nbytes_) return false;
  entries_.push_back({order_[position], next_, begin, room});
  ++next_;
  *unit = order_[position];
  *to = memory_.data() + begin;
  return true;
}

WeightRing::Entry* WeightRing::at(const uint8_t* to) {
  const auto found = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& entry) {
    return memory_.data() + entry.begin == to && entry.state == State::reading;
  });
  return found == entries_.end() ? nullptr : &*found;
}

void WeightRing::arrived(const uint8_t* to) {
  if (Entry* const entry = at(to)) entry->state = State::here;
  drop_done();
}

void WeightRing::failed(const uint8_t* to, const std::string& why) {
  if (Entry* const entry = at(to)) {
    entry->state = State::failed;
    entry->why = why;
  }
  drop_done();
}

}  // namespace deepmnn
