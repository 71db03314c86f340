#include "platform/linux/faults.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "platform/linux/page.h"
#include "platform/threads.h"

namespace deepmnn {
namespace {

std::atomic<WatchedRange*> ranges{nullptr};  // entries are used again but never freed: the handler may be on its way
std::atomic<const struct sigaction*> previous{nullptr};  // the handler that was there, null for none
std::atomic<bool> installed{false};                      // at any time before

// From here to the end of the file's mapping zeros take the place of its pages: whether it is one that is watched.
bool replace_pages(uintptr_t address) {
  for (WatchedRange* range = ranges.load(std::memory_order_acquire); range; range = range->next) {
    const uintptr_t begin = range->begin.load(std::memory_order_acquire);
    const uintptr_t end = range->end.load(std::memory_order_acquire);
    if (begin == 0 || address < begin || address >= end) continue;
    if (range->begin.load(std::memory_order_acquire) != begin) continue;  // it has just become another one
    range->fault.store(address, std::memory_order_relaxed);
    range->damaged.store(true, std::memory_order_relaxed);
    const uintptr_t page = address / page_nbytes() * page_nbytes();
    constexpr int kFlags = MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    return mmap(reinterpret_cast<void*>(page), end - page, PROT_READ, kFlags, -1, 0) != MAP_FAILED;
  }
  return false;
}

// Asked through a call that reads the address and then refuses the rest.
bool readable(uintptr_t address) {
#if defined(SYS_rt_sigprocmask)
  constexpr int kNoSuchWay = ~0;
  return syscall(SYS_rt_sigprocmask, kNoSuchWay, address, nullptr, size_t{8}) == 0 || errno != EFAULT;
#else
  return true;
#endif
}

// Whether a file that is watched has lost its last page: by all cuts but those inside that page.
bool any_is_cut() {
  for (WatchedRange* range = ranges.load(std::memory_order_acquire); range; range = range->next) {
    if (range->begin.load(std::memory_order_acquire) != 0 && !readable(range->end - page_nbytes())) return true;
  }
  return false;
}

void set_default() {
  struct sigaction action = {};
  action.sa_handler = SIG_DFL;
  sigaction(SIGBUS, &action, nullptr);
}

void pass_on(int signal, siginfo_t* info, void* context) {
  const struct sigaction* const before = previous.load(std::memory_order_acquire);
  if (before && before->sa_flags & SA_SIGINFO) return before->sa_sigaction(signal, info, context);
  if (before && before->sa_handler != SIG_DFL && before->sa_handler != SIG_IGN) return before->sa_handler(signal);
  const bool sent = info->si_code <= 0;
  if (sent && before && before->sa_handler == SIG_IGN) return;
  set_default();
  if (sent) raise(signal);  // a fault comes again by itself
}

void on_bus_error(int signal, siginfo_t* info, void* context) {
  const int error = errno;
  bool done = false;
  if (info->si_code > 0 && info->si_code != BUS_ADRALN) {
    done = replace_pages(reinterpret_cast<uintptr_t>(info->si_addr));
  } else if (info->si_code == SI_TKILL && info->si_pid == getpid()) {
    // A handler that was installed after this one (Python's faulthandler.enable()) has had the fault and raises it
    // again, without its address. It comes once more, here first, when this one and that one return.
    done = any_is_cut();
  }
  errno = error;
  if (!done) pass_on(signal, info, context);
}

bool is_ours(const struct sigaction& action) {
  return action.sa_flags & SA_SIGINFO && action.sa_sigaction == on_bus_error;
}

// Once, and again when somebody has taken it away. Another handler on top of it stays: it hands on to this one, and two
// that hand on to each other would never end.
void install() {
  struct sigaction before;
  if (sigaction(SIGBUS, nullptr, &before) != 0 || is_ours(before)) return;
  const bool handled = before.sa_flags & SA_SIGINFO || (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN);
  if (handled && installed) return;
  struct sigaction action = {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  if (sigaction(SIGBUS, &action, &before) != 0 || is_ours(before)) return;
  previous.store(new struct sigaction(before), std::memory_order_release);  // stays: a handler may be reading it
  installed = true;
}

WatchedRange* new_entry() {
  for (WatchedRange* range = ranges.load(std::memory_order_acquire); range; range = range->next) {
    if (!range->taken.exchange(true, std::memory_order_acquire)) return range;
  }
  WatchedRange* const range = new WatchedRange;
  range->next = ranges.load(std::memory_order_relaxed);
  while (!ranges.compare_exchange_weak(range->next, range, std::memory_order_release)) {
  }
  return range;
}

}  // namespace

WatchedRange* watch_range(const uint8_t* begin, uint64_t nbytes) {
  install();
  receive_faults();
  WatchedRange* const range = new_entry();
  const uintptr_t first = reinterpret_cast<uintptr_t>(begin), page = page_nbytes();
  range->damaged.store(false, std::memory_order_relaxed);
  range->end.store(first + (nbytes + page - 1) / page * page, std::memory_order_release);
  range->begin.store(first, std::memory_order_release);
  return range;
}

void unwatch_range(WatchedRange* range) {
  range->begin.store(0, std::memory_order_release);
  range->taken.store(false, std::memory_order_release);
}

}  // namespace deepmnn
