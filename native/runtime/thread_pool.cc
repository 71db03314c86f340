#include "runtime/thread_pool.h"

#include <algorithm>
#include <string>
#include <system_error>

#include "platform/threads.h"
#include "runtime/clock.h"
#include "runtime/fail.h"

namespace deepmnn {
namespace {

constexpr uint64_t kOpen = uint64_t{1} << 31;
constexpr uint64_t kWaiting = uint64_t{1} << 30;  // the caller sleeps until the last helper leaves
constexpr uint64_t kInside = kWaiting - 1;
constexpr int64_t kHelperSpinNs = 50000;   // longer than the gap between two ops of a step
constexpr int64_t kCallerSpinNs = 20000;   // longer than the last piece of a busy helper mostly takes
constexpr int64_t kWorthWakingNs = 15000;  // a dispatch this long is worth the system call that wakes a helper
constexpr int kPausesPerLook = 16;         // at the clock
constexpr int64_t kStallNs = 200000;       // a longer wait may be for a helper that has lost its core
constexpr int64_t kStallPieces = 16;       // it is when it is longer than this many pieces take
constexpr int64_t kAloneStalls = 8;        // so many times as long the caller then does without helpers
constexpr int64_t kAloneNs = 50000000;     // or this long

// The pool and the worker whose piece this thread is running.
struct Inside {
  const ThreadPool* pool = nullptr;
  int worker = 0;
};
thread_local Inside inside;

// Looks again and again until done(), the time is up or useless(): whether it is done. It never yields: beside another
// busy process that gives away whole time slices, where a thread that sleeps is woken with priority.
template <class Done, class Useless>
bool spin_until(int64_t ns, Done&& done, Useless&& useless) {
  if (done()) return true;
  const int64_t end = now_ns() + ns;
  while (!useless() && now_ns() < end) {
    for (int i = 0; i < kPausesPerLook; ++i) {
      pause_hint();
      if (done()) return true;
    }
  }
  return false;
}

uint64_t pack(uint32_t begin, uint32_t end) { return uint64_t{end} << 32 | begin; }

}  // namespace

ThreadPool::ThreadPool(int threads, int processors, const std::function<void(int)>& start)
    : slots_(static_cast<size_t>(threads < 1 ? 1 : threads)),
      workers_(std::min(size(), processors > 0 ? processors : static_cast<int>(allowed_processors().size()))),
      helpers_(std::make_unique<Helpers>()),
      forks_(fork_count()) {
  std::vector<std::thread>& helpers = helpers_->threads;
  try {
    for (int worker = 1; worker < workers_; ++worker) {
      helpers.emplace_back([this, worker, start] {
        receive_faults();
        if (start) start(worker);
        helper(worker);
      });
    }
  } catch (const std::system_error&) {
    const size_t started = helpers.size();
    stop();
    fail_request(std::to_string(threads) + " threads", "at most the " + std::to_string(started) + " the system allows");
  }
}

ThreadPool::~ThreadPool() { stop(); }

bool ThreadPool::forked() const { return forks_ != fork_count(); }

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

void ThreadPool::dispatch(int64_t pieces, Call call) {
  if (pieces <= 0) return;
  if (pieces > UINT32_MAX) fail_request("a step with " + std::to_string(pieces) + " pieces of work", "fewer tokens");
  const bool nested = inside.pool == this;
  if (nested || workers_ == 1 || pieces == 1 || forked()) return alone(pieces, call, nested ? inside.worker : 0);
  start_ns_ = now_ns();
  if (start_ns_ < alone_until_ns_) return alone(pieces, call, 0);
  awake_ = false;
  open(static_cast<uint32_t>(pieces), call);
  if (last_ns_ > kWorthWakingNs) wake_sleepers();
  const int64_t done = work(0);
  close_and_wait(done);
  last_ns_ = now_ns() - start_ns_;
  if (failed_.load(std::memory_order_relaxed)) {
    failed_ = false;
    std::exception_ptr error = std::move(error_);
    error_ = nullptr;
    std::rethrow_exception(error);
  }
}

void ThreadPool::alone(int64_t pieces, Call call, int worker) {
  const Inside outer = inside;
  if (profile_ && outer.pool != this) profile_->alone(pieces);
  inside = {this, worker};
  try {
    for (int64_t piece = 0; piece < pieces; ++piece) call.invoke(call.self, piece, worker);
  } catch (...) {
    inside = outer;
    throw;
  }
  inside = outer;
}

void ThreadPool::open(uint32_t pieces, Call call) {
  call_ = call;
  caller_processor_.store(current_processor(), std::memory_order_relaxed);
  const uint64_t parts = static_cast<uint64_t>(workers_);
  for (uint64_t part = 0; part < parts; ++part) {
    const uint32_t begin = static_cast<uint32_t>(pieces * part / parts);
    const uint32_t end = static_cast<uint32_t>(pieces * (part + 1) / parts);
    slots_[part].range.store(pack(begin, end), std::memory_order_relaxed);
  }
  const uint64_t epoch = (state_.load(std::memory_order_relaxed) >> 32) + 1;
  // Sequentially consistent, as is the sleepers' count: one of the two sees the other.
  state_.store(epoch << 32 | kOpen);
}

// Between two pieces of the caller. A short dispatch is done before a sleeper could help; one that turns out long,
// after a short one, wakes them after all.
void ThreadPool::wake_late() {
  if (awake_ || now_ns() - start_ns_ < kWorthWakingNs) return;
  wake_sleepers();
}

void ThreadPool::wake_sleepers() {
  awake_ = true;
  if (sleepers_.load() == 0) return;
  std::lock_guard<std::mutex> lock(helpers_->mutex);
  helpers_->wake.notify_all();
}

// `pieces` of the dispatch were the caller's.
void ThreadPool::close_and_wait(int64_t pieces) {
  const uint64_t state = state_.fetch_and(~kOpen, std::memory_order_acq_rel);
  if ((state & kInside) == 0) return;
  const int64_t start = now_ns(), began = profile_ && profile_->keeps_spans() ? profile_->now() : 0;
  const auto all_left = [&] { return (state_.load(std::memory_order_acquire) & kInside) == 0; };
  if (!spin_until(kCallerSpinNs, all_left, [&] { return helper_is_here(); })) {
    // A helper has lost its core in the middle of a piece: it may have this one.
    std::unique_lock<std::mutex> lock(helpers_->mutex);
    state_.fetch_or(kWaiting);
    helpers_->all_left.wait(lock, all_left);
  }
  const int64_t end = now_ns(), waited = end - start;
  if (profile_) profile_->waited(waited, began);
  if (pieces > 0 && waited > std::max(kStallNs, (start - start_ns_) / pieces * kStallPieces)) {
    alone_until_ns_ = end + std::min(waited * kAloneStalls, kAloneNs);
  }
}

// Whether a helper that is inside was on the caller's processor when it entered: it cannot go on while the caller
// spins.
bool ThreadPool::helper_is_here() const {
  const int here = current_processor();
  if (here < 0) return false;
  for (int worker = 1; worker < workers_; ++worker) {
    if (slots_[static_cast<size_t>(worker)].processor.load(std::memory_order_relaxed) == here) return true;
  }
  return false;
}

// Own part first, then everybody else's. Returns how many pieces that were.
int64_t ThreadPool::work(int worker) {
  const Inside outer = inside;
  inside = {this, worker};
  int64_t pieces;
  if (profile_) {
    pieces = work_counted(worker);
  } else {
    pieces = run_all(slots_[static_cast<size_t>(worker)], true, worker, 0);
    pieces += steal(worker, pieces);
  }
  inside = outer;
  return pieces;
}

// It looks at the clock between its own pieces and others' only when there are others. The caller's own time is counted
// by zone.
int64_t ThreadPool::work_counted(int worker) {
  const bool timed = worker > 0 || profile_->keeps_spans();
  const int64_t begin = timed ? profile_->now() : 0;
  const int64_t own = run_all(slots_[static_cast<size_t>(worker)], true, worker, 0);
  const bool left = pieces_left();
  const int64_t own_end = left ? profile_->now() : 0;
  const int64_t stolen = left ? steal(worker, own) : 0;
  const int64_t end = timed || stolen > 0 ? profile_->now() : own_end;
  profile_->worked(worker, own, stolen, begin, left ? own_end : end, end);
  return own + stolen;
}

bool ThreadPool::pieces_left() const {
  for (const Slot& slot : slots_) {
    const uint64_t range = slot.range.load(std::memory_order_relaxed);
    if (static_cast<uint32_t>(range) < static_cast<uint32_t>(range >> 32)) return true;
  }
  return false;
}

// What is left of the others' parts, by a worker who has run `before` pieces. Returns how many pieces that were.
int64_t ThreadPool::steal(int worker, int64_t before) {
  int64_t pieces = before;
  for (int step = 1; step < workers_; ++step) {
    pieces += run_all(slots_[static_cast<size_t>((worker + step) % workers_)], false, worker, pieces);
  }
  return pieces - before;
}

// What is left of a part, by a worker who has run `before` pieces. Returns how many pieces that were.
int64_t ThreadPool::run_all(Slot& slot, bool front, int worker, int64_t before) {
  int64_t pieces = before;
  while (run_one(slot, front, worker)) {
    ++pieces;
    // After pieces 1, 2, 4, 8 ...: tiny ones are not worth a look at the clock each.
    if (worker == 0 && (pieces & (pieces - 1)) == 0) wake_late();
  }
  return pieces - before;
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
    Slot& slot = slots_[static_cast<size_t>(worker)];
    slot.processor.store(current_processor(), std::memory_order_relaxed);
    work(worker);
    slot.processor.store(-1, std::memory_order_relaxed);
    leave();
  }
}

// True when there is an epoch not seen yet, false when the pool stops.
bool ThreadPool::wait_for_work(uint64_t seen_epoch) {
  const auto news = [&] {
    return stop_.load(std::memory_order_relaxed) || state_.load(std::memory_order_relaxed) >> 32 != seen_epoch;
  };
  const auto in_the_way = [&] {
    const int here = current_processor();
    return here >= 0 && here == caller_processor_.load(std::memory_order_relaxed);
  };
  if (!spin_until(kHelperSpinNs, news, in_the_way)) {
    std::unique_lock<std::mutex> lock(helpers_->mutex);
    sleepers_.fetch_add(1);
    helpers_->wake.wait(lock, [&] { return stop_.load() || state_.load() >> 32 != seen_epoch; });
    sleepers_.fetch_sub(1);
  }
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

void ThreadPool::leave() {
  const uint64_t state = state_.fetch_sub(1, std::memory_order_acq_rel);
  if ((state & kWaiting) == 0 || (state & kInside) != 1) return;
  std::lock_guard<std::mutex> lock(helpers_->mutex);
  helpers_->all_left.notify_one();
}

}  // namespace deepmnn
