// One persistent pool. A dispatch is a range of pieces: each worker starts on its own contiguous part and steals from
// the others when done. The caller is worker 0 and needs nobody: a worker that wakes late finds the dispatch closed,
// and in a forked child, where no helper exists, it does all the work.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#include "runtime/profile.h"

namespace deepmnn {

class ThreadPool {
 public:
  // threads: at least 1; the caller counts as one. No more work at once than there are processors (0: those this
  // process may run on): a thread that has to wait for a core would only stall the others.
  // Each helper first calls start(worker).
  explicit ThreadPool(int threads, int processors = 0, const std::function<void(int worker)>& start = {});
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(slots_.size()); }  // as asked for
  int workers() const { return workers_; }                      // that run, at most size()

  // Calls function(piece, worker) once for each piece in [0, pieces), worker in [0, size()), and returns when all are
  // done. The first exception is rethrown here and the pieces not yet started are dropped. Inside a piece, run() works
  // through its range alone. One caller at a time.
  template <class Function>
  void run(int64_t pieces, Function&& function) {
    using F = std::remove_reference_t<Function>;
    dispatch(pieces, {[](void* self, int64_t piece, int worker) { (*static_cast<F*>(self))(piece, worker); },
                      const_cast<void*>(static_cast<const void*>(&function))});
  }

  // What the workers do is counted there from now on; null: nowhere. Between two dispatches.
  void count(Profile* profile) { profile_ = profile; }

 private:
  struct Call {
    void (*invoke)(void* self, int64_t piece, int worker) = nullptr;
    void* self = nullptr;
  };
  // A worker's part of the range: begin in the low half, end in the high half. The owner takes from the front, thieves
  // from the back.
  struct alignas(64) Slot {
    std::atomic<uint64_t> range{0};
    std::atomic<int> processor{-1};  // where a helper entered the dispatch it is in
  };

  void dispatch(int64_t pieces, Call call);
  void alone(int64_t pieces, Call call, int worker);
  void open(uint32_t pieces, Call call);
  void wake_late();
  void wake_sleepers();
  void close_and_wait(int64_t pieces);
  bool helper_is_here() const;
  int64_t work(int worker);
  int64_t work_counted(int worker);
  int64_t steal(int worker, int64_t before);
  bool pieces_left() const;
  int64_t run_all(Slot& slot, bool front, int worker, int64_t before);
  bool run_one(Slot& slot, bool front, int worker);
  void helper(int worker);
  bool wait_for_work(uint64_t seen_epoch);
  bool join(uint64_t& seen_epoch);
  void leave();
  void stop();
  bool forked() const;

  // epoch << 32 | open << 31 | caller waits << 30 | helpers inside
  std::atomic<uint64_t> state_{0};
  std::vector<Slot> slots_;
  const int workers_;
  Call call_;
  Profile* profile_ = nullptr;
  int64_t start_ns_ = 0;         // when this dispatch began
  int64_t last_ns_ = INT64_MAX;  // how long the last one took; the first one wakes the helpers
  int64_t alone_until_ns_ = 0;   // after a stall
  bool awake_ = false;           // whether this dispatch has woken the sleepers
  std::atomic<int> caller_processor_{-1};

  std::atomic<bool> failed_{false};
  std::exception_ptr error_;

  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  struct Helpers {
    std::mutex mutex;
    std::condition_variable wake, all_left;
    std::vector<std::thread> threads;
  };
  std::unique_ptr<Helpers> helpers_;
  uint32_t forks_;  // of this process when the helpers were started
};

}  // namespace deepmnn
