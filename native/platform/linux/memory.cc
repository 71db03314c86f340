#include "platform/memory.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "platform/linux/cgroup.h"
#include "platform/linux/page.h"
#include "platform/linux/read.h"
#include "runtime/fail.h"

namespace deepmnn {
namespace {

constexpr uintptr_t kAlign = 64;
constexpr int64_t kHuge = int64_t{4} << 20;  // from here on large pages pay

// Of linux/mempolicy.h, which not every machine has.
constexpr int kPreferred = 1, kInterleave = 3, kMove = 2;
constexpr int kMostNodes = 1024;

uintptr_t page_up(const uint8_t* address) {
  return (reinterpret_cast<uintptr_t>(address) + page_nbytes() - 1) / page_nbytes() * page_nbytes();
}

}  // namespace

int64_t available_memory(const std::string& root) {
  const int64_t kib = read_field(root + "/proc/meminfo", "MemAvailable:");
  return std::min(kib == kNoNumber ? INT64_MAX : kib * 1024, group_memory(root));
}

Block allocate_zeroed(int64_t nbytes) {
  void* base = std::calloc(static_cast<size_t>(nbytes) + kAlign, 1);
  if (!base) return {};
  const uintptr_t address = reinterpret_cast<uintptr_t>(base);
  constexpr uintptr_t kPage = 4096;
  const uintptr_t first = (address + kPage - 1) / kPage * kPage, last = (address + nbytes) / kPage * kPage;
  if (nbytes >= kHuge) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a wish: may be refused
  return Block(reinterpret_cast<uint8_t*>((address + kAlign - 1) / kAlign * kAlign), FreeBlock{base});
}

void FreeBlock::operator()(uint8_t*) const { std::free(base); }

// A library for one system call is not worth a dependency.
void place_pages(const uint8_t* begin, const uint8_t* end, Placement placement, const std::vector<int>& nodes) {
  const uintptr_t first = page_up(begin), last = page_up(end);
  if (first >= last) return;
  int error = ENOSYS;
#if defined(SYS_mbind)
  constexpr int kBits = 8 * sizeof(unsigned long);
  unsigned long mask[kMostNodes / kBits] = {};
  for (int node : nodes) {
    if (node < kMostNodes) mask[node / kBits] |= 1ul << (node % kBits);
  }
  const int policy = placement == Placement::prefer ? kPreferred : kInterleave;
  // The kernel takes one bit less than it is told.
  error = syscall(SYS_mbind, first, last - first, policy, mask, kMostNodes + 1ul, kMove) == 0 ? 0 : errno;
#endif
  if (error != 0) {
    fail_request(
        std::string("memory cannot be placed on a node (mbind: ") + std::strerror(error) + ")",
        "a kernel with NUMA and, in a container, the right to use it (docker: --cap-add SYS_NICE); or numa off");
  }
}

std::vector<int> nodes_of_pages([[maybe_unused]] const uint8_t* begin, [[maybe_unused]] const uint8_t* end) {
  std::vector<int> nodes;
#if defined(SYS_move_pages)
  const uintptr_t page = page_nbytes();
  std::vector<void*> pages;
  for (uintptr_t at = reinterpret_cast<uintptr_t>(begin) / page * page; at < reinterpret_cast<uintptr_t>(end);
       at += page)
    pages.push_back(reinterpret_cast<void*>(at));
  nodes.resize(pages.size());
  if (syscall(SYS_move_pages, 0, pages.size(), pages.data(), nullptr, nodes.data(), 0) != 0) nodes.clear();
#endif
  return nodes;
}

int64_t resident_nbytes(const uint8_t* begin, const uint8_t* end) {
  constexpr uintptr_t kPages = 4096;  // of one question
  unsigned char in_memory[kPages];
  const uintptr_t page = page_nbytes(), first = reinterpret_cast<uintptr_t>(begin) / page * page, last = page_up(end);
  int64_t resident = 0;
  for (uintptr_t at = first; at < last; at += kPages * page) {
    const uintptr_t pages = std::min(kPages, (last - at) / page);
    if (mincore(reinterpret_cast<void*>(at), pages * page, in_memory) != 0) return end - begin;
    for (uintptr_t i = 0; i < pages; ++i) resident += in_memory[i] & 1 ? static_cast<int64_t>(page) : 0;
  }
  return std::min<int64_t>(resident, end - begin);
}

}  // namespace deepmnn
