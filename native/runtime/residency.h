// Where the bytes of weights are while a step runs. Ops keep ids from load and ask for bytes at each step, so a
// residency is free to have them mapped, or to bring in only what is asked for.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"

namespace deepmnn {

class Residency {
 public:
  virtual ~Residency() = default;

  // Points out[i].data at the bytes of weight ids[i] and leaves the rest of out[i] alone. Those bytes stay in place and
  // unchanged until unpin(): an op may pin several times and use it all. Weights that are needed together are best
  // asked for together. Called by the thread that runs the step, never inside a dispatch; allocates nothing once warm.
  // Throws Error("artifact") for bytes that cannot be read, or leaves that to check().
  virtual void pin(const uint32_t* ids, int64_t n, Weight* out) = 0;

  // Nobody uses what was pinned any more: the op that asked has ended. May be called with nothing pinned.
  virtual void unpin() = 0;

  // Throws Error("artifact") when bytes that were pinned may not have been the weight's: then nobody may believe what
  // was made of them.
  virtual void check() const {}
};

}  // namespace deepmnn
