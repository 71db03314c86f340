// Where the time of steps goes. A model has a Profile only while somebody asks for one; without it no clock is read for
// it. Time goes to one zone after another: a program's instructions, in order, then the parts of a step around them.
//
// Each worker writes to memory of its own, all of it taken when the Profile is made: no lock, no allocation. The caller
// reads between two dispatches.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/clock.h"

namespace deepmnn {

// The zones that are no instruction.
enum class Part : int { checks, placing, ropes, sampling };
constexpr int kParts = 4;
constexpr const char* kPartNames[kParts] = {"checks", "placing", "rope tables", "sampling"};

// What one worker did in one zone. Worker 0 is the caller: what it has not waited or stolen it has worked.
struct Work {
  int64_t pieces = 0;
  int64_t stolen = 0;   // of the pieces: those from the part of another worker
  int64_t own = 0;      // time in pieces of its own part; the caller's is not counted
  int64_t steal = 0;    // time in those of others, and looking for them
  int64_t wait_ns = 0;  // the caller's, until the last helper has left; in nanoseconds, which the pool has anyway
};

enum class Doing : int64_t { zone, own, stolen, waiting };

// What one worker did for a while.
struct Span {
  int64_t begin, end;
  int64_t zone;
  Doing doing;
  int64_t pieces;
};

class Profile {
 public:
  // spans: how many each worker remembers, the latest ones.
  Profile(int workers, int64_t instructions, int64_t spans)
      : zones_(static_cast<size_t>(instructions) + kParts), workers_(static_cast<size_t>(workers)) {
    for (Worker& worker : workers_) {
      worker.work.resize(zones_.size());
      worker.spans.resize(static_cast<size_t>(spans));
    }
  }

  struct Zone {
    int64_t calls = 0, time = 0;
  };
  struct alignas(64) Worker {
    std::vector<Work> work;   // [zones]
    std::vector<Span> spans;  // a ring
    int64_t spanned = 0;      // how many there have been: the next one goes to spanned % spans.size()
  };
  const std::vector<Zone>& zones() const { return zones_; }
  const std::vector<Worker>& workers() const { return workers_; }
  size_t zone_of(Part part) const { return zones_.size() - kParts + static_cast<size_t>(part); }
  void reset();

  // What all times are: readings of this clock.
  const QuickClock& clock() const { return clock_; }
  int64_t now() const { return clock_.now(); }
  bool keeps_spans() const { return !workers_[0].spans.empty(); }

  // The caller goes on to a zone, or is done with all.
  void enter(size_t zone) {
    const int64_t now = clock_.now();
    close(now);
    zone_ = zone;
    since_ = now;
  }
  void leave() {
    close(clock_.now());
    zone_ = kNone;
  }

  // Of the pool. A worker has run `own` pieces of its part, from begin to own_end, and then `stolen` others. The caller
  // of a profile that keeps no spans need not look at the clock unless it steals: then begin is 0.
  void worked(int worker, int64_t own, int64_t stolen, int64_t begin, int64_t own_end, int64_t end);
  // The caller has run all pieces by itself.
  void alone(int64_t pieces) {
    if (zone_ != kNone) workers_[0].work[zone_].pieces += pieces;
  }
  // For so long; since `begin` of the clock, where spans are kept.
  void waited(int64_t ns, int64_t begin);

 private:
  static constexpr size_t kNone = SIZE_MAX;

  void close(int64_t now) {
    if (zone_ == kNone) return;
    zones_[zone_].calls += 1;
    zones_[zone_].time += now - since_;
    if (keeps_spans()) remember(workers_[0], {since_, now, 0, Doing::zone, 0});
  }
  void remember(Worker& worker, Span span) {
    span.zone = static_cast<int64_t>(zone_);
    worker.spans[static_cast<size_t>(worker.spanned++) % worker.spans.size()] = span;
  }

  QuickClock clock_;
  std::vector<Zone> zones_;
  std::vector<Worker> workers_;
  size_t zone_ = kNone;  // written between dispatches
  int64_t since_ = 0;
};

}  // namespace deepmnn
