// The clock that durations are measured with, and a quicker one.
#pragma once

#include <chrono>
#include <cstdint>

#include "platform/ticks.h"

namespace deepmnn {

inline int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// The processor's counter where it is steady, else now_ns: what it shows becomes nanoseconds later.
class QuickClock {
 public:
  QuickClock() : counts_(has_steady_ticks()), begin_(now()), begin_ns_(now_ns()) {}

  int64_t now() const { return counts_ ? ticks() : now_ns(); }

  // Of what it has shown since it was made: nanoseconds for one of its units, and the time as now_ns tells it.
  class Reading {
   public:
    double ns_per_unit() const { return rate_; }
    int64_t ns_at(int64_t shown) const {
      return begin_ns_ + static_cast<int64_t>(static_cast<double>(shown - begin_) * rate_);
    }

   private:
    friend class QuickClock;
    Reading(double rate, int64_t begin, int64_t begin_ns) : rate_(rate), begin_(begin), begin_ns_(begin_ns) {}
    double rate_;
    int64_t begin_, begin_ns_;
  };
  Reading read() const;

 private:
  bool counts_;
  int64_t begin_, begin_ns_;
};

}  // namespace deepmnn
