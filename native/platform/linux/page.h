// The size of a page of memory.
#pragma once

#include <unistd.h>

#include <cstdint>

namespace deepmnn {

inline uintptr_t page_nbytes() { return static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)); }

}  // namespace deepmnn
