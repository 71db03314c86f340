#include "runtime/thread_pool.h"

#include <pthread.h>

#include <chrono>
#include <string>
#include <system_error>

#include "runtime/fail.h"

namespace deepmnn {
namespace {

constexpr uint64_t kOpen = uint64_t{1} << 31;
constexpr uint64_t kInside = kOpen - 1;
constexpr int kSpins = 4000;        // about 50 us: longer than the gap between two ops of a step
constexpr int kSpinsPerYield = 64;  // so that more threads than cores still make progress

// The pool and the worker whose chunk this thread is running.
struct Inside {
  const ThreadPool* pool = nullptr;
  int worker = 0;
};
thread_local Inside inside;

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

void spin(int turn) {
  if (turn % kSpinsPerYield == kSpinsPerYield - 1) {
    std::this_thread::yield();
  } else {
    pause();
  }
}

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// How often fork() has returned as the child on the way from the first process to this one.
std::atomic<uint32_t> forks{0};
[[maybe_unused]] const int forks_counted = pthread_atfork(nullptr, nullptr, [] { ++forks; });

uint64_t pack(uint32_t begin, uint32_t end) { return uint64_t{end} << 32 | begin; }

}  // namespace

ThreadPool::ThreadPool(int threads)
    : slots_(static_cast<size_t>(threads < 1 ? 1 : threads)), helpers_(std::make_unique<Helpers>()), forks_(forks) {
  std::vector<std::thread>& helpers = helpers_->threads;
  try {
    for (int worker = 1; worker < size(); ++worker) helpers.emplace_back([this, worker] { helper(worker); });
  } catch (const std::system_error&) {
    const size_t started = helpers.size();
    stop();
    fail_request(std::to_string(threads) + " threads", "at most the " + std::to_string(started) + " the system allows");
  }
}

ThreadPool::~ThreadPool() { stop(); }

bool ThreadPool::forked() const { return forks_ != forks.load(std::memory_order_relaxed); }

void ThreadPool::stop() {
  if (forked()) {
    static_cast<void>(helpers_.release());  // to join or destroy what only the parent has would wait for ever
    return;
  }
  {
    std::lock_guard<std::mutex> lock(helpers_->mutex);
    stop_ = true;
  }
  helpers_->wake.notify_all();
  for (std::thread& thread : helpers_->threads) thread.join();
  helpers_->threads.clear();
}

int64_t ThreadPool::helper_busy_ns() const {
  int64_t sum = 0;
  for (size_t worker = 1; worker < slots_.size(); ++worker)
    sum += slots_[worker].busy_ns.load(std::memory_order_relaxed);
  return sum;
}

void ThreadPool::dispatch(int64_t chunks, Call call) {
  if (chunks <= 0) return;
  if (chunks > UINT32_MAX) fail_request("a step with " + std::to_string(chunks) + " pieces of work", "fewer tokens");
  const bool nested = inside.pool == this;
  if (nested || size() == 1 || chunks == 1 || forked()) {
    const int worker = nested ? inside.worker : 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) call.invoke(call.self, chunk, worker);
    return;
  }
  open(static_cast<uint32_t>(chunks), call);
  work(0);
  close_and_wait();
  if (failed_.load(std::memory_order_relaxed)) {
    failed_ = false;
    std::exception_ptr error = std::move(error_);
    error_ = nullptr;
    std::rethrow_exception(error);
  }
}

void ThreadPool::open(uint32_t chunks, Call call) {
  call_ = call;
  const uint64_t parts = slots_.size();
  for (uint64_t part = 0; part < parts; ++part) {
    const uint32_t begin = static_cast<uint32_t>(chunks * part / parts);
    const uint32_t end = static_cast<uint32_t>(chunks * (part + 1) / parts);
    slots_[part].range.store(pack(begin, end), std::memory_order_relaxed);
  }
  const uint64_t epoch = (state_.load(std::memory_order_relaxed) >> 32) + 1;
  state_.store(epoch << 32 |
               kOpen);  // sequentially consistent, as is the sleeper's count: one of the two sees the other
  if (sleepers_.load() > 0) {
    std::lock_guard<std::mutex> lock(helpers_->mutex);
    helpers_->wake.notify_all();
  }
}

void ThreadPool::close_and_wait() {
  uint64_t state = state_.fetch_and(~kOpen, std::memory_order_acq_rel);
  if ((state & kInside) == 0) return;
  const int64_t start = now_ns();
  for (int turn = 0; (state_.load(std::memory_order_acquire) & kInside) != 0; ++turn) spin(turn);
  caller_wait_ns_ += now_ns() - start;
}

// Own part first, then everybody else's.
void ThreadPool::work(int worker) {
  const Inside outer = inside;
  inside = {this, worker};
  const int workers = size();
  while (run_one(slots_[worker], true, worker)) continue;
  for (int step = 1; step < workers; ++step) {
    Slot& victim = slots_[(worker + step) % workers];
    while (run_one(victim, false, worker)) continue;
  }
  inside = outer;
}

bool ThreadPool::run_one(Slot& slot, bool front, int worker) {
  uint64_t range = slot.range.load(std::memory_order_relaxed);
  uint32_t begin, end;
  do {
    begin = static_cast<uint32_t>(range);
    end = static_cast<uint32_t>(range >> 32);
    if (begin >= end) return false;
  } while (!slot.range.compare_exchange_weak(range, front ? pack(begin + 1, end) : pack(begin, end - 1),
                                             std::memory_order_relaxed));
  if (failed_.load(std::memory_order_relaxed)) return true;
  try {
    call_.invoke(call_.self, front ? begin : end - 1, worker);
  } catch (...) {
    std::lock_guard<std::mutex> lock(helpers_->mutex);
    if (!error_) error_ = std::current_exception();
    failed_.store(true, std::memory_order_relaxed);
  }
  return true;
}

void ThreadPool::helper(int worker) {
  uint64_t seen_epoch = 0;
  while (wait_for_work(seen_epoch)) {
    if (!join(seen_epoch)) continue;
    const int64_t start = now_ns();
    work(worker);
    slots_[worker].busy_ns.fetch_add(now_ns() - start, std::memory_order_relaxed);
    leave();
  }
}

// True when there is an epoch not seen yet, false when the pool stops.
bool ThreadPool::wait_for_work(uint64_t seen_epoch) {
  for (int turn = 0; turn < kSpins; ++turn) {
    if (stop_.load(std::memory_order_relaxed)) return false;
    if (state_.load(std::memory_order_relaxed) >> 32 != seen_epoch) return true;
    spin(turn);
  }
  std::unique_lock<std::mutex> lock(helpers_->mutex);
  sleepers_.fetch_add(1);
  helpers_->wake.wait(lock, [&] { return stop_.load() || state_.load() >> 32 != seen_epoch; });
  sleepers_.fetch_sub(1);
  return !stop_;
}

// Enters the current dispatch unless it is closed; either way it will not be looked at again.
bool ThreadPool::join(uint64_t& seen_epoch) {
  uint64_t state = state_.load(std::memory_order_relaxed);
  do {
    seen_epoch = state >> 32;
    if ((state & kOpen) == 0) return false;
  } while (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acquire, std::memory_order_relaxed));
  return true;
}

void ThreadPool::leave() { state_.fetch_sub(1, std::memory_order_release); }

}  // namespace deepmnn
