#include "runtime/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <string>

#include "runtime/fail.h"

namespace deepmnn {
namespace {

constexpr int64_t kAlign = 64;
constexpr int64_t kUnknown = std::numeric_limits<int64_t>::max();
constexpr int64_t kHuge = int64_t{4} << 20;        // from here on large pages pay
constexpr int64_t kUnchecked = int64_t{64} << 20;  // smaller blocks are not worth reading /proc for

int64_t read_number(const std::string& path) {
  std::ifstream file(path);
  int64_t value = 0;
  return file >> value ? value : kUnknown;
}

// The value of `key` in a file of "key value ..." lines; kUnknown without it.
int64_t read_field(const char* path, const std::string& key) {
  std::ifstream file(path);
  std::string name, rest;
  int64_t value = 0;
  while (file >> name >> value) {
    if (name == key) return value;
    std::getline(file, rest);
  }
  return kUnknown;
}

int64_t system_available() {
  const int64_t kib = read_field("/proc/meminfo", "MemAvailable:");
  return kib == kUnknown ? kUnknown : kib * 1024;
}

// What a control group leaves. Clean file pages count as used there but go when memory is needed.
int64_t group_available(const std::string& folder, const char* limit_file, const char* used_file, const char* files) {
  const int64_t limit = read_number(folder + limit_file), used = read_number(folder + used_file);
  if (limit == kUnknown || used == kUnknown) return kUnknown;
  const int64_t cached = read_field((folder + "memory.stat").c_str(), files);
  return std::max<int64_t>(0, limit - used + (cached == kUnknown ? 0 : cached));
}

}  // namespace

int64_t available_memory() {
  const int64_t v2 = group_available("/sys/fs/cgroup/", "memory.max", "memory.current", "inactive_file");
  const int64_t v1 = group_available("/sys/fs/cgroup/memory/", "memory.limit_in_bytes", "memory.usage_in_bytes",
                                     "total_inactive_file");
  return std::min({system_available(), v1, v2});
}

int64_t nbytes_of(int64_t count, int64_t item_nbytes) {
  int64_t nbytes = 0;
  const bool countable = !__builtin_mul_overflow(count, item_nbytes, &nbytes) && nbytes <= kUnknown / 2;
  return countable ? nbytes : kUnknown / 2;
}

Memory::Memory(int64_t nbytes, const char* what) {
  const int64_t available = nbytes > kUnchecked ? available_memory() : kUnknown - kAlign;
  if (nbytes <= available) block_.reset(std::calloc(static_cast<size_t>(nbytes + kAlign), 1));
  if (!block_) {
    fail_request(std::string(what) + " of " + std::to_string(nbytes) + " bytes",
                 "at most the memory available (" + std::to_string(available_memory()) + " bytes)");
  }
  const uintptr_t address = reinterpret_cast<uintptr_t>(block_.get());
  aligned_ = reinterpret_cast<uint8_t*>((address + kAlign - 1) / kAlign * kAlign);
  nbytes_ = nbytes;
#if defined(__linux__)
  constexpr uintptr_t kPage = 4096;
  const uintptr_t first = (address + kPage - 1) / kPage * kPage, last = (address + nbytes) / kPage * kPage;
  if (nbytes >= kHuge) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a wish: may be refused
#endif
}

void Memory::Free::operator()(void* pointer) const { std::free(pointer); }

void Scratch::reset() {
  if (blocks_.size() > 1) {
    const int64_t total = full_ + blocks_.back().nbytes();
    blocks_.clear();
    blocks_.emplace_back(total, "working memory");
  }
  used_ = full_ = 0;
}

uint8_t* Scratch::take_bytes(int64_t count, int64_t item_nbytes) {
  const int64_t nbytes = (nbytes_of(count, item_nbytes) + kAlign - 1) / kAlign * kAlign;
  if (blocks_.empty() || used_ + nbytes > blocks_.back().nbytes()) {
    Memory block(std::max<int64_t>(nbytes, 1 << 16), "working memory");
    if (!blocks_.empty()) full_ += blocks_.back().nbytes();
    blocks_.push_back(std::move(block));
    used_ = 0;
  }
  uint8_t* start = blocks_.back().data() + used_;
  used_ += nbytes;
  return start;
}

}  // namespace deepmnn
