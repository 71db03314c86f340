// Grow-only, 64-byte aligned memory, asked for only when the machine has it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "platform/memory.h"

namespace deepmnn {

// Bytes of `count` items, and of two blocks; more than any machine has when that cannot be counted.
int64_t nbytes_of(int64_t count, int64_t item_nbytes);
int64_t sum_of(int64_t nbytes, int64_t more);

// Throws Error("request") naming `what` when the machine has not got that much.
void require_memory(int64_t nbytes, const char* what);
[[noreturn]] void fail_memory(int64_t nbytes, const char* what);

// A block of zeroed bytes. Pages are only taken when they are written to.
class Memory {
 public:
  Memory() = default;
  Memory(int64_t nbytes, const char* what);  // throws as require_memory does

  uint8_t* data() const { return block_.get(); }
  int64_t nbytes() const { return nbytes_; }

 private:
  Block block_;
  int64_t nbytes_ = 0;
};

// Who holds how much: what is held, what of it has pages, and the most that was needed at once.
struct MemoryUse {
  std::string owner;
  int64_t nbytes = 0, resident_nbytes = 0, peak_nbytes = 0;

  void add(const Memory& memory, int64_t peak);
};

// One arena of a step: reserve() keeps at least that much, and forgets what was inside when it has to grow.
class Arena {
 public:
  // How much of that it would have to ask for.
  int64_t missing(int64_t nbytes) const { return nbytes > memory_.nbytes() ? nbytes : 0; }
  uint8_t* reserve(int64_t nbytes, const char* what) {
    peak_ = std::max(peak_, nbytes);
    if (nbytes > memory_.nbytes()) {
      memory_ = Memory();
      memory_ = Memory(nbytes, what);
    }
    return memory_.data();
  }
  void use(MemoryUse& use, bool reset) {
    use.add(memory_, peak_);
    if (reset) peak_ = 0;
  }

 private:
  Memory memory_;
  int64_t peak_ = 0;  // what was asked for at once since somebody has looked
};

// Working memory of one op: take() as often as needed, reset() before the next op. What was taken stays where it is;
// after a reset one block holds as much as was ever needed, so a warm step allocates nothing.
class Scratch {
 public:
  // Room for `count` items, 64-byte aligned, holding whatever was there.
  template <class T>
  T* take(int64_t count) {
    return reinterpret_cast<T*>(take_bytes(count, sizeof(T)));
  }
  void reset();
  // What is taken after mark() is given back by rewind().
  struct Mark {
    size_t blocks = 0;
    int64_t used = 0;
  };
  Mark mark() const { return {blocks_.size(), used_}; }
  void rewind(const Mark& mark);
  void use(MemoryUse& use, bool reset);
  // One block of so many bytes, before anything is taken: then less is never held twice while it grows.
  void reserve(int64_t nbytes);

 private:
  uint8_t* take_bytes(int64_t count, int64_t item_nbytes);

  std::vector<Memory> blocks_;  // the last one is being filled
  int64_t used_ = 0;            // of the last block
  int64_t full_ = 0;            // bytes in the blocks before it
  int64_t peak_ = 0;            // of one op since somebody has looked
};

}  // namespace deepmnn
