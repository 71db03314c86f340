#include "runtime/machine.h"

#include <algorithm>
#include <chrono>
#include <numeric>

#include "platform/topology.h"
#include "runtime/memory.h"
#include "runtime/thread_pool.h"

namespace deepmnn {
namespace {

uint64_t sum(const uint64_t* data, int64_t n) {
  constexpr int64_t kLine = 8;  // words of a cache line
  uint64_t parts[kLine] = {};
  for (int64_t i = 0; i + kLine <= n; i += kLine) {
    for (int64_t j = 0; j < kLine; ++j) parts[j] += data[i + j];
  }
  return std::accumulate(parts, parts + kLine, uint64_t{0});
}

// The fastest of several runs, in seconds.
template <class Function>
double best_seconds(Function&& function) {
  double best = 1e9;
  for (int pass = 0; pass < 8; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    function();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

}  // namespace

int available_cores(const std::vector<int>& processors, const std::string& root) {
  return std::max(1, std::min(count_cores(processors, root), quota_processors(root)));
}

double measure_read_bandwidth(int threads) {
  constexpr int64_t kPieceNbytes = 256 << 10, kPieces = 2048;  // 512 MiB: more than any last-level cache
  const Memory memory(kPieceNbytes * kPieces, "a buffer to measure memory with");
  ThreadPool pool(threads);
  pool.run(kPieces,
           [&](int64_t piece, int) { std::fill_n(memory.data() + piece * kPieceNbytes, kPieceNbytes, uint8_t{1}); });
  std::atomic<uint64_t> total{0};  // used, so that the reads are not optimised away
  const double seconds = best_seconds([&] {
    pool.run(kPieces, [&](int64_t piece, int) {
      total += sum(reinterpret_cast<const uint64_t*>(memory.data() + piece * kPieceNbytes), kPieceNbytes / 8);
    });
  });
  return static_cast<double>(kPieceNbytes * kPieces) / seconds;
}

namespace {

// What a kernel that counts its own operations does per second.
double measure_peak(int threads, int64_t (*peak)(int64_t)) {
  ThreadPool pool(threads);
  int64_t rounds = 1 << 10, operations = 0;
  double seconds = 0;
  const auto measure = [&] {
    std::atomic<int64_t> done{0};
    seconds = best_seconds([&] {
      done = 0;
      pool.run(pool.size() * 8, [&](int64_t, int) { done += peak(rounds); });
    });
    operations = done;
  };
  measure();
  while (seconds < 0.02) {  // long enough for clocks and wake-ups not to count
    rounds *= 4;
    measure();
  }
  return static_cast<double>(operations) / seconds;
}

}  // namespace

double measure_int8_peak(int threads, const Kernels& kernels) { return measure_peak(threads, kernels.peak_dot); }

double measure_f32_peak(int threads, const Kernels& kernels) { return measure_peak(threads, kernels.peak_fma); }

}  // namespace deepmnn
