#include "platform/memory.h"

#include <cstring>
#include <limits>
#include <new>

#include "runtime/fail.h"

namespace deepmnn {
namespace {

constexpr std::align_val_t kAlign{64};

}  // namespace

int64_t available_memory(const std::string&) { return INT64_MAX; }

Block allocate_zeroed(int64_t nbytes) {
  if (static_cast<uint64_t>(nbytes) > std::numeric_limits<size_t>::max() / 2) return {};
  const size_t size = static_cast<size_t>(nbytes);
  void* base = operator new(size, kAlign, std::nothrow);
  if (!base) return {};
  return Block(static_cast<uint8_t*>(std::memset(base, 0, size)), FreeBlock{base});
}

void FreeBlock::operator()(uint8_t*) const { operator delete(base, kAlign); }

void place_pages(const uint8_t*, const uint8_t*, Placement, const std::vector<int>&) {
  fail_request("memory cannot be placed on a node", "a platform with memory nodes; or numa off");
}

std::vector<int> nodes_of_pages(const uint8_t*, const uint8_t*) { return {}; }

int64_t resident_nbytes(const uint8_t* begin, const uint8_t* end) { return end - begin; }

}  // namespace deepmnn
