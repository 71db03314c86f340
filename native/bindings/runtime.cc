// deepmnn._core.Model, KvCache and the machine's limits.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <new>
#include <optional>
#include <utility>

#include "kernels/dispatch.h"
#include "platform/memory.h"
#include "platform/threads.h"
#include "platform/topology.h"
#include "runtime/fail.h"
#include "runtime/machine.h"
#include "runtime/model.h"
#include "runtime/read_units.h"
#include "runtime/weight_plan.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace deepmnn {
namespace {

using Path = std::filesystem::path;  // from Python's str or bytes: names need not be UTF-8
using Ints = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using IntTable = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Values = nb::ndarray<nb::numpy, float, nb::ndim<2>>;

void require_length(const char* what, size_t length, size_t expected) {
  if (length == expected) return;
  fail_request(std::string(what) + " has length " + std::to_string(length), std::to_string(expected));
}

Batch make_batch(const Ints& ids, const Ints& positions, const Ints& starts, const Ints& lengths,
                 const IntTable& tables, const Ints& rows) {
  require_length("positions", positions.shape(0), ids.shape(0));
  require_length("sequence_starts", starts.shape(0), lengths.shape(0) + 1);
  require_length("block_tables", tables.shape(0), lengths.shape(0));
  Batch batch;
  batch.ids = ids.data();
  batch.positions = positions.data();
  batch.sequence_starts = starts.data();
  batch.context_lengths = lengths.data();
  batch.block_tables = tables.data();
  batch.logit_rows = rows.data();
  batch.tokens = static_cast<int64_t>(ids.shape(0));
  batch.sequences = static_cast<int64_t>(lengths.shape(0));
  batch.table_width = static_cast<int64_t>(tables.shape(1));
  batch.rows = static_cast<int64_t>(rows.shape(0));
  return batch;
}

// Room for an output of a step, which writes it all. Not cleared, and plainly freed: so the allocator has the same warm
// pages for the next step. Only for much of it the machine is asked.
std::unique_ptr<float[]> new_output(const Port& output, const Batch& batch) {
  const int64_t nbytes = nbytes_of(output.count(batch), 4);
  require_memory(nbytes, output.name.c_str());
  std::unique_ptr<float[]> data(new (std::nothrow) float[nbytes / sizeof(float)]);
  if (!data) fail_memory(nbytes, output.name.c_str());
  return data;
}

// An output for Python, which frees it.
template <class T>
nb::ndarray<nb::numpy, T, nb::ndim<2>> hand_over(std::unique_ptr<float[]> owned, const Port& output, int64_t rows) {
  T* data = reinterpret_cast<T*>(owned.release());
  nb::capsule owner(data, [](void* pointer) noexcept { delete[] static_cast<float*>(pointer); });
  return nb::ndarray<nb::numpy, T, nb::ndim<2>>(data, {static_cast<size_t>(rows), static_cast<size_t>(output.width)},
                                                owner);
}

void run_step(Model& model, KvCache& cache, const Batch& batch, const std::vector<const void*>& inputs,
              const std::vector<void*>& outputs) {
  const nb::gil_scoped_release release;
  model.step(cache, batch, inputs.data(), outputs.data());
}

Values step(Model& model, KvCache& cache, const Ints& ids, const Ints& positions, const Ints& sequence_starts,
            const Ints& context_lengths, const IntTable& block_tables, const Ints& logit_rows) {
  const Batch batch = make_batch(ids, positions, sequence_starts, context_lengths, block_tables, logit_rows);
  if (!model.inputs().empty()) fail_request("a step without " + model.inputs()[0].name, "run, with the inputs");
  const Port& wanted = model.outputs()[model.logits()];
  std::unique_ptr<float[]> logits = new_output(wanted, batch);
  std::vector<void*> outputs(model.outputs().size());
  outputs[model.logits()] = logits.get();
  run_step(model, cache, batch, {}, outputs);
  return hand_over<float>(std::move(logits), wanted, batch.rows);
}

// Where the inputs of a step lie, in the program's order.
std::vector<const void*> given_inputs(const Model& model, const Batch& batch, const nb::dict& given) {
  std::vector<const void*> inputs;
  for (const Port& port : model.inputs()) {
    nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu> array;
    if (!given.contains(port.name.c_str()) || !nb::try_cast(given[port.name.c_str()], array, false)) {
      fail_request("no input " + port.name + " in float32", "one, [rows, " + std::to_string(port.width) + "]");
    }
    const int64_t width = static_cast<int64_t>(array.shape(1));
    if (width != port.width || static_cast<int64_t>(array.shape(0)) * width != port.count(batch)) {
      fail_request("input " + port.name + " has " + std::to_string(array.shape(0)) + " rows of " +
                       std::to_string(width) + " numbers",
                   std::to_string(port.count(batch) / port.width) + " of " + std::to_string(port.width));
    }
    inputs.push_back(array.data());
  }
  return inputs;
}

// Every output by name.
nb::dict run(Model& model, KvCache& cache, const Ints& ids, const Ints& positions, const Ints& sequence_starts,
             const Ints& context_lengths, const IntTable& block_tables, const Ints& logit_rows, const nb::dict& given) {
  const Batch batch = make_batch(ids, positions, sequence_starts, context_lengths, block_tables, logit_rows);
  const std::vector<const void*> inputs = given_inputs(model, batch, given);
  std::vector<std::unique_ptr<float[]>> owned;
  std::vector<void*> outputs;
  for (const Port& output : model.outputs()) {
    owned.push_back(new_output(output, batch));
    outputs.push_back(owned.back().get());
  }
  run_step(model, cache, batch, inputs, outputs);
  nb::dict named;
  for (size_t i = 0; i < outputs.size(); ++i) {
    const Port& output = model.outputs()[i];
    const int64_t rows = output.count(batch) / output.width;
    if (output.is_int) {
      named[output.name.c_str()] = hand_over<int32_t>(std::move(owned[i]), output, rows);
    } else {
      named[output.name.c_str()] = hand_over<float>(std::move(owned[i]), output, rows);
    }
  }
  return named;
}

// state [tokens, width] → logits [rows, vocab_size], the next state [rows, width].
nb::tuple draft(Model& model, KvCache& cache, const Ints& ids, const Ints& positions, const Ints& sequence_starts,
                const Ints& context_lengths, const IntTable& block_tables, const Ints& logit_rows,
                const nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>& state) {
  const Batch batch = make_batch(ids, positions, sequence_starts, context_lengths, block_tables, logit_rows);
  const Port* read = model.draft_state();
  if (!read) fail_request("a draft of a model without a draft part", "one that is loaded with it");
  if (static_cast<int64_t>(state.shape(0)) != batch.tokens || static_cast<int64_t>(state.shape(1)) != read->width) {
    fail_request("a state of [" + std::to_string(state.shape(0)) + ", " + std::to_string(state.shape(1)) + "]",
                 "[" + std::to_string(batch.tokens) + ", " + std::to_string(read->width) + "]");
  }
  const Port& scores = model.outputs()[model.logits()];
  const Port given{read->name, false, Dim::rows, read->width};
  std::unique_ptr<float[]> logits = new_output(scores, batch), next = new_output(given, batch);
  {
    const nb::gil_scoped_release release;
    model.draft(cache, batch, state.data(), logits.get(), next.get());
  }
  return nb::make_tuple(hand_over<float>(std::move(logits), scores, batch.rows),
                        hand_over<float>(std::move(next), given, batch.rows));
}

// draws: (logits [vocab_size] float32, temperature, top_k, top_p, min_p, u) for each row.
std::vector<int32_t> sample_rows(Model& model, const nb::list& draws) {
  using Row = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
  std::vector<Model::Draw> rows;
  std::vector<Row> kept;  // the arrays that rows point to
  for (const nb::handle entry : draws) {
    const nb::tuple draw = nb::cast<nb::tuple>(entry);
    require_length("a draw", draw.size(), 6);
    kept.push_back(nb::cast<Row>(draw[0]));
    const SamplingParams params{nb::cast<float>(draw[1]), nb::cast<int32_t>(draw[2]), nb::cast<float>(draw[3]),
                                nb::cast<float>(draw[4])};
    rows.push_back({kept.back().data(), static_cast<int64_t>(kept.back().shape(0)), params, nb::cast<float>(draw[5])});
  }
  const nb::gil_scoped_release release;
  return model.sample(rows);
}

CacheType cache_type(const std::string& dtype) {
  if (dtype == "f32") return CacheType::f32;
  if (dtype == "bf16") return CacheType::bf16;
  if (dtype == "int8") return CacheType::int8;
  fail_request("a cache of dtype " + dtype, "f32, bf16 or int8");
}

std::unique_ptr<KvCache> new_cache(const Model& model, int64_t blocks, int64_t block_size, const std::string& dtype,
                                   std::optional<int64_t> recent_blocks) {
  if (recent_blocks && *recent_blocks < 0) fail_request(std::to_string(*recent_blocks) + " recent blocks", "0 or more");
  auto cache =
      std::make_unique<KvCache>(model.caches(), blocks, block_size, cache_type(dtype), recent_blocks.value_or(-1));
  model.place(*cache);
  return cache;
}

using Bytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ConstBytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void read_block(const KvCache& cache, int64_t block, const Bytes& rows) {
  require_length("rows", rows.shape(0), static_cast<size_t>(cache.block_nbytes()));
  const nb::gil_scoped_release release;
  cache.read_block(block, rows.data());
}

void write_block(KvCache& cache, int64_t block, const ConstBytes& rows) {
  require_length("rows", rows.shape(0), static_cast<size_t>(cache.block_nbytes()));
  const nb::gil_scoped_release release;
  cache.write_block(block, rows.data());
}

void set_mla_form(Model& model, const std::string& form) {
  if (form == "auto") {
    model.set_mla_form(MlaForm::automatic);
  } else if (form == "absorbed") {
    model.set_mla_form(MlaForm::absorbed);
  } else if (form == "expanded") {
    model.set_mla_form(MlaForm::expanded);
  } else {
    fail_request("MLA form " + form, "auto, absorbed or expanded");
  }
}

// Name to width, ratio, window and exactness.
nb::dict caches(const Model& model) {
  nb::dict entries;
  for (const CacheInfo& cache : model.caches()) {
    entries[cache.name.c_str()] = nb::make_tuple(cache.width, cache.ratio, cache.window, cache.exact);
  }
  return entries;
}

nb::dict outputs(const Model& model) {
  nb::dict widths;
  for (const Port& output : model.outputs()) widths[output.name.c_str()] = output.width;
  return widths;
}

// What the program's instructions are, in order.
nb::list instructions(const Model& model) {
  nb::list found;
  for (const Instruction& instruction : model.instructions()) {
    nb::dict entry;
    entry["op"] = instruction.op;
    entry["name"] = instruction.name;
    entry["row_macs"] = instruction.row_macs;
    entry["context_macs"] = instruction.context_macs;
    found.append(entry);
  }
  return found;
}

nb::ndarray<nb::numpy, int64_t, nb::ndim<2>> int_array(std::vector<int64_t> numbers, size_t width) {
  auto owned = std::make_unique<std::vector<int64_t>>(std::move(numbers));
  std::vector<int64_t>* data = owned.release();
  nb::capsule owner(data, [](void* pointer) noexcept { delete static_cast<std::vector<int64_t>*>(pointer); });
  return {data->data(), {data->size() / width, width}, owner};
}

// [zones, 2] calls and nanoseconds, then for each worker [zones, 5], as Work has them.
nb::list profile(Model& model, bool reset) {
  std::vector<int64_t> zones;
  std::vector<std::vector<int64_t>> workers;
  model.profile(reset, [&](const Profile& profile) {
    const double rate = profile.clock().read().ns_per_unit();
    const auto ns = [&](int64_t time) { return static_cast<int64_t>(static_cast<double>(time) * rate); };
    for (const Profile::Zone& zone : profile.zones()) zones.insert(zones.end(), {zone.calls, ns(zone.time)});
    for (const Profile::Worker& worker : profile.workers()) {
      std::vector<int64_t>& rows = workers.emplace_back();
      for (const Work& work : worker.work) {
        rows.insert(rows.end(), {work.pieces, work.stolen, ns(work.own), ns(work.steal), work.wait_ns});
      }
    }
  });
  nb::list found;
  found.append(int_array(std::move(zones), 2));
  for (std::vector<int64_t>& rows : workers) found.append(int_array(std::move(rows), 5));
  return found;
}

// Of each worker: how many spans it has forgotten, and those it remembers, oldest first, [n, 5], as Span has them.
nb::list spans(Model& model) {
  std::vector<std::pair<int64_t, std::vector<int64_t>>> workers;
  model.profile(false, [&](const Profile& profile) {
    const QuickClock::Reading clock = profile.clock().read();
    for (const Profile::Worker& worker : profile.workers()) {
      const int64_t room = static_cast<int64_t>(worker.spans.size()),
                    lost = std::max<int64_t>(0, worker.spanned - room);
      std::vector<int64_t>& rows = workers.emplace_back(lost, std::vector<int64_t>()).second;
      for (int64_t i = lost; i < worker.spanned; ++i) {
        const Span& span = worker.spans[static_cast<size_t>(i % room)];
        rows.insert(rows.end(), {clock.ns_at(span.begin), clock.ns_at(span.end), span.zone,
                                 static_cast<int64_t>(span.doing), span.pieces});
      }
    }
  });
  nb::list found;
  for (auto& [lost, rows] : workers) found.append(nb::make_tuple(lost, int_array(std::move(rows), 5)));
  return found;
}

// What a profile keeps of reads, waits and choices of experts; see _core.pyi.
nb::dict reads(Model& model) {
  std::vector<int64_t> reads, waits, choices;
  int64_t lost_reads = 0, lost_waits = 0;
  model.profile(false, [&](const Profile& profile) {
    const QuickClock::Reading clock = profile.clock().read();
    const ReadLog log = model.read_log();
    lost_reads = log.each_read([&](const ReadSpan& span) {
      reads.insert(reads.end(), {clock.ns_at(span.begin), clock.ns_at(span.end), static_cast<int64_t>(span.unit),
                                 span.nbytes, static_cast<int64_t>(span.cause), span.used});
    });
    lost_waits = log.each_wait([&](const WaitSpan& span) {
      const int64_t unit = span.unit == WaitSpan::kNone ? -1 : static_cast<int64_t>(span.unit);
      waits.insert(waits.end(), {clock.ns_at(span.begin), clock.ns_at(span.end), unit});
    });
    for (const Choices& unit : log.choices()) {
      choices.insert(choices.end(), {unit.hits, unit.misses, unit.guesses, unit.good_guesses});
    }
  });
  nb::dict found;
  if (!model.streams()) return found;
  found["lost"] = lost_reads + lost_waits;
  found["reads"] = int_array(std::move(reads), 6);
  found["waits"] = int_array(std::move(waits), 3);
  found["choices"] = int_array(std::move(choices), 4);
  nb::list units;
  for (const auto& [name, need] : model.unit_names()) {
    const bool dense = need == Need::dense || need == Need::always;
    units.append(nb::make_tuple(name, need == Need::routed ? "expert" : dense ? "dense" : "rows"));
  }
  found["units"] = units;
  return found;
}

// Nothing where all weights are mapped.
nb::dict streaming(const Model& model) {
  nb::dict found;
  if (!model.streams()) return found;
  const StreamCounts counts = model.stream_counts();
  found["reads"] = counts.reads;
  found["read_nbytes"] = counts.read_nbytes;
  found["read_seconds"] = static_cast<double>(counts.read_ns) * 1e-9;
  found["wait_seconds"] = static_cast<double>(counts.wait_ns) * 1e-9;
  found["expert_hits"] = counts.expert_hits;
  found["expert_misses"] = counts.expert_misses;
  found["predicted"] = counts.guesses;
  found["predicted_used"] = counts.good_guesses;
  return found;
}

nb::dict memory(Model& model, bool reset) {
  nb::dict owners;
  for (const MemoryUse& use : model.memory(reset)) {
    owners[use.owner.c_str()] = nb::make_tuple(use.nbytes, use.resident_nbytes, use.peak_nbytes);
  }
  return owners;
}

int checked_threads(int threads) {
  if (threads < 0 || threads > 1024) fail_request(std::to_string(threads) + " threads", "0 to 1024");
  return threads == 0 ? available_cores() : threads;
}

// Of these processors, None: those this process may run on.
int cores(const Path& root, const std::optional<std::vector<int>>& processors) {
  return available_cores(processors ? *processors : allowed_processors(), root.string());
}

// node id → its processors among `processors`, as above.
nb::dict numa_nodes(const std::optional<std::vector<int>>& processors, const Path& root) {
  nb::dict nodes;
  for (const NumaNode& node : read_nodes(processors ? *processors : allowed_processors(), root.string())) {
    nodes[nb::cast(node.id)] = nb::cast(node.processors);
  }
  return nodes;
}

WeightPlan plan_of(const nb::bytes& program, int64_t memory, bool draft) {
  Program parsed = parse_program(reinterpret_cast<const uint8_t*>(program.c_str()), program.size());
  if (!draft) drop_draft(parsed);
  ReadUnits units;
  return plan_parts(parsed, units, memory);
}

std::optional<std::string> draft_state(const Model& model) {
  if (const Port* state = model.draft_state()) return state->name;
  return std::nullopt;
}

void bind_plan(nb::module_& m) {
  nb::class_<WeightPlan>(m, "WeightPlan")
      .def_ro("mapped", &WeightPlan::mapped)
      .def_ro("total_nbytes", &WeightPlan::total_nbytes)
      .def_ro("least_nbytes", &WeightPlan::least_nbytes)
      .def_ro("memory_nbytes", &WeightPlan::memory_nbytes)
      .def_ro("resident_nbytes", &WeightPlan::resident_nbytes)
      .def_ro("streamed_nbytes", &WeightPlan::streamed_nbytes)
      .def_ro("ring_nbytes", &WeightPlan::ring_nbytes)
      .def_ro("expert_nbytes", &WeightPlan::expert_nbytes)
      .def_ro("cache_nbytes", &WeightPlan::cache_nbytes)
      .def_ro("table_nbytes", &WeightPlan::table_nbytes);
  m.def("plan_weights", &plan_of, "program"_a, "memory"_a = 0, "draft"_a = true);
}

void bind_model(nb::module_& m) {
  nb::class_<KvCache>(m, "KvCache")
      .def_prop_ro("blocks", &KvCache::blocks)
      .def_prop_ro("block_size", &KvCache::block_size)
      .def_prop_ro("nbytes", &KvCache::nbytes)
      .def_prop_ro("resident_nbytes", &KvCache::resident_nbytes)
      .def_prop_ro("block_nbytes", &KvCache::block_nbytes)
      .def_prop_ro("recent_blocks", &KvCache::recent_blocks)
      .def("place_recent", &KvCache::place_recent, "block"_a, "place"_a)
      .def("copy_block", &KvCache::copy_block, "source"_a, "target"_a, nb::call_guard<nb::gil_scoped_release>())
      .def("read_block", &read_block, "block"_a, "rows"_a.noconvert())
      .def("write_block", &write_block, "block"_a, "rows"_a.noconvert());
  nb::class_<Model>(m, "Model")
      .def(nb::init<const Path&, int, const std::string&, const std::string&, const Path&, int64_t, bool>(),
           "directory"_a, "threads"_a = 0, "isa"_a = "", "numa"_a = "off", "numa_root"_a = "", "memory"_a = 0,
           "draft"_a = true, nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("vocab_size", &Model::vocab_size)
      .def_prop_ro("isa", &Model::isa)
      .def_prop_ro("numa", &Model::numa)
      .def_prop_ro("threads", &Model::threads)
      .def_prop_ro("weight_nbytes", &Model::weight_nbytes)
      .def_prop_ro("weight_plan", &Model::weight_plan)
      .def_prop_ro("streaming", &streaming)
      .def_prop_ro("caches", &caches)
      .def_prop_ro("outputs", &outputs)
      .def_prop_ro("step_seconds", &Model::step_seconds)
      .def("new_cache", &new_cache, "blocks"_a, "block_size"_a, "dtype"_a = "f32", "recent_blocks"_a = nb::none())
      .def("set_mla_form", &set_mla_form, "form"_a)
      .def("reserve", &Model::reserve, "working_nbytes"_a)
      .def("step", &step, "cache"_a, "ids"_a.noconvert(), "positions"_a.noconvert(), "sequence_starts"_a.noconvert(),
           "context_lengths"_a.noconvert(), "block_tables"_a.noconvert(), "logit_rows"_a.noconvert())
      .def("run", &run, "cache"_a, "ids"_a.noconvert(), "positions"_a.noconvert(), "sequence_starts"_a.noconvert(),
           "context_lengths"_a.noconvert(), "block_tables"_a.noconvert(), "logit_rows"_a.noconvert(),
           "inputs"_a = nb::dict())
      .def_prop_ro("draft_state", &draft_state)
      .def("draft", &draft, "cache"_a, "ids"_a.noconvert(), "positions"_a.noconvert(), "sequence_starts"_a.noconvert(),
           "context_lengths"_a.noconvert(), "block_tables"_a.noconvert(), "logit_rows"_a.noconvert(),
           "state"_a.noconvert())
      .def("sample", &sample_rows, "draws"_a)
      .def_prop_ro("instructions", &instructions)
      .def("start_profile", &Model::start_profile, "spans"_a = 0, "reads"_a = 0,
           nb::call_guard<nb::gil_scoped_release>())
      .def("stop_profile", &Model::stop_profile, nb::call_guard<nb::gil_scoped_release>())
      .def("profile", &profile, "reset"_a = false)
      .def("spans", &spans)
      .def("reads", &reads)
      .def("memory", &memory, "reset"_a = false);
}

}  // namespace
}  // namespace deepmnn

void bind_runtime(nb::module_& m) {
  using namespace deepmnn;
  bind_plan(m);
  bind_model(m);
  nb::list parts;
  for (const char* name : kPartNames) parts.append(name);
  m.attr("PARTS") = nb::tuple(parts);
  m.def("available_cores", &cores, "root"_a = "", "processors"_a = nb::none());
  m.def("available_memory", [](const Path& root) { return available_memory(root.string()); }, "root"_a = "");
  m.def("numa_nodes", &numa_nodes, "processors"_a = nb::none(), "root"_a = "");
  m.def(
      "measure_read_bandwidth", [](int threads) { return measure_read_bandwidth(checked_threads(threads)); },
      "threads"_a = 0, nb::call_guard<nb::gil_scoped_release>());
  m.def(
      "measure_f32_peak",
      [](int threads, const std::string& isa) {
        return measure_f32_peak(checked_threads(threads), select_kernels(isa.c_str()));
      },
      "threads"_a = 0, "isa"_a = "", nb::call_guard<nb::gil_scoped_release>());
  m.def(
      "measure_int8_peak",
      [](int threads, const std::string& isa) {
        return measure_int8_peak(checked_threads(threads), select_kernels(isa.c_str()));
      },
      "threads"_a = 0, "isa"_a = "", nb::call_guard<nb::gil_scoped_release>());
}
