// Where the bytes of weights are while a step runs. Ops keep ids from load and ask for bytes at each step, so a
// residency is free to have them mapped, or to bring in only what is asked for.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"
#include "runtime/read_log.h"

namespace deepmnn {

// What a residency that reads files has done since it was made.
struct StreamCounts {
  int64_t reads = 0;
  int64_t read_nbytes = 0;
  int64_t read_ns = 0;                         // while at least one read was on its way
  int64_t wait_ns = 0;                         // while a step waited for one
  int64_t expert_hits = 0, expert_misses = 0;  // of the experts that steps chose: in memory by then, or not
  int64_t guesses = 0, good_guesses = 0;       // experts read before they were chosen, and those that then were
};

class Residency {
 public:
  virtual ~Residency() = default;

  // Points out[i].data at the bytes of weight ids[i] and leaves the rest of out[i] alone. Those bytes stay in place and
  // unchanged until unpin(): an op may pin several times and use it all. Weights that are needed together are best
  // asked for together. Called by the thread that runs the step, never inside a dispatch; allocates nothing once warm.
  // Throws Error("artifact") for bytes that cannot be read, or leaves that to check().
  virtual void pin(const uint32_t* ids, int64_t n, Weight* out) = 0;

  // The same for groups of `each` weights that are used one group after another: group g has ids[g * each ..) and
  // out[g * each ..). Pins at least one of groups[0 .. n), and those which are in memory, moves them to the front and
  // returns how many they are.
  virtual int64_t pin_some(const uint32_t* ids, int64_t each, int32_t* groups, int64_t n, Weight* out) {
    for (int64_t i = 0; i < n; ++i) pin(ids + groups[i] * each, each, out + groups[i] * each);
    return n;
  }

  // Points blocks[i] at the block of kBlockRows rows of a matrix in which row rows[i] lies, n at most kTableRows. Such
  // blocks are pinned one call at a time: the next one takes them away.
  virtual void pin_rows(uint32_t id, const int32_t* rows, int64_t n, const uint8_t** blocks) = 0;

  // Nobody uses what was pinned any more: the op that asked has ended. May be called with nothing pinned.
  virtual void unpin() = 0;

  // Throws Error("artifact") when bytes that were pinned may not have been the weight's: then nobody may believe what
  // was made of them.
  virtual void check() const {}

  // Whether it gains by being told the following.
  virtual bool streams() const { return false; }
  // A step begins, of so many tokens: what was foretold before no longer holds.
  virtual void begin_step(int64_t) {}
  // Later ops of this step will pin these n routed weights, for uses[i] rows each of the `rows` that were routed.
  virtual void expect(const uint32_t*, const int32_t*, int64_t /*n*/, int64_t /*rows*/) {}
  // They may: those that are named first before others.
  virtual void guess(const uint32_t*, int64_t) {}
  virtual void forget_guesses() {}

  virtual StreamCounts counts() const { return {}; }

  // Remembers its latest reads and waits from now on, as many of each, on that clock; 0: no more.
  virtual void keep_reads(const QuickClock&, int64_t) {}
  virtual void forget_reads() {}
  virtual ReadLog read_log() const { return {}; }
};

// How many rows pin_rows brings at once.
constexpr int64_t kTableRows = 64;

}  // namespace deepmnn
