#include "runtime/model.h"

#include <algorithm>

#include "kernels/dispatch.h"
#include "platform/files.h"
#include "platform/threads.h"
#include "runtime/clock.h"
#include "runtime/fail.h"
#include "runtime/machine.h"
#include "runtime/mapped_weights.h"
#include "runtime/read_units.h"
#include "runtime/streamed_weights.h"

namespace deepmnn {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int64_t kMaxSpans = int64_t{1} << 24;  // of each worker
constexpr char kState[] = "state";               // what the next guess of a draft part begins with

Program read_program(const std::string& directory, bool draft) {
  const MappedFile file(directory + "/program.bin");
  try {
    Program program = parse_program(file.data(), file.nbytes());
    file.check();
    if (!draft) drop_draft(program);
    return program;
  } catch (const Error&) {
    file.check();
    throw;
  }
}

int thread_count(int threads, const Numa& numa) {
  if (threads < 0 || threads > kMaxThreads) {
    fail_request(std::to_string(threads) + " threads", "0 (one per core) to " + std::to_string(kMaxThreads));
  }
  if (threads > 0) return threads;
  return numa.active() ? available_cores(numa.processors()) : available_cores();
}

// Ends the last zone of a step, whichever way it ends.
class Leaving {
 public:
  explicit Leaving(Profile* profile) : profile_(profile) {}
  ~Leaving() {
    if (profile_) profile_->leave();
  }
  Leaving(const Leaving&) = delete;
  Leaving& operator=(const Leaving&) = delete;

 private:
  Profile* profile_;
};

}  // namespace

Model::Model(const std::string& directory, int threads, const std::string& isa, const std::string& numa,
             const std::string& numa_root, int64_t memory, bool draft)
    : program_(read_program(directory, draft)),
      numa_(numa, numa_root),
      kernels_(select_kernels(isa.c_str())),
      pool_(thread_count(threads, numa_), static_cast<int>(numa_.processors().size()),
            [this](int worker) { numa_.pin(worker, pool_.workers()); }),
      weights_(program_, open_weights(directory, memory)) {
  for (const ProgramPart& part : program_.parts) ports_.emplace_back(program_, part);
  if (ports_.size() > 1) check_draft();
  build_ops();
  if (streams()) prefetch_ = std::make_unique<Prefetch>(program_, ops_, ropes_);
}

std::unique_ptr<Residency> Model::open_weights(const std::string& directory, int64_t memory) {
  ReadUnits units;
  plan_ = plan_parts(program_, units, memory);
  if (plan_.mapped) return std::make_unique<MappedWeights>(directory, program_, numa_, pool_.workers());
  if (numa_.active()) fail_request("numa with a memory budget", "numa off");
  return std::make_unique<StreamedWeights>(directory, program_, std::move(units), plan_);
}

// What goes from one part to the other.
void Model::check_draft() const {
  const Ports &main = ports_[0], &draft = ports_[1];
  const auto require = [](bool ok, const std::string& found, const std::string& expected) {
    if (!ok) fail_artifact("program.bin: " + found, expected);
  };
  require(main.inputs().empty(),
          "the main part of a draft part reads " + std::to_string(main.inputs().size()) + " more", "ids and positions");
  require(draft.inputs().size() == 1, "a draft part reads " + std::to_string(draft.inputs().size()) + " values",
          "one that the main part gives");
  const Port& state = draft.inputs()[0];
  const Port* given = main.output(state.name);
  require(given && given->is(Dim::rows, state.width) && state.is(Dim::tokens, state.width),
          "a draft part reads " + state.name, "f32 [tokens, width], of which the main part gives [rows, width]");
  const Port* next = draft.output(kState);
  require(next && next->is(Dim::rows, state.width) && draft.outputs().size() == 2,
          "a draft part gives " + std::to_string(draft.outputs().size()) + " values",
          std::string("logits and ") + kState + ", which is as wide as " + state.name);
  require(draft.outputs()[draft.logits()].width == vocab_size(), "the logits of a draft part",
          std::to_string(vocab_size()) + ", as the main part has");
}

const Port* Model::draft_state() const { return ports_.size() > 1 ? &ports_[1].inputs()[0] : nullptr; }

void Model::build_ops() {
  for (const Instruction& instruction : program_.instructions) {
    const OpSpec spec(program_, instruction, ropes_);
    ops_.push_back(make_op(spec, instruction.op));
  }
}

// Its rows are read by whichever worker takes their sequence and head: on several nodes their pages take turns.
void Model::place(const KvCache& cache) const {
  if (numa_.active() && cache.nbytes() > 0) numa_.interleave(cache.data(0), cache.data(0) + cache.nbytes());
}

void Model::place_rows(const KvCache& cache, const Batch& batch) {
  slots_.resize(static_cast<size_t>(batch.tokens));
  context_starts_.assign(1, 0);
  const int64_t size = cache.block_size();
  for (int64_t s = 0; s < batch.sequences; ++s) {
    int64_t row = batch.history(s);
    for (int64_t token = batch.sequence_starts[s]; token < batch.sequence_starts[s + 1]; ++token, ++row) {
      slots_[static_cast<size_t>(token)] = batch.table(s)[row / size] * size + row % size;
    }
    context_starts_.push_back(context_starts_.back() + batch.context_lengths[s]);
  }
  recents_.clear();
  if (cache.window() == 0) return;
  for (int64_t i = 0; i < batch.sequences * batch.table_width; ++i) {
    const int32_t block = batch.block_tables[i];
    recents_.push_back(block < 0 || block >= cache.blocks() ? -1 : cache.recent(block));  // unused ones may be anything
  }
}

void Model::draft(KvCache& cache, const Batch& batch, const float* state, float* logits, float* next) {
  if (!draft_state()) fail_request("a draft of a model without a draft part", "one that is loaded with it");
  const void* inputs[] = {state};
  void* outputs[2];
  outputs[ports_[1].logits()] = logits;
  outputs[1 - ports_[1].logits()] = next;
  run_part(1, cache, batch, inputs, outputs);
}

void Model::run_part(size_t part, KvCache& cache, const Batch& batch, const void* const* inputs, void* const* outputs) {
  std::lock_guard<Turns> turn(turns_);
  receive_faults();
  const int64_t start = now_ns();
  const Leaving leaving(profile_.get());
  enter(Part::checks);
  if (!cache.fits(program_.caches)) fail_request("a cache of another model", "one made by this model's new_cache");
  if (static_cast<int64_t>(block_uses_.size()) < cache.blocks())
    block_uses_.resize(static_cast<size_t>(cache.blocks()));
  Ports& ports = ports_[part];
  check_batch(batch, cache, ports.id_limit(), block_uses_);
  const NumaScope pinned(numa_, pool_.workers());
  enter(Part::ropes);
  ropes_.compute(pool_, batch.positions, batch.tokens);
  enter(Part::placing);
  place_rows(cache, batch);
  quantized_.clear();
  Step step{batch,
            cache,
            pool_,
            kernels_,
            ropes_,
            weights_,
            scratch_,
            quantized_,
            mla_form_,
            {batch.tokens, context_starts_.back(), batch.rows},
            {},
            slots_.data(),
            recents_.empty() ? nullptr : recents_.data(),
            context_starts_.data(),
            ports.ids_buffer(),
            ports.positions_buffer(),
            ports.place(inputs, outputs, batch)};
  place_activations(step);
  run_ops(program_.parts[part], step);
  step_ns_ += now_ns() - start;
}

// Each arena may fit the machine where all of them do not.
void Model::place_activations(Step& step) {
  int64_t total = 0;
  for (int dim = 0; dim < kDims; ++dim) {
    total = sum_of(total, arenas_[dim].missing(nbytes_of(step.counts[dim], program_.arena_nbytes[dim])));
  }
  require_memory(total, "activations");
  for (int dim = 0; dim < kDims; ++dim) {
    step.arenas[dim] = arenas_[dim].reserve(nbytes_of(step.counts[dim], program_.arena_nbytes[dim]), "activations");
  }
}

// An op may stumble over what is left of weights that cannot be read: the file comes first.
void Model::run_ops(const ProgramPart& part, Step& step) {
  weights_.check();
  try {
    weights_.residency().begin_step(step.batch.tokens);
    for (size_t i = part.begin; i < part.end; ++i) {
      if (profile_) profile_->enter(i);
      weights_.unpin();
      scratch_.reset();
      ops_[i]->run(step);
      if (prefetch_) prefetch_->after(i, step);
    }
  } catch (const Error&) {
    weights_.check();
    throw;
  }
  weights_.check();
}

void Model::reserve(int64_t working_nbytes) {
  std::lock_guard<Turns> turn(turns_);
  scratch_.reserve(working_nbytes);
}

std::vector<int32_t> Model::sample(const std::vector<Draw>& draws) {
  std::lock_guard<Turns> turn(turns_);
  const NumaScope pinned(numa_, pool_.workers());
  const Leaving leaving(profile_.get());
  enter(Part::sampling);
  std::vector<int32_t> tokens(draws.size());
  pool_.run(static_cast<int64_t>(draws.size()), [&](int64_t row, int) {
    const Draw& draw = draws[static_cast<size_t>(row)];
    tokens[static_cast<size_t>(row)] = deepmnn::sample(kernels_, draw.logits, draw.n, draw.params, draw.u);
  });
  return tokens;
}

void Model::start_profile(int64_t spans, int64_t reads) {
  const auto check = [](int64_t count, const char* what) {
    if (count >= 0 && count <= kMaxSpans) return;
    fail_request(std::to_string(count) + what, "0 to " + std::to_string(kMaxSpans));
  };
  check(spans, " spans");
  check(reads, " reads");
  std::lock_guard<Turns> turn(turns_);
  const int64_t zones = static_cast<int64_t>(ops_.size()) + kParts, each = zones * static_cast<int64_t>(sizeof(Work));
  const int64_t log = streams() ? reads * static_cast<int64_t>(sizeof(ReadSpan) + sizeof(WaitSpan)) : 0;
  require_memory(nbytes_of(threads(), each + spans * static_cast<int64_t>(sizeof(Span))) + log, "a profile");
  profile_ = std::make_unique<Profile>(threads(), static_cast<int64_t>(ops_.size()), spans);
  pool_.count(profile_.get());
  weights_.residency().keep_reads(profile_->clock(), reads);
}

void Model::stop_profile() {
  std::lock_guard<Turns> turn(turns_);
  pool_.count(nullptr);
  weights_.residency().keep_reads({}, 0);
  profile_ = nullptr;
}

std::vector<std::pair<std::string, Need>> Model::unit_names() const {
  const ReadUnits units = read_units(program_);
  std::vector<std::pair<std::string, Need>> names;
  for (const ReadUnit& unit : units.units) names.emplace_back("", unit.need);
  for (size_t i = 0; i < units.unit_of.size(); ++i) {
    if (units.unit_of[i] >= names.size()) continue;  // nothing reads it
    std::string& name = names[units.unit_of[i]].first;
    if (name.empty()) name = program_.weights[i].name;
  }
  return names;
}

void Model::fail_no_profile() { fail_request("a profile of a model that counts nothing", "start_profile before"); }

std::vector<MemoryUse> Model::memory(bool reset) {
  std::lock_guard<Turns> turn(turns_);
  std::vector<MemoryUse> uses;
  const auto add = [&](const char* owner) -> MemoryUse& { return uses.emplace_back(MemoryUse{owner}); };
  MemoryUse& activations = add("activations");
  for (Arena& arena : arenas_) arena.use(activations, reset);
  scratch_.use(add("working memory"), reset);
  quantized_.use(add("quantised rows"), reset);
  ropes_.use(add("rope tables"), reset);
  MemoryUse& outputs = add("outputs");
  for (Ports& ports : ports_) ports.use(outputs, reset);
  return uses;
}

}  // namespace deepmnn
