#include "runtime/routing_slice.h"

#include <algorithm>

namespace deepmnn {
namespace {

constexpr size_t kNone = SIZE_MAX;
constexpr size_t kMostInstructions = 32;  // of a slice: the plain routing of DeepSeek-V3 takes a dozen

// Which instruction writes each buffer.
std::vector<size_t> writers(const Program& program) {
  std::vector<size_t> writer(program.buffers.size(), kNone);
  for (size_t i = 0; i < program.instructions.size(); ++i) {
    for (uint32_t id : program.instructions[i].outputs) writer[id] = i;
  }
  return writer;
}

// What makes buffer `made` of buffer `given`, in order; empty where something else is needed.
std::vector<size_t> between(const Program& program, const std::vector<size_t>& writer, uint32_t given, uint32_t made) {
  std::vector<size_t> found;
  std::vector<uint32_t> wanted{made};
  while (!wanted.empty()) {
    const uint32_t id = wanted.back();
    wanted.pop_back();
    if (id == given) continue;
    const size_t from = writer[id];
    if (from == kNone || found.size() == kMostInstructions) return {};
    if (std::count(found.begin(), found.end(), from)) continue;
    if (!program.instructions[from].caches.empty()) return {};
    found.push_back(from);
    for (uint32_t input : program.instructions[from].inputs) wanted.push_back(input);
  }
  std::sort(found.begin(), found.end());
  return found;
}

}  // namespace

std::vector<RoutingSlice> routing_slices(const Program& program) {
  const std::vector<size_t> writer = writers(program);
  std::vector<RoutingSlice> slices;
  for (size_t i = 0; i < program.instructions.size(); ++i) {
    const Instruction& instruction = program.instructions[i];
    const bool routed = std::any_of(instruction.weights.begin(), instruction.weights.end(),
                                    [](const WeightUse& use) { return use.reading == Reading::routed; });
    if (!routed) continue;
    const auto indices = std::find_if(instruction.inputs.begin(), instruction.inputs.end(),
                                      [&](uint32_t id) { return program.buffers[id].is_int; });
    if (indices == instruction.inputs.end() || writer[*indices] == kNone) continue;
    slices.push_back({i, writer[*indices], between(program, writer, instruction.inputs[0], *indices)});
  }
  return slices;
}

size_t weights_per_expert(const Instruction& instruction) {
  const auto experts = instruction.attrs.find("experts");
  if (experts == instruction.attrs.end() || !std::holds_alternative<int64_t>(experts->second)) return 1;
  const int64_t count = std::get<int64_t>(experts->second);
  if (count < 1 || instruction.weights.size() % static_cast<size_t>(count) != 0) return 1;
  return std::max<size_t>(1, instruction.weights.size() / static_cast<size_t>(count));
}

}  // namespace deepmnn
