// What goes into a part of a program and comes out of it, besides weights and caches.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/batch.h"
#include "runtime/memory.h"
#include "runtime/program.h"

namespace deepmnn {

// One input or output: [rows of dim, width].
struct Port {
  std::string name;
  bool is_int = false;  // i32, else f32
  Dim dim = Dim::rows;
  int64_t width = 0;

  int64_t count(const Batch& batch) const;  // of its elements
  bool is(Dim of, int64_t wide) const { return !is_int && dim == of && width == wide; }
};

class Ports {
 public:
  // Throws Error("artifact") for inputs and outputs that no part of a model has.
  Ports(const Program& program, const ProgramPart& part);

  // What a step takes besides ids and positions, and what it gives, in the program's order.
  const std::vector<Port>& inputs() const { return inputs_; }
  const std::vector<Port>& outputs() const { return outputs_; }
  const Port* output(const std::string& name) const;  // null: there is none
  // Which output is "logits", f32 [rows, vocabulary]. Throws Error("artifact") when there is none: a part of a model.
  size_t logits() const;

  int64_t id_limit() const { return id_limit_; }
  uint32_t ids_buffer() const { return ids_buffer_; }
  uint32_t positions_buffer() const { return positions_buffer_; }

  // Where each output goes, to the caller or, for a null, to room that nobody looks into, and where each input comes
  // from: as Step::supplied has it.
  void* const* place(const void* const* inputs, void* const* outputs, const Batch& batch);
  void use(MemoryUse& outputs, bool reset);

 private:
  void add_input(const Program& program, const ProgramPart& part, uint32_t id);
  void add_output(const Program& program, const ProgramPart& part, uint32_t id);

  std::vector<uint32_t> input_buffers_;
  std::vector<Port> inputs_, outputs_;
  int64_t id_limit_ = INT32_MAX;      // ids must be below: the rows of the smallest table that is looked up
  uint32_t ids_buffer_ = UINT32_MAX;  // unless the part reads them
  uint32_t positions_buffer_ = UINT32_MAX;
  std::vector<Arena> unwanted_;     // of each output
  int64_t wanted_peak_nbytes_ = 0;  // of the outputs that callers had of one step
  std::vector<void*> supplied_;     // outputs, then inputs, in this step
};

}  // namespace deepmnn
