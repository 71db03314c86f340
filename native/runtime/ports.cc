#include "runtime/ports.h"

#include <algorithm>
#include <numeric>

#include "runtime/fail.h"

namespace deepmnn {

int64_t Port::count(const Batch& batch) const {
  int64_t rows = dim == Dim::tokens ? batch.tokens : batch.rows;
  if (dim == Dim::context) {
    rows = std::accumulate(batch.context_lengths, batch.context_lengths + batch.sequences, int64_t{0});
  }
  return std::max<int64_t>(rows, 0) * width;  // a batch is checked later
}

Ports::Ports(const Program& program, const ProgramPart& part) : input_buffers_(part.inputs) {
  for (uint32_t id : part.inputs) add_input(program, part, id);
  for (uint32_t id : part.outputs) add_output(program, part, id);
  for (size_t i = part.begin; i < part.end; ++i) {
    for (const WeightUse& use : program.instructions[i].weights) {
      if (use.reading == Reading::looked_up) id_limit_ = std::min(id_limit_, program.weights[use.id].rows);
    }
  }
  unwanted_.resize(outputs_.size());
  supplied_.resize(outputs_.size() + part.inputs.size());
}

// Token ids and positions go in, and whatever an earlier part of the model gave.
void Ports::add_input(const Program& program, const ProgramPart& part, uint32_t id) {
  const BufferInfo& input = program.buffers[id];
  // A second one would be given the other's numbers, which nobody has checked for it.
  const auto same = [&](uint32_t other) { return program.buffers[other].name == input.name; };
  if (std::count_if(part.inputs.begin(), part.inputs.end(), same) > 1) {
    fail_artifact("program.bin: several graph inputs " + input.name, "one");
  }
  const bool ids = input.name == "ids", positions = input.name == "positions";
  const bool known = input.is_int && input.dim == Dim::tokens && input.width == 1;
  if (ids || positions ? !known : input.is_int) {
    fail_artifact("program.bin: graph input " + input.name, "ids or positions, i32 [tokens]; or f32 [rows, width]");
  }
  if (ids) ids_buffer_ = id;
  if (positions) positions_buffer_ = id;
  if (!ids && !positions) inputs_.push_back({input.name, input.is_int, input.dim, input.width});
}

// Logits come out, and whatever else has a name of its own.
void Ports::add_output(const Program& program, const ProgramPart& part, uint32_t id) {
  const BufferInfo& output = program.buffers[id];
  if (this->output(output.name)) fail_artifact("program.bin: several graph outputs " + output.name, "one");
  if (std::count(part.inputs.begin(), part.inputs.end(), id)) {
    fail_artifact("program.bin: graph output " + output.name + " is an input", "what an instruction writes");
  }
  const bool logits = output.name == "logits";
  if (logits && (output.is_int || output.dim != Dim::rows)) {
    fail_artifact("program.bin: graph output logits", "f32 [rows, width]");
  }
  outputs_.push_back({output.name, output.is_int, output.dim, output.width});
  if (logits) id_limit_ = std::min(id_limit_, output.width);
}

const Port* Ports::output(const std::string& name) const {
  const auto found =
      std::find_if(outputs_.begin(), outputs_.end(), [&](const Port& port) { return port.name == name; });
  return found == outputs_.end() ? nullptr : &*found;
}

size_t Ports::logits() const {
  const Port* found = output("logits");
  if (!found) fail_artifact("program.bin: no graph output logits", "one");
  return static_cast<size_t>(found - outputs_.data());
}

void* const* Ports::place(const void* const* inputs, void* const* outputs, const Batch& batch) {
  size_t at = 0;
  int64_t wanted = 0;
  for (size_t i = 0; i < outputs_.size(); ++i) {
    void* target = outputs[i];
    const int64_t nbytes = nbytes_of(outputs_[i].count(batch), 4);
    if (target) wanted += nbytes;
    if (!target) target = unwanted_[i].reserve(nbytes, outputs_[i].name.c_str());
    supplied_[at++] = target;
  }
  wanted_peak_nbytes_ = std::max(wanted_peak_nbytes_, wanted);
  size_t next = 0;
  for (uint32_t id : input_buffers_) {
    const bool ours = id == ids_buffer_ || id == positions_buffer_;
    supplied_[at++] = ours ? nullptr : const_cast<void*>(inputs[next++]);  // ops never write to an input
  }
  return supplied_.data();
}

void Ports::use(MemoryUse& outputs, bool reset) {
  for (Arena& arena : unwanted_) arena.use(outputs, reset);
  outputs.peak_nbytes += wanted_peak_nbytes_;
  if (reset) wanted_peak_nbytes_ = 0;
}

}  // namespace deepmnn
