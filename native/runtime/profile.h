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
  int64_t stolen = 0;    // of the pieces: those from the part of another worker
  int64_t own_ns = 0;    // in pieces of its own part
  int64_t steal_ns = 0;  // in those of others, and looking for them
  int64_t wait_ns = 0;   // the caller's, until the last helper has left
};

enum class Doing : int64_t { zone, own, stolen, waiting };

// What one worker did for a while.
struct Span {
  int64_t begin_ns, end_ns;
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
    int64_t calls = 0, ns = 0;
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

  // The caller goes on to a zone, or is done with all.
  void enter(size_t zone) {
    const int64_t now = now_ns();
    close(now);
    zone_ = zone;
    since_ns_ = now;
  }
  void leave() {
    close(now_ns());
    zone_ = kNone;
  }

  // Of the pool. A worker has run `own` pieces of its part until own_end_ns, then `stolen` others.
  void worked(int worker, int64_t own, int64_t stolen, int64_t begin_ns, int64_t own_end_ns, int64_t end_ns);
  // The caller has run all pieces by itself.
  void alone(int64_t pieces) {
    if (zone_ != kNone) workers_[0].work[zone_].pieces += pieces;
  }
  void waited(int64_t begin_ns, int64_t end_ns);

 private:
  static constexpr size_t kNone = SIZE_MAX;

  void close(int64_t now) {
    if (zone_ == kNone) return;
    zones_[zone_].calls += 1;
    zones_[zone_].ns += now - since_ns_;
    remember(workers_[0], {since_ns_, now, 0, Doing::zone, 0});
  }
  void remember(Worker& worker, Span span) {
    if (worker.spans.empty()) return;
    span.zone = static_cast<int64_t>(zone_);
    worker.spans[static_cast<size_t>(worker.spanned++) % worker.spans.size()] = span;
  }

  std::vector<Zone> zones_;
  std::vector<Worker> workers_;
  size_t zone_ = kNone;  // written between dispatches
  int64_t since_ns_ = 0;
};

}  // namespace deepmnn
