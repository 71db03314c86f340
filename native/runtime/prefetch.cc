#include "runtime/prefetch.h"

#include <algorithm>
#include <map>

namespace deepmnn {
namespace {

constexpr int64_t kMostGuessRows = 32;  // more rows choose so many experts that a guess of each is worth nothing

// A buffer behind those of its arena.
uint32_t add_buffer(Program& program, const BufferInfo& like, Dim dim) {
  BufferInfo buffer = like;
  buffer.dim = dim;
  buffer.readers = 2;  // it is written as floats
  int64_t& arena = program.arena_nbytes[static_cast<int>(dim)];
  buffer.offset = (arena + 63) / 64 * 64;
  arena = buffer.offset + (buffer.width * 4 + 63) / 64 * 64;
  program.buffers.push_back(buffer);
  return static_cast<uint32_t>(program.buffers.size() - 1);
}

// Which of its inputs are the indices of an instruction with routed weights.
size_t indices_input(const Program& program, const Instruction& reader) {
  const auto found =
      std::find_if(reader.inputs.begin(), reader.inputs.end(), [&](uint32_t id) { return program.buffers[id].is_int; });
  return static_cast<size_t>(found - reader.inputs.begin());
}

}  // namespace

Prefetch::Prefetch(Program& program, const std::vector<std::unique_ptr<Op>>& ops, RopeTables& ropes)
    : choices_(ops.size()) {
  const std::vector<RoutingSlice> slices = routing_slices(program);
  for (size_t i = 0; i < slices.size(); ++i) {
    Choice choice;
    choice.weights = ops[slices[i].reader]->routed();
    if (choice.weights.experts == 0) continue;
    const Instruction& reader = program.instructions[slices[i].reader];
    choice.indices = OpSpec(program, reader, ropes).int_input(indices_input(program, reader));
    // Plain graphs have several instructions that read what one decides: the last of them looks ahead.
    const bool last = i + 1 < slices.size() && slices[i + 1].decider != slices[i].decider;
    if (last) {
      choice.next = make_guess(program, slices[i], slices[i + 1], ropes);
      choice.next.weights = ops[slices[i + 1].reader]->routed();
    }
    choices_[slices[i].decider].push_back(std::move(choice));
  }
}

// Copies of a later layer's routing, on the rows that this layer's experts read.
Prefetch::Guess Prefetch::make_guess(Program& program, const RoutingSlice& here, const RoutingSlice& next,
                                     RopeTables& ropes) {
  Guess guess;
  const uint32_t rows = program.instructions[here.reader].inputs[0];
  const Instruction& reader = program.instructions[next.reader];
  const Dim dim = program.buffers[rows].dim;
  const bool same = program.buffers[rows].width == program.buffers[reader.inputs[0]].width;
  if (next.instructions.empty() || !same || program.buffers[rows].offset < 0) return guess;
  std::map<uint32_t, uint32_t> copies{{reader.inputs[0], rows}};
  for (size_t i : next.instructions) {
    auto copy = std::make_unique<Instruction>(program.instructions[i]);
    for (uint32_t& input : copy->inputs) input = copies.at(input);
    for (uint32_t& output : copy->outputs) {
      const uint32_t fresh = add_buffer(program, program.buffers[output], dim);
      copies[output] = fresh;
      output = fresh;
    }
    guess.ops.push_back(make_op(OpSpec(program, *copy, ropes), copy->op));
    instructions_.push_back(std::move(copy));
  }
  Instruction guessed = reader;
  guessed.inputs = {copies.at(reader.inputs[indices_input(program, reader)])};
  guess.indices = OpSpec(program, guessed, ropes).int_input(0);
  return guess;
}

// The experts that rows choose, each once, with how many choose it.
void Prefetch::gather(const RoutedWeights& weights, const int32_t* indices, int64_t n) {
  ids_.clear();
  uses_.clear();
  counts_.assign(static_cast<size_t>(weights.experts), 0);
  for (int64_t i = 0; i < n; ++i) {
    if (indices[i] >= 0 && indices[i] < weights.experts) ++counts_[static_cast<size_t>(indices[i])];
  }
  for (int64_t expert = 0; expert < weights.experts; ++expert) {
    const int32_t count = counts_[static_cast<size_t>(expert)];
    for (int64_t i = 0; count > 0 && i < weights.each; ++i) {
      ids_.push_back(weights.ids[expert * weights.each + i]);
      uses_.push_back(count);
    }
  }
}

void Prefetch::announce(const Choice& choice, Step& step) {
  Residency& residency = step.weights.residency();
  const int64_t rows = step.n(choice.indices), chosen = rows * choice.weights.top_k;
  gather(choice.weights, step.i32(choice.indices), chosen);
  residency.expect(ids_.data(), uses_.data(), static_cast<int64_t>(ids_.size()), rows);
  residency.forget_guesses();
  const Guess& next = choice.next;
  if (next.weights.experts == 0) return;
  if (chosen >= next.weights.experts) {  // about all of them
    return residency.guess(next.weights.ids, next.weights.experts * next.weights.each);
  }
  if (next.ops.empty() || rows > kMostGuessRows) return;
  for (const std::unique_ptr<Op>& op : next.ops) {
    step.weights.unpin();
    step.scratch.reset();
    op->run(step);
  }
  gather(next.weights, step.i32(next.indices), rows * next.weights.top_k);
  residency.guess(ids_.data(), static_cast<int64_t>(ids_.size()));
}

}  // namespace deepmnn
