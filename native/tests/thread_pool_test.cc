// The pool under load: every piece runs exactly once, whoever steals it, and errors reach the caller.
#include "runtime/thread_pool.h"

#include <chrono>
#include <stdexcept>
#include <vector>

#include "tests/check.h"

namespace deepmnn {
namespace {

void sleep_us(int us) { std::this_thread::sleep_for(std::chrono::microseconds(us)); }

// Plain ints: a piece run twice, or seen too late, is a data race for the thread sanitizer and a wrong count here.
void every_piece_runs_once(int threads, int64_t pieces) {
  ThreadPool pool(threads, threads);
  std::vector<int> runs(static_cast<size_t>(pieces));
  for (int round = 1; round <= 20; ++round) {
    pool.run(pieces, [&](int64_t piece, int worker) {
      CHECK(worker >= 0 && worker < pool.size());
      ++runs[static_cast<size_t>(piece)];
    });
    for (int count : runs) CHECK(count == round);
  }
}

// Thousands of tiny dispatches, each reading what the one before wrote, with pauses in which the helpers fall asleep.
void tiny_dispatches(int threads) {
  ThreadPool pool(threads, threads);
  std::vector<int64_t> numbers(7);
  for (int round = 0; round < 5000; ++round) {
    pool.run(7, [&](int64_t piece, int) { numbers[static_cast<size_t>(piece)] += piece + 1; });
    if (round % 1000 == 999) sleep_us(500);
  }
  for (int64_t i = 0; i < 7; ++i) CHECK(numbers[static_cast<size_t>(i)] == 5000 * (i + 1));
}

// The caller's own part blocks until somebody else has done all the rest.
void others_steal() {
  ThreadPool pool(3, 3);
  Profile profile(3, 1, 8);
  pool.count(&profile);
  profile.enter(0);
  std::atomic<int> done{0};
  pool.run(30, [&](int64_t piece, int) {
    if (piece == 0) {
      while (done < 29) std::this_thread::yield();
    }
    ++done;
  });
  CHECK(done == 30);
  profile.leave();
  int64_t pieces = 0, stolen = 0, helpers = 0;
  for (size_t worker = 0; worker < 3; ++worker) {
    const Work& work = profile.workers()[worker].work[0];
    pieces += work.pieces;
    stolen += work.stolen;
    if (worker > 0) helpers += work.own + work.steal;
  }
  CHECK(pieces == 30 && stolen >= 9 && helpers > 0);
}

// Worker-local memory needs no lock: one worker never runs two pieces at once.
void workers_are_exclusive(int threads) {
  ThreadPool pool(threads, threads);
  std::vector<int64_t> sums(static_cast<size_t>(threads));
  for (int round = 0; round < 200; ++round) {
    pool.run(64, [&](int64_t piece, int worker) { sums[static_cast<size_t>(worker)] += piece; });
  }
  int64_t total = 0;
  for (int64_t sum : sums) total += sum;
  CHECK(total == 200 * 64 * 63 / 2);
}

void errors_reach_the_caller(int threads) {
  ThreadPool pool(threads, threads);
  for (int round = 0; round < 200; ++round) {
    std::atomic<int> started{0};
    bool caught = false;
    try {
      pool.run(50, [&](int64_t piece, int) {
        ++started;
        if (piece % 10 == round % 10) throw std::runtime_error("piece");
      });
    } catch (const std::runtime_error&) {
      caught = true;
    }
    CHECK(caught && started >= 1 && started <= 50);
    std::atomic<int> after{0};
    pool.run(50, [&](int64_t, int) { ++after; });
    CHECK(after == 50);
  }
}

// run() inside a piece works through its range alone, as the same worker; its errors leave through both levels.
void nested_runs(int threads) {
  ThreadPool pool(threads, threads);
  std::vector<int> counts(40);
  pool.run(40, [&](int64_t piece, int worker) {
    pool.run(5, [&](int64_t, int inner) {
      CHECK(inner == worker);
      ++counts[static_cast<size_t>(piece)];
    });
  });
  for (int count : counts) CHECK(count == 5);
  bool caught = false;
  try {
    pool.run(40, [&](int64_t, int) { pool.run(5, [](int64_t, int) { throw std::logic_error("inner"); }); });
  } catch (const std::logic_error&) {
    caught = true;
  }
  CHECK(caught);
}

// A piece may use another pool: that one dispatches as usual.
void pools_inside_pools() {
  ThreadPool outer(2, 2), inner(4, 4);
  std::atomic<int> count{0};
  std::mutex one_caller;
  outer.run(8, [&](int64_t, int) {
    std::lock_guard<std::mutex> lock(one_caller);
    inner.run(16, [&](int64_t, int worker) {
      CHECK(worker < inner.size());
      ++count;
    });
  });
  CHECK(count == 8 * 16);
}

void pools_come_and_go() {
  for (int round = 0; round < 200; ++round) {
    ThreadPool pool(1 + round % 5, 5);
    std::atomic<int> count{0};
    if (round % 3) pool.run(round % 7, [&](int64_t, int) { ++count; });
    CHECK(count == (round % 3 ? round % 7 : 0));
  }
}

void waiting_is_counted() {
  ThreadPool pool(2, 2);
  Profile profile(2, 2, 3);
  pool.count(&profile);
  profile.enter(1);
  std::atomic<bool> helper_started{false};
  pool.run(2, [&](int64_t piece, int worker) {
    if (worker == 1) {
      helper_started = true;
      sleep_us(20000);
    } else if (piece == 0) {
      for (int i = 0; i < 20000 && !helper_started; ++i) sleep_us(100);
    }
  });
  profile.leave();
  const Work& caller = profile.workers()[0].work[1];
  const Work& helper = profile.workers()[1].work[1];
  const double rate = profile.clock().read().ns_per_unit();
  CHECK(!helper_started || static_cast<double>(helper.own + helper.steal) * rate > 15e6);
  CHECK(!helper_started || caller.wait_ns > 5000000);
  CHECK(profile.zones()[1].calls == 1 && profile.zones()[0].calls == 0);
  CHECK(static_cast<double>(profile.zones()[1].time) * rate > static_cast<double>(caller.wait_ns) * 0.99);
}

// While others' helpers come late and go: nothing is lost, rings keep the latest spans, and a pool can stop counting.
void counting_comes_and_goes(int threads) {
  ThreadPool pool(threads, threads);
  for (int round = 0; round < 200; ++round) {
    Profile profile(threads, 3, 4);
    pool.count(&profile);
    for (size_t zone = 0; zone < 3; ++zone) {
      profile.enter(zone);
      pool.run(static_cast<int64_t>(5 * zone), [](int64_t, int) {});
    }
    profile.leave();
    pool.count(nullptr);
    pool.run(50, [](int64_t, int) {});
    for (size_t zone = 0; zone < 3; ++zone) {
      int64_t pieces = 0;
      for (const Profile::Worker& worker : profile.workers()) pieces += worker.work[zone].pieces;
      CHECK(pieces == static_cast<int64_t>(5 * zone));
      CHECK(profile.zones()[zone].calls == 1);
    }
    const Profile::Worker& caller = profile.workers()[0];
    CHECK(caller.spanned >= 3 && caller.spans.size() == 4);
    const Span& last = caller.spans[static_cast<size_t>((caller.spanned - 1) % 4)];
    CHECK(last.doing == Doing::zone && last.zone == 2 && last.end >= last.begin);
  }
}

// A helper that stays in a tiny piece for long: the dispatches after it are the caller's alone, nested ones too, and
// miss nothing.
void stalls_are_survived() {
  ThreadPool pool(2, 2);
  std::vector<int> counts(20);
  for (int round = 0; round < 5; ++round) {
    pool.run(20, [&](int64_t piece, int worker) {
      ++counts[static_cast<size_t>(piece)];
      if (worker == 1 && piece == 19) sleep_us(2000);
    });
    for (int i = 0; i < 100; ++i) {
      pool.run(10, [&](int64_t piece, int worker) {
        pool.run(2, [&](int64_t half, int inner) {
          CHECK(inner == worker);
          ++counts[static_cast<size_t>(2 * piece + half)];
        });
      });
    }
  }
  for (int count : counts) CHECK(count == 5 * 101);
}

// Threads beyond the processors are never started: what they would do is done by the others.
void no_more_workers_than_processors() {
  ThreadPool pool(9, 2);
  CHECK(pool.size() == 9 && pool.workers() == 2);
  std::vector<int> runs(100);
  pool.run(100, [&](int64_t piece, int worker) {
    CHECK(worker < 2);
    ++runs[static_cast<size_t>(piece)];
  });
  for (int count : runs) CHECK(count == 1);
}

}  // namespace
}  // namespace deepmnn

int main() {
  using namespace deepmnn;
  for (int threads : {1, 2, 3, 9}) {
    for (int64_t pieces : {0, 1, 2, 3, 17, 1000}) every_piece_runs_once(threads, pieces);
    tiny_dispatches(threads);
    workers_are_exclusive(threads);
    errors_reach_the_caller(threads);
    nested_runs(threads);
    counting_comes_and_goes(threads);
  }
  others_steal();
  pools_inside_pools();
  pools_come_and_go();
  waiting_is_counted();
  stalls_are_survived();
  no_more_workers_than_processors();
}
