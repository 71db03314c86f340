// What was read of weights and who waited for it: the latest reads and waits, while a profile asks for them. It takes
// all of its memory when it is made, and knows nothing of threads: whoever writes to it holds a lock.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "runtime/clock.h"

namespace deepmnn {

enum class Cause : int64_t { wanted, guessed, ahead };

// One read of a unit, or of some rows of one. Times are readings of the log's clock.
struct ReadSpan {
  int64_t begin = 0, end = 0;
  int64_t nbytes = 0;
  uint32_t unit = 0;
  Cause cause = Cause::wanted;
  bool used = false;  // for a guess: a step wanted it
};

// A step stood still until this unit came; kNone: until all that was on its way had.
struct WaitSpan {
  static constexpr uint32_t kNone = UINT32_MAX;

  int64_t begin = 0, end = 0;
  uint32_t unit = kNone;
};

// Of a routed unit, since the log was made: how often steps chose it, when it was in memory and when it was not; and
// guesses of it that were read, and those that a step then wanted.
struct Choices {
  int64_t hits = 0, misses = 0, guesses = 0, good_guesses = 0;
};

class ReadLog {
 public:
  ReadLog() = default;
  // units: how many there are of what is read at once; spans: how many reads, and how many waits, it remembers.
  ReadLog(const QuickClock& clock, int64_t units, int64_t spans)
      : clock_(clock),
        since_(clock.now()),
        reads_(static_cast<size_t>(spans)),
        waits_(static_cast<size_t>(spans)),
        choices_(static_cast<size_t>(units)),
        last_read_(static_cast<size_t>(units), -1) {}

  bool is_on() const { return !reads_.empty(); }
  int64_t now() const { return clock_.now(); }

  // A read has ended; one that began before the log did counts from then on.
  void read(const ReadSpan& span) {
    last_read_[span.unit] = read_count_;
    ReadSpan& kept = reads_[index(read_count_++, reads_)];
    kept = span;
    kept.begin = std::max(span.begin, since_);
    kept.end = clock_.now();
  }
  void waited(int64_t begin, uint32_t unit) { waits_[index(wait_count_++, waits_)] = {begin, clock_.now(), unit}; }
  // Steps have chosen a unit.
  void chose(uint32_t unit, const Choices& more) {
    Choices& all = choices_[unit];
    all.hits += more.hits;
    all.misses += more.misses;
    all.good_guesses += more.good_guesses;
    const int64_t last = last_read_[unit];
    if (more.good_guesses == 0 || last < 0 || last + static_cast<int64_t>(reads_.size()) < read_count_) return;
    ReadSpan& read = reads_[index(last, reads_)];
    read.used = read.used || read.cause == Cause::guessed;
  }
  // A read of a guess begins.
  void guessed(uint32_t unit) {
    ++choices_[unit].guesses;
    last_read_[unit] = -1;
  }

  // Forgets all.
  void reset() {
    since_ = clock_.now();
    read_count_ = wait_count_ = 0;
    std::fill(choices_.begin(), choices_.end(), Choices{});
    std::fill(last_read_.begin(), last_read_.end(), -1);
  }

  // Of each unit.
  const std::vector<Choices>& choices() const { return choices_; }
  // How many have been forgotten, and f(span) of the others, oldest first.
  template <class F>
  int64_t each_read(F&& f) const {
    return each(reads_, read_count_, f);
  }
  template <class F>
  int64_t each_wait(F&& f) const {
    return each(waits_, wait_count_, f);
  }

 private:
  template <class T>
  static size_t index(int64_t number, const std::vector<T>& ring) {
    return static_cast<size_t>(number) % ring.size();
  }
  template <class T, class F>
  static int64_t each(const std::vector<T>& ring, int64_t count, F&& f) {
    const int64_t lost = std::max<int64_t>(0, count - static_cast<int64_t>(ring.size()));
    for (int64_t i = lost; i < count; ++i) f(ring[index(i, ring)]);
    return lost;
  }

  QuickClock clock_;
  int64_t since_ = 0;
  std::vector<ReadSpan> reads_;  // rings
  std::vector<WaitSpan> waits_;
  int64_t read_count_ = 0, wait_count_ = 0;
  std::vector<Choices> choices_;    // [units]
  std::vector<int64_t> last_read_;  // [units] its number, -1: none
};

}  // namespace deepmnn
