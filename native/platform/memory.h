// Memory as the operating system gives it: how much is left, zeroed blocks, and which node a page lies on.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace deepmnn {

// Bytes this process could still use: the system's available memory or what its control group leaves, whichever is
// less. INT64_MAX where neither can be read. root: where /proc and /sys lie, for tests.
int64_t available_memory(const std::string& root = "");

struct FreeBlock {
  void* base = nullptr;  // what the allocator gave
  void operator()(uint8_t* block) const;
};
using Block = std::unique_ptr<uint8_t, FreeBlock>;

// Zeroed bytes, aligned to 64; null where the system refuses. Pages are only taken when they are written to, large
// ones for a large block, where the platform can.
Block allocate_zeroed(int64_t nbytes);

// Whether pages fill the first node that has room, or take turns.
enum class Placement { prefer, interleave };

// Asks for the pages that begin in [begin, end) to lie on these nodes, by id. Throws Error("request") when the system
// cannot.
void place_pages(const uint8_t* begin, const uint8_t* end, Placement placement, const std::vector<int>& nodes);

// The node id of each page of [begin, end), negative for one that has no memory yet; empty where the system does not
// tell.
std::vector<int> nodes_of_pages(const uint8_t* begin, const uint8_t* end);

// Bytes of the pages in [begin, end) that are in memory; all of them where the system does not tell.
int64_t resident_nbytes(const uint8_t* begin, const uint8_t* end);

}  // namespace deepmnn
