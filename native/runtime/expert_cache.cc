#include "runtime/expert_cache.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "runtime/fail.h"

namespace deepmnn {
namespace {

constexpr double kHalfLife = 64.0;  // tokens: the best of 8 to 512 for a trained mixture (docs/log.md)
constexpr double kMostWeight = 1e100;
constexpr double kFewRows = 1e-9;  // before a layer has had any

}  // namespace

ExpertCache::ExpertCache(const ReadUnits& units, const WeightPlan& plan) : entries_(units.units.size()) {
  for (const ExpertClass& each : plan.classes) {
    Slots& slots = slots_.emplace_back();
    slots.room = each.room;
    slots.memory = ReadMemory(nbytes_of(each.slots, each.room), "a cache of experts");
    slots.units.assign(static_cast<size_t>(each.slots), kNone);
  }
  for (size_t i = 0; i < units.units.size(); ++i) {
    if (units.units[i].need != Need::routed) continue;
    const auto same = [&](const ExpertClass& each) { return each.room == units.units[i].room; };
    const auto found = std::find_if(plan.classes.begin(), plan.classes.end(), same);
    entries_[i].size = static_cast<uint32_t>(found - plan.classes.begin());
    entries_[i].layer = units.units[i].instruction;
    if (layer_rows_.size() <= entries_[i].layer) layer_rows_.resize(entries_[i].layer + 1, kFewRows);
  }
}

void ExpertCache::begin_step(int64_t tokens) {
  for (uint32_t unit : wanted_) {
    Entry& each = entry(unit);
    each.wanted = false;
    if (each.state == State::queued || each.state == State::failed) each.state = State::absent;
  }
  wanted_.clear();
  next_wanted_ = 0;
  failures_.clear();
  forget_guesses();
  const double before = weight_;
  weight_ *= std::exp2(static_cast<double>(tokens) / kHalfLife);
  row_weight_ = (weight_ - before) / static_cast<double>(std::max<int64_t>(tokens, 1));
  if (weight_ < kMostWeight) return;
  for (Entry& each : entries_) each.score /= weight_;
  for (double& rows : layer_rows_) rows /= weight_;
  row_weight_ /= weight_;
  weight_ = 1.0;
}

void ExpertCache::route(uint32_t unit, int64_t rows) {
  const uint32_t layer = entry(unit).layer;
  if (layer == routed_layer_) return;
  routed_layer_ = layer;
  layer_rows_[layer] += row_weight_ * static_cast<double>(rows);
}

void ExpertCache::want(uint32_t unit, int64_t uses) {
  Entry& each = entry(unit);
  each.score += row_weight_ * static_cast<double>(uses);
  if (each.wanted) return;
  each.wanted = true;
  const bool here = each.state == State::here;
  ++(here ? hits : misses);
  if (each.by_guess) ++good_guesses;
  each.by_guess = false;
  // Even one that is here is listed: begin_step has to find it.
  wanted_.push_back(unit);
  if (each.state == State::absent || each.state == State::failed) each.state = State::queued;
}

void ExpertCache::guess(uint32_t unit) {
  Entry& each = entry(unit);
  if (each.guessed) return;
  each.guessed = true;
  guessed_.push_back(unit);
}

void ExpertCache::forget_guesses() {
  for (uint32_t unit : guessed_) entry(unit).guessed = false;
  guessed_.clear();
  next_guessed_ = 0;
}

// Free, or of the unit that was used least of late and is not needed by this step: for one that is wanted a guess gives
// way at last, or two guesses could keep each other from ever being used.
int32_t ExpertCache::free_slot(uint32_t size, bool guessed) {
  Slots& slots = slots_[size];
  int32_t best = -1;
  double least = 0.0;  // share of its layer's rows that used it
  bool best_guessed = false;
  for (size_t i = 0; i < slots.units.size(); ++i) {
    if (slots.units[i] == kNone) return static_cast<int32_t>(i);
    const Entry& each = entry(slots.units[i]);
    if (each.state != State::here || each.pinned || each.wanted || (each.guessed && guessed)) continue;
    const double share = each.score / layer_rows_[each.layer];
    if (best >= 0 && std::make_pair(each.guessed, share) >= std::make_pair(best_guessed, least)) continue;
    best = static_cast<int32_t>(i);
    least = share;
    best_guessed = each.guessed;
  }
  if (best < 0) return best;
  Entry& gone = entry(slots.units[static_cast<size_t>(best)]);
  gone.state = State::absent;
  gone.slot = -1;
  gone.by_guess = false;
  return best;
}

bool ExpertCache::waits(bool guessed) {
  const std::vector<uint32_t>& list = guessed ? guessed_ : wanted_;
  size_t& at = guessed ? next_guessed_ : next_wanted_;
  const State waiting = guessed ? State::absent : State::queued;
  while (at < list.size() && entry(list[at]).state != waiting) ++at;
  return at < list.size();
}

bool ExpertCache::next(bool guessed, uint32_t* unit, uint8_t** to) {
  if (!waits(guessed)) return false;
  const std::vector<uint32_t>& list = guessed ? guessed_ : wanted_;
  size_t& at = guessed ? next_guessed_ : next_wanted_;
  Entry& each = entry(list[at]);
  const int32_t slot = free_slot(each.size, guessed);
  if (slot < 0) return false;
  *unit = list[at++];
  slots_[each.size].units[static_cast<size_t>(slot)] = *unit;
  each.slot = slot;
  each.state = State::reading;
  each.by_guess = guessed;
  guesses += guessed;
  *to = slot_of(each);
  return true;
}

void ExpertCache::arrived(uint32_t unit) { entry(unit).state = State::here; }

void ExpertCache::failed(uint32_t unit, const std::string& why) {
  Entry& each = entry(unit);
  slots_[each.size].units[static_cast<size_t>(each.slot)] = kNone;
  each.slot = -1;
  each.by_guess = false;
  each.state = each.wanted ? State::failed : State::absent;
  if (each.wanted) failures_[unit] = why;
}

const uint8_t* ExpertCache::find(uint32_t unit) {
  Entry& each = entry(unit);
  if (each.state == State::here) return slot_of(each);
  if (each.state != State::failed) return nullptr;
  each.state = State::absent;
  each.wanted = false;
  const std::string why = failures_[unit];
  failures_.erase(unit);
  throw Error("artifact", why);
}

void ExpertCache::pin(uint32_t unit) {
  Entry& each = entry(unit);
  if (!each.pinned) pinned_.push_back(unit);
  each.pinned = true;
  each.wanted = false;
}

int64_t ExpertCache::unpin() {
  const int64_t pinned = static_cast<int64_t>(pinned_.size());
  for (uint32_t unit : pinned_) entry(unit).pinned = false;
  pinned_.clear();
  return pinned;
}

int64_t ExpertCache::pins(uint32_t unit) const {
  return std::max<int64_t>(1, static_cast<int64_t>(slots_[entries_[unit].size].units.size()) / 2);
}

}  // namespace deepmnn
