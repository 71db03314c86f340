// libFuzzer's target over what an artifact gives the core: program.bin and the weights it maps.
//
//   core_fuzzer [libFuzzer's flags] CORPUS ...        FUZZ_FOLDER: an empty folder for the files
//
// An input is a byte of choices, 4 bytes of length, program.bin, and the bytes of every shard. Whatever they are,
// loading and two steps end well or with an Error. tests/fuzz/native.py builds this, with sanitizers, and makes the
// first inputs.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <vector>

#include "kernels/dispatch.h"
#include "runtime/error.h"
#include "runtime/model.h"

namespace deepmnn {
namespace {

constexpr int32_t kTokens = 3, kSteps = 2, kBlockSize = 4;
constexpr int64_t kSmall = int64_t{1} << 24;  // bytes of a step: a machine may have more than this process may take

void write(const std::string& path, const uint8_t* data, size_t nbytes) {
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(nbytes));
}

// Whether a few steps take little memory and time.
bool is_small(const Program& program) {
  int64_t total = 0;
  for (int64_t nbytes : program.arena_nbytes) total += nbytes * kTokens * kSteps;
  for (const CacheInfo& cache : program.caches) total += cache.width * kBlockSize * 2 * 4;
  for (const BufferInfo& buffer : program.buffers) total += buffer.width * 4 * kTokens * kSteps;
  return total <= kSmall;
}

void run_steps(Model& model, CacheType type) {
  KvCache cache(model.caches(), 2, kBlockSize, type);
  std::vector<std::vector<float>> inputs, outputs;
  for (int32_t step = 0; step < kSteps; ++step) {
    const int32_t first = step * kTokens, starts[] = {0, kTokens}, length = first + kTokens, table[] = {1, 0};
    const int32_t ids[] = {0, 1, 2}, positions[] = {first, first + 1, first + 2}, rows[] = {0, kTokens - 1};
    Batch batch;
    batch.ids = ids;
    batch.positions = positions;
    batch.sequence_starts = starts;
    batch.context_lengths = &length;
    batch.block_tables = table;
    batch.logit_rows = rows;
    batch.tokens = kTokens;
    batch.rows = batch.table_width = 2;
    batch.sequences = 1;
    std::vector<const void*> given;
    std::vector<void*> taken;
    inputs.clear();
    outputs.clear();
    for (const Port& port : model.inputs()) inputs.emplace_back(port.count(batch), 0.5f);
    for (const Port& port : model.outputs()) outputs.emplace_back(port.count(batch));
    for (const auto& input : inputs) given.push_back(input.data());
    for (auto& output : outputs) taken.push_back(output.data());
    model.step(cache, batch, given.data(), taken.data());
    if (const Port* state = model.draft_state()) {
      const std::vector<float> begin(static_cast<size_t>(state->width * batch.tokens), 0.5f);
      std::vector<float> logits(static_cast<size_t>(model.vocab_size() * batch.rows));
      std::vector<float> next(static_cast<size_t>(state->width * batch.rows));
      model.draft(cache, batch, begin.data(), logits.data(), next.data());
    }
  }
}

void run(const uint8_t* data, size_t nbytes) {
  constexpr size_t kHead = 5;
  if (nbytes < kHead) return;
  uint32_t length;
  std::memcpy(&length, data + 1, sizeof length);
  const size_t program_nbytes = std::min<size_t>(length, nbytes - kHead);
  const uint8_t *begin = data + kHead, choice = data[0];
  // On the heap, to the byte: what is read beyond it is seen.
  const std::vector<uint8_t> bytes(begin, begin + program_nbytes);
  const Program program = parse_program(bytes.data(), bytes.size());
  if (program.shards.size() > 2) return;
  static const std::string folder = std::getenv("FUZZ_FOLDER") ? std::getenv("FUZZ_FOLDER") : ".";
  std::vector<std::string> files{folder + "/program.bin"};
  for (const std::string& shard : program.shards) files.push_back(folder + "/" + shard);
  write(files[0], bytes.data(), bytes.size());
  for (size_t i = 1; i < files.size(); ++i) write(files[i], begin + program_nbytes, nbytes - kHead - program_nbytes);
  try {
    const auto& kernels = runnable_kernels();
    Model model(folder, 1, kernels[choice / 16 % kernels.size()]->isa);
    model.set_mla_form(static_cast<MlaForm>(choice / 4 % 3));
    if (is_small(program)) run_steps(model, static_cast<CacheType>(choice % 3));
  } catch (const Error&) {
  }
  for (const std::string& file : files) std::remove(file.c_str());
}

}  // namespace
}  // namespace deepmnn

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t nbytes) {
  try {
    deepmnn::run(data, nbytes);
  } catch (const deepmnn::Error&) {
  }
  return 0;
}
