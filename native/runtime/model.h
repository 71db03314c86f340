// A loaded model: program, weights and ops, and everything a step needs. Once warm a step allocates nothing.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "runtime/batch.h"
#include "runtime/numa.h"
#include "runtime/op.h"
#include "runtime/ports.h"
#include "runtime/prefetch.h"
#include "runtime/profile.h"
#include "runtime/program.h"
#include "runtime/read_units.h"
#include "runtime/step.h"
#include "runtime/turns.h"
#include "runtime/weight_plan.h"
#include "runtime/weight_store.h"

namespace deepmnn {

class Model {
 public:
  // Loads `directory`/program.bin and its shards. threads 0: one per physical core. isa "": the best one. numa: as
  // Numa takes it, with the root of its /sys. memory: bytes that weights may take, 0: as many as they are. draft: with
  // its draft part, if it has one and all fits. Throws Error("artifact") for anything wrong in the directory.
  Model(const std::string& directory, int threads, const std::string& isa, const std::string& numa = "off",
        const std::string& numa_root = "", int64_t memory = 0, bool draft = true);

  // Of the main part.
  const std::vector<Port>& inputs() const { return ports_[0].inputs(); }
  const std::vector<Port>& outputs() const { return ports_[0].outputs(); }
  size_t logits() const { return ports_[0].logits(); }  // which of the outputs
  int64_t vocab_size() const { return outputs()[logits()].width; }
  // What the draft part reads: an output of the main part, f32 [rows, width]. Null: there is none, it is not wanted, or
  // weights are streamed (plan_parts).
  const Port* draft_state() const;
  const char* isa() const { return kernels_.isa; }
  int threads() const { return pool_.workers(); }  // that work: as asked for, at most one per processor
  int64_t weight_nbytes() const { return weights_.nbytes(); }
  const WeightPlan& weight_plan() const { return plan_; }
  // What has been read since it was loaded; null where all weights are mapped.
  bool streams() const { return weights_.residency().streams(); }
  StreamCounts stream_counts() const { return weights_.residency().counts(); }
  // What a profile keeps of that, and what its units are: the first weight of each, and when it is needed.
  ReadLog read_log() const { return weights_.residency().read_log(); }
  std::vector<std::pair<std::string, Need>> unit_names() const;
  const std::vector<CacheInfo>& caches() const { return program_.caches; }
  const char* numa() const { return numa_.mode(); }
  void place(const KvCache& cache) const;  // on the nodes, before anything is in it
  void set_mla_form(MlaForm form) { mla_form_ = form; }
  // Working memory for ops that need so many bytes: pages are taken when they are written.
  void reserve(int64_t working_nbytes);

  // Runs one step: reads inputs()[i] from inputs[i], and writes outputs()[i] to outputs[i], which is null for one that
  // is not wanted. One step at a time: a second caller waits. Throws Error("request") before anything is written when
  // the batch or the cache does not fit, or the machine has not got the memory; and in a child that was forked while
  // another thread was in here. Throws Error("artifact") when a weight's file could not be read to its end, now or
  // earlier: what has been written is then worth nothing.
  void step(KvCache& cache, const Batch& batch, const void* const* inputs, void* const* outputs) {
    run_part(0, cache, batch, inputs, outputs);
  }

  // Runs the draft part: state [tokens, width] is what the main part gave for each token's predecessor, or this one's
  // `next`; → logits [rows, vocabulary], next [rows, width], neither null. Throws as `step`, and Error("request")
  // without a draft part.
  void draft(KvCache& cache, const Batch& batch, const float* state, float* logits, float* next);

  // The token that `sample` draws for each row, by all threads. Throws as it does.
  struct Draw {
    const float* logits = nullptr;  // [n]
    int64_t n = 0;
    SamplingParams params;
    float u = 0.0f;
  };
  std::vector<int32_t> sample(const std::vector<Draw>& draws);

  const std::vector<Instruction>& instructions() const { return program_.instructions; }

  // Counts what steps cost from now on, afresh, and keeps that many spans of each worker, and that many reads of
  // weights; or no more.
  void start_profile(int64_t spans, int64_t reads);
  void stop_profile();
  // What has been counted, which `read` may look at until it returns. Throws Error("request") when nothing is counted.
  template <class Read>
  void profile(bool reset, Read&& read) {
    std::lock_guard<Turns> turn(turns_);
    if (!profile_) fail_no_profile();
    read(static_cast<const Profile&>(*profile_));
    if (!reset) return;
    profile_->reset();
    weights_.residency().forget_reads();
  }
  // Who holds how much besides weights and caches. reset: peaks begin anew.
  std::vector<MemoryUse> memory(bool reset);

  // Wall time inside step() so far: what a caller spends beside it is the caller's own.
  double step_seconds() const { return static_cast<double>(step_ns_) * 1e-9; }

 private:
  [[noreturn]] static void fail_no_profile();
  void check_draft() const;
  void build_ops();
  std::unique_ptr<Residency> open_weights(const std::string& directory, int64_t memory);
  void run_part(size_t part, KvCache& cache, const Batch& batch, const void* const* inputs, void* const* outputs);
  void place_rows(const KvCache& cache, const Batch& batch);
  void place_activations(Step& step);
  void run_ops(const ProgramPart& part, Step& step);
  void enter(Part part) {
    if (profile_) profile_->enter(profile_->zone_of(part));
  }

  Program program_;
  Numa numa_;
  const Kernels& kernels_;
  ThreadPool pool_;
  WeightPlan plan_;
  WeightStore weights_;
  RopeTables ropes_;
  std::vector<std::unique_ptr<Op>> ops_;
  std::unique_ptr<Prefetch> prefetch_;  // where weights are streamed
  std::unique_ptr<Profile> profile_;
  int64_t step_ns_ = 0;
  std::vector<Ports> ports_;  // of each part
  MlaForm mla_form_ = MlaForm::automatic;

  Turns turns_;
  Arena arenas_[kDims];
  Scratch scratch_;
  QuantizedCache quantized_;
  std::vector<int64_t> slots_;
  std::vector<int32_t> recents_;
  std::vector<int64_t> context_starts_;
  std::vector<int32_t> block_uses_;
};

}  // namespace deepmnn
