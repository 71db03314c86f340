// Weights in a number of bytes that is less than all of them: some stay, the others are read from their files, past the
// page cache, by threads of its own (native/README.md).
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "platform/files.h"
#include "runtime/expert_cache.h"
#include "runtime/program.h"
#include "runtime/read_units.h"
#include "runtime/residency.h"
#include "runtime/weight_plan.h"
#include "runtime/weight_ring.h"

namespace deepmnn {

class StreamedWeights : public Residency {
 public:
  // Reads what stays. Throws Error("artifact") when a weight does not lie inside its file, or cannot be read.
  StreamedWeights(const std::string& directory, const Program& program, ReadUnits units, WeightPlan plan);
  ~StreamedWeights() override;

  void pin(const uint32_t* ids, int64_t n, Weight* out) override;
  int64_t pin_some(const uint32_t* ids, int64_t each, int32_t* groups, int64_t n, Weight* out) override;
  void pin_rows(uint32_t id, const int32_t* rows, int64_t n, const uint8_t** blocks) override;
  void unpin() override;
  bool streams() const override { return true; }
  void begin_step(int64_t tokens) override;
  void expect(const uint32_t* ids, const int32_t* uses, int64_t n, int64_t rows) override;
  void guess(const uint32_t* ids, int64_t n) override;
  void forget_guesses() override;
  StreamCounts counts() const override;
  void keep_reads(const QuickClock& clock, int64_t spans) override;
  void forget_reads() override;
  ReadLog read_log() const override;

 private:
  using Lock = std::unique_lock<std::mutex>;
  enum class Source : uint8_t { rows, ring, experts };

  // One read on its way: all runs of a unit, or one of a table's rows.
  struct Read {
    Source source = Source::rows;
    uint32_t unit = 0;
    uint8_t* to = nullptr;
    size_t row = 0;  // of row_reads_
    Cause cause = Cause::wanted;
  };
  struct RowRead {
    int64_t block = 0;  // of the table
    std::vector<ReadRun> runs;
    uint8_t* to = nullptr;
    bool started = false, done = false;
    std::string why;  // it could not be read
  };

  void open_files(const std::string& directory, const Program& program);
  void read_residents();
  void check_fork() const;
  const uint8_t* bytes(uint32_t id, const uint8_t* room) const { return room + units_.at[id]; }
  bool pin_group(const uint32_t* ids, int64_t each, Weight* out);
  void want_expert(uint32_t unit, int64_t uses);
  void want_rows(uint32_t id, const int32_t* rows, int64_t n, const uint8_t** blocks);
  // unit: which one is waited for, known at the end.
  template <class Done>
  void wait(Lock& lock, const uint32_t& unit, Done&& done);

  void wake_readers(bool news);
  void run_reader();
  bool next(Read* read);
  // "", or why it could not be read.
  std::string perform(const std::vector<ReadRun>& runs, uint8_t* room) const;
  void finish(const Read& read, const std::string& why);
  void remember(const Read& read, int64_t begin, int64_t nbytes);
  bool is_routed(uint32_t id) const { return units_.units[units_.unit_of[id]].need == Need::routed; }

  const ReadUnits units_;
  const WeightPlan plan_;
  std::vector<WeightInfo> weights_;
  std::vector<std::unique_ptr<DirectFile>> files_;
  ReadMemory resident_memory_, row_memory_;
  std::unique_ptr<PrivateCopy> zeros_;    // as many as the largest unit of zeros has: pages that nobody has written to
  std::vector<const uint8_t*> resident_;  // [units] room, null for others

  mutable std::mutex mutex_;
  ExpertCache experts_;
  WeightRing ring_;
  std::vector<RowRead> row_reads_;
  uint32_t row_unit_ = 0;  // their table
  bool stop_ = false;
  bool ring_waits_ = false;  // a step waits for the ring
  int active_ = 0;           // reads on their way
  int idle_ = 0;             // readers that have nothing to do
  int64_t active_since_ = 0;
  StreamCounts counts_;
  ReadLog log_;
  // What a forked child leaves alone: the end of a condition variable waits for those that wait for it.
  struct Threads {
    std::condition_variable work, news;
    std::vector<std::thread> readers;
  };
  std::unique_ptr<Threads> threads_;
  uint32_t forks_;
};

}  // namespace deepmnn
