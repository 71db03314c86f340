// Arenas and scratch: alignment, no growth once warm, and no promise the machine cannot keep.
#include "runtime/memory.h"

#include <cstring>
#include <string>

#include "runtime/error.h"
#include "tests/check.h"

namespace deepmnn {
namespace {

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 64 == 0; }

void memory_is_aligned_and_zero() {
  for (int64_t nbytes : {0, 1, 63, 64, 65, 100000}) {
    const Memory memory(nbytes, "test");
    CHECK(aligned(memory.data()) && memory.nbytes() == nbytes);
    for (int64_t i = 0; i < nbytes; ++i) CHECK(memory.data()[i] == 0);
  }
}

void arenas_only_grow() {
  Arena arena;
  uint8_t* large = arena.reserve(1000, "test");
  CHECK(arena.reserve(10, "test") == large);
  CHECK(arena.reserve(1000, "test") == large);
  std::memset(arena.reserve(1 << 20, "test"), 1, 1 << 20);
}

// What was taken stays valid while more is taken; a warm round takes the same addresses again.
void scratch_settles() {
  Scratch scratch;
  int64_t* first[3] = {};
  for (int round = 0; round < 3; ++round) {
    scratch.reset();
    first[round] = scratch.take<int64_t>(5);
    for (int64_t i = 0; i < 5; ++i) first[round][i] = i;
    for (int64_t count : {1, 100, 30000, 7, 500000}) {
      uint8_t* more = scratch.take<uint8_t>(count);
      CHECK(aligned(more));
      std::memset(more, 0xFF, static_cast<size_t>(count));
    }
    for (int64_t i = 0; i < 5; ++i) CHECK(first[round][i] == i);
  }
  CHECK(first[1] == first[2]);
}

template <class Function>
void check_refused(Function&& function) {
  bool refused = false;
  try {
    function();
  } catch (const Error& error) {
    refused = error.kind() == "request";
  }
  CHECK(refused);
}

void too_much_is_refused() {
  CHECK(available_memory() > 0);
  check_refused([] { Memory memory(int64_t{1} << 60, "test"); });
  check_refused([] { Scratch().take<int64_t>(int64_t{1} << 61); });
  Arena arena;
  check_refused([&] { arena.reserve(int64_t{1} << 60, "test"); });
  arena.reserve(100, "test")[99] = 1;
}

}  // namespace
}  // namespace deepmnn

int main() {
  using namespace deepmnn;
  memory_is_aligned_and_zero();
  arenas_only_grow();
  scratch_settles();
  too_much_is_refused();
}
