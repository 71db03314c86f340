#include "runtime/streamed_weights.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <system_error>

#include "platform/threads.h"
#include "runtime/clock.h"
#include "runtime/fail.h"
#include "runtime/weight_store.h"

namespace deepmnn {
namespace {

constexpr int kReaders = 3;  // so that the disk has the next read before it is done with one
// So many reads on their way, and no guess is read: what is needed now would share the disk.
constexpr int kGuessing = 1;

}  // namespace

StreamedWeights::StreamedWeights(const std::string& directory, const Program& program, ReadUnits units, WeightPlan plan)
    : units_(std::move(units)),
      plan_(std::move(plan)),
      weights_(program.weights),
      experts_(units_, plan_),
      ring_(units_, plan_),
      threads_(std::make_unique<Threads>()),
      forks_(fork_count()) {
  open_files(directory, program);
  read_residents();
  row_memory_ = ReadMemory(plan_.table_nbytes, "rows of tables");
  row_reads_.reserve(kTableRows);
  try {
    for (int i = 0; i < kReaders; ++i) threads_->readers.emplace_back([this] { run_reader(); });
  } catch (const std::system_error&) {
    if (threads_->readers.empty()) fail_request("no thread that reads weights", "a system that allows one more");
  }
}

StreamedWeights::~StreamedWeights() {
  if (forks_ != fork_count()) {
    static_cast<void>(threads_.release());  // they are the parent's
    return;
  }
  {
    Lock lock(mutex_);
    stop_ = true;
  }
  threads_->work.notify_all();
  for (std::thread& reader : threads_->readers) reader.join();
}

void StreamedWeights::open_files(const std::string& directory, const Program& program) {
  for (const std::string& shard : program.shards) {
    files_.push_back(std::make_unique<DirectFile>(directory + "/" + shard));
  }
  std::vector<uint64_t> sizes;
  for (const auto& file : files_) sizes.push_back(file->nbytes());
  for (const WeightInfo& info : program.weights) check_weight(info, program.shards, sizes);
}

void StreamedWeights::read_residents() {
  int64_t nbytes = 0, zeros = 0;
  std::vector<uint32_t> found;
  for (uint32_t i = 0; i < units_.units.size(); ++i) {
    if (!plan_.resident[i]) continue;
    const ReadUnit& unit = units_.units[i];
    if (unit.is_zeros()) zeros = std::max(zeros, unit.nbytes + kReadAlign * static_cast<int64_t>(unit.runs.size()));
    if (!unit.is_zeros()) found.push_back(i);
    nbytes += unit.room;
  }
  resident_memory_ = ReadMemory(nbytes, "weights that stay in memory");
  resident_.assign(units_.units.size(), nullptr);
  zeros_ = std::make_unique<PrivateCopy>(zeros);
  if (zeros > 0 && !zeros_->data()) fail_memory(zeros, "zeros");
  for (size_t i = 0; i < resident_.size(); ++i) {
    if (plan_.resident[i] && units_.units[i].is_zeros()) resident_[i] = zeros_->data();
  }
  uint8_t* room = resident_memory_.data();
  for (uint32_t unit : found) {
    resident_[unit] = room;
    room += units_.units[unit].room;
  }
  std::atomic<size_t> next{0};
  std::vector<std::string> failures(kReaders);
  const auto read_some = [&](std::string& failure) {
    for (size_t i = next++; i < found.size() && failure.empty(); i = next++) {
      failure = perform(units_.units[found[i]].runs, const_cast<uint8_t*>(resident_[found[i]]));
    }
  };
  std::vector<std::thread> readers;
  try {
    for (int i = 1; i < kReaders; ++i) readers.emplace_back(read_some, std::ref(failures[static_cast<size_t>(i)]));
  } catch (const std::system_error&) {
    // no more threads: this one reads what others do not
  }
  read_some(failures[0]);
  for (std::thread& reader : readers) reader.join();
  for (const std::string& failure : failures) {
    if (!failure.empty()) throw Error("artifact", failure);
  }
}

// A child has none of the threads that read, and a lock that one of them may have held.
void StreamedWeights::check_fork() const {
  if (forks_ == fork_count()) return;
  fail_request("a forked process uses a model with a memory budget, which reads weights by threads of its parent",
               "a model that was loaded in that process");
}

template <class Done>
void StreamedWeights::wait(Lock& lock, const uint32_t& unit, Done&& done) {
  if (done()) return;
  const int64_t start = now_ns(), begin = log_.is_on() ? log_.now() : 0;
  threads_->news.wait(lock, done);
  counts_.wait_ns += now_ns() - start;
  if (log_.is_on()) log_.waited(begin, unit);
}

void StreamedWeights::want_expert(uint32_t unit, int64_t uses) {
  const Choices before{experts_.hits, experts_.misses, 0, experts_.good_guesses};
  experts_.want(unit, uses);
  if (!log_.is_on()) return;
  log_.chose(unit, {experts_.hits - before.hits, experts_.misses - before.misses, 0,
                    experts_.good_guesses - before.good_guesses});
}

void StreamedWeights::pin(const uint32_t* ids, int64_t n, Weight* out) {
  Lock lock(mutex_, std::defer_lock);
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t unit = units_.unit_of[ids[i]];
    const uint8_t* room = resident_[unit];
    if (!room) {
      if (!lock.owns_lock()) {
        check_fork();
        lock.lock();
      }
      if (is_routed(ids[i])) {
        if (!experts_.find(unit)) want_expert(unit, 1);
        wake_readers(true);
        wait(lock, unit, [&] { return (room = experts_.find(unit)) != nullptr; });
        experts_.pin(unit);
      } else if (ring_.has(unit)) {
        ring_.want(unit);
        ring_waits_ = true;
        wake_readers(true);
        wait(lock, unit, [&] { return (room = ring_.pin(unit)) != nullptr; });
        ring_waits_ = false;
      } else {
        fail_artifact("program.bin: weight " + weights_[ids[i]].name + " is read whole", "some rows of it");
      }
    }
    out[i].data = bytes(ids[i], room);
  }
}

// Whether all of them are in memory; then they are pinned.
bool StreamedWeights::pin_group(const uint32_t* ids, int64_t each, Weight* out) {
  for (int64_t i = 0; i < each; ++i) {
    const uint32_t unit = units_.unit_of[ids[i]];
    const uint8_t* const room = resident_[unit] ? resident_[unit] : experts_.find(unit);
    if (!room) return false;
    out[i].data = bytes(ids[i], room);
  }
  for (int64_t i = 0; i < each; ++i) {
    const uint32_t unit = units_.unit_of[ids[i]];
    if (!resident_[unit]) experts_.pin(unit);
  }
  return true;
}

int64_t StreamedWeights::pin_some(const uint32_t* ids, int64_t each, int32_t* groups, int64_t n, Weight* out) {
  if (n == 0) return 0;
  check_fork();
  Lock lock(mutex_);
  for (int64_t i = 0; i < n; ++i) {  // what nobody has foretold
    for (int64_t j = 0; j < each; ++j) {
      const uint32_t unit = units_.unit_of[ids[groups[i] * each + j]];
      if (!resident_[unit] && !experts_.find(unit) && !experts_.is_coming(unit)) want_expert(unit, 1);
    }
  }
  wake_readers(true);
  const uint32_t first = units_.unit_of[ids[groups[0] * each]];
  const int64_t most = resident_[first] ? n : std::min(n, experts_.pins(first));
  int64_t pinned = 0;
  uint32_t came = first;
  wait(lock, came, [&] {
    for (int64_t i = 0; i < n && pinned < most; ++i) {
      if (!pin_group(ids + groups[i] * each, each, out + groups[i] * each)) continue;
      std::rotate(groups + pinned, groups + i, groups + i + 1);
      came = units_.unit_of[ids[groups[0] * each]];
      ++pinned;
    }
    return pinned > 0;
  });
  return pinned;
}

void StreamedWeights::want_rows(uint32_t id, const int32_t* rows, int64_t n, const uint8_t** blocks) {
  const WeightInfo& info = weights_[id];
  const int64_t block = block_nbytes(info.format, info.cols), room = read_room(block) + kReadAlign;
  row_reads_.clear();
  for (int64_t i = 0; i < n; ++i) {
    const int64_t wanted = rows[i] / kBlockRows;
    size_t at = 0;
    while (at < row_reads_.size() && row_reads_[at].block != wanted) ++at;
    if (at == row_reads_.size()) {
      const uint64_t begin = static_cast<uint64_t>(wanted * block);
      uint8_t* const to = row_memory_.data() + static_cast<int64_t>(at) * room;
      row_reads_.push_back({wanted, read_runs(info, begin, static_cast<uint64_t>(block)), to, false, false, ""});
    }
    blocks[i] = row_reads_[at].to + row_reads_[at].runs[0].at;
  }
}

void StreamedWeights::pin_rows(uint32_t id, const int32_t* rows, int64_t n, const uint8_t** blocks) {
  const uint32_t unit = units_.unit_of[id];
  if (resident_[unit]) {
    const int64_t block = block_nbytes(weights_[id].format, weights_[id].cols);
    for (int64_t i = 0; i < n; ++i) blocks[i] = bytes(id, resident_[unit]) + rows[i] / kBlockRows * block;
    return;
  }
  check_fork();
  Lock lock(mutex_);
  want_rows(id, rows, n, blocks);
  row_unit_ = unit;
  threads_->work.notify_all();
  wait(lock, unit, [&] {
    return std::all_of(row_reads_.begin(), row_reads_.end(), [](const RowRead& read) { return read.done; });
  });
  for (const RowRead& read : row_reads_) {
    if (!read.why.empty()) throw Error("artifact", read.why);
  }
}

void StreamedWeights::unpin() {
  if (forks_ != fork_count()) return;
  Lock lock(mutex_);
  const bool room = experts_.unpin() + ring_.unpin() > 0;
  wake_readers(room);
}

// Those that sleep, when there is something for them: each system call, and each thread that wakes for nothing, takes
// time from the threads that compute.
void StreamedWeights::wake_readers(bool news) {
  if (!news || idle_ == 0) return;
  const bool waits = experts_.waits(false) || !ring_.empty() || (active_ < kGuessing && experts_.waits(true));
  if (waits) threads_->work.notify_one();
}

void StreamedWeights::begin_step(int64_t tokens) {
  check_fork();
  Lock lock(mutex_);
  // A step that ended by an error may have left rows on their way.
  wait(lock, WaitSpan::kNone, [&] {
    return std::all_of(row_reads_.begin(), row_reads_.end(), [](const RowRead& read) { return read.done; });
  });
  row_reads_.clear();
  ring_waits_ = false;
  experts_.unpin();
  ring_.unpin();
  experts_.begin_step(tokens);
}

void StreamedWeights::expect(const uint32_t* ids, const int32_t* uses, int64_t n, int64_t rows) {
  Lock lock(mutex_);
  experts_.begin_routing();
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t unit = units_.unit_of[ids[i]];
    if (resident_[unit] || !is_routed(ids[i])) continue;
    experts_.route(unit, rows);
    want_expert(unit, uses[i]);
  }
  wake_readers(true);
}

void StreamedWeights::guess(const uint32_t* ids, int64_t n) {
  Lock lock(mutex_);
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t unit = units_.unit_of[ids[i]];
    if (!resident_[unit] && is_routed(ids[i])) experts_.guess(unit);
  }
  wake_readers(true);
}

void StreamedWeights::forget_guesses() {
  Lock lock(mutex_);
  experts_.forget_guesses();
}

StreamCounts StreamedWeights::counts() const {
  check_fork();
  Lock lock(mutex_);
  StreamCounts counts = counts_;
  if (active_ > 0) counts.read_ns += now_ns() - active_since_;
  counts.expert_hits = experts_.hits;
  counts.expert_misses = experts_.misses;
  counts.guesses = experts_.guesses;
  counts.good_guesses = experts_.good_guesses;
  return counts;
}

void StreamedWeights::keep_reads(const QuickClock& clock, int64_t spans) {
  ReadLog log = spans > 0 ? ReadLog(clock, static_cast<int64_t>(units_.units.size()), spans) : ReadLog();
  Lock lock(mutex_);
  std::swap(log_, log);
}

void StreamedWeights::forget_reads() {
  Lock lock(mutex_);
  if (log_.is_on()) log_.reset();
}

ReadLog StreamedWeights::read_log() const {
  Lock lock(mutex_);
  return log_;
}

// What a step waits for comes first, what may be needed last.
bool StreamedWeights::next(Read* read) {
  for (size_t i = 0; i < row_reads_.size(); ++i) {
    if (row_reads_[i].started) continue;
    row_reads_[i].started = true;
    *read = {Source::rows, row_unit_, row_reads_[i].to, i, Cause::wanted};
    return true;
  }
  *read = {Source::ring, 0, nullptr, 0, Cause::wanted};
  if (ring_waits_ && ring_.next(&read->unit, &read->to)) return true;
  read->source = Source::experts;
  if (experts_.next(false, &read->unit, &read->to)) return true;
  *read = {Source::ring, 0, nullptr, 0, Cause::ahead};
  if (ring_.next(&read->unit, &read->to)) return true;
  *read = {Source::experts, 0, nullptr, 0, Cause::guessed};
  if (active_ >= kGuessing || !experts_.next(true, &read->unit, &read->to)) return false;
  if (log_.is_on()) log_.guessed(read->unit);
  return true;
}

void StreamedWeights::run_reader() {
  Lock lock(mutex_);
  Read read;
  while (!stop_) {
    if (!next(&read)) {
      ++idle_;
      threads_->work.wait(lock);
      --idle_;
      continue;
    }
    wake_readers(true);  // one more, if there is more to read
    if (active_++ == 0) active_since_ = now_ns();
    const std::vector<ReadRun>& runs =
        read.source == Source::rows ? row_reads_[read.row].runs : units_.units[read.unit].runs;
    const int64_t begin = log_.is_on() ? log_.now() : 0;
    lock.unlock();
    const std::string why = perform(runs, read.to);  // rows stay until all of them are there
    lock.lock();
    const int64_t now = now_ns();
    if (--active_ == 0) counts_.read_ns += now - active_since_;
    const int64_t before = counts_.read_nbytes;
    finish(read, why);
    if (log_.is_on()) remember(read, begin, counts_.read_nbytes - before);
    threads_->news.notify_all();
  }
}

std::string StreamedWeights::perform(const std::vector<ReadRun>& runs, uint8_t* room) const {
  try {
    for (const ReadRun& run : runs) {
      if (run.shard == Piece::kZeros) {
        std::memset(room + run.at, 0, static_cast<size_t>(run.nbytes));
      } else {
        files_[run.shard]->read(run.offset, run.nbytes, room + run.at);
      }
    }
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

void StreamedWeights::finish(const Read& read, const std::string& why) {
  ++counts_.reads;
  if (read.source == Source::rows) {
    RowRead& row = row_reads_[read.row];
    for (const ReadRun& run : row.runs) counts_.read_nbytes += run.shard == Piece::kZeros ? 0 : run.nbytes;
    row.done = true;
    row.why = why;
    return;
  }
  if (why.empty()) counts_.read_nbytes += units_.units[read.unit].nbytes;
  if (read.source == Source::ring) {
    why.empty() ? ring_.arrived(read.to) : ring_.failed(read.to, why);
  } else {
    why.empty() ? experts_.arrived(read.unit) : experts_.failed(read.unit, why);
  }
}

void StreamedWeights::remember(const Read& read, int64_t begin, int64_t nbytes) {
  const bool used = read.cause == Cause::guessed && experts_.is_coming(read.unit);
  log_.read({begin, 0, nbytes, read.unit, read.cause, used});
}

}  // namespace deepmnn
