// Runs one sequence through a model and writes the logits of every token, [tokens, vocab_size] float32, to a file.
//
//   run_model DIRECTORY ISA OUT SPAN TOKEN ...      SPAN: tokens of a step
//
// tests/native/test_stub_platform.py compares them with another build's. An error goes to stderr: exit status 1.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <vector>

#include "runtime/error.h"
#include "runtime/model.h"

namespace deepmnn {
namespace {

constexpr int64_t kBlockSize = 4;

// Logits of tokens [first, first + n) after those before them.
void run_step(Model& model, KvCache& cache, const std::vector<int32_t>& ids, int32_t first, int32_t n, float* logits) {
  std::vector<int32_t> table, positions, rows;
  for (int32_t block = 0; block < cache.blocks(); ++block) table.push_back(block);
  for (int32_t i = 0; i < n; ++i) {
    positions.push_back(first + i);
    rows.push_back(i);
  }
  const int32_t starts[] = {0, n}, length = first + n;
  Batch batch;
  batch.ids = ids.data() + first;
  batch.positions = positions.data();
  batch.sequence_starts = starts;
  batch.context_lengths = &length;
  batch.block_tables = table.data();
  batch.logit_rows = rows.data();
  batch.tokens = batch.rows = n;
  batch.sequences = 1;
  batch.table_width = cache.blocks();
  void* const outputs[] = {logits};  // the program has no other
  model.step(cache, batch, nullptr, outputs);
}

void run(const char* directory, const char* isa, const char* out, int32_t span, const std::vector<int32_t>& ids) {
  Model model(directory, 0, isa);
  const int32_t tokens = static_cast<int32_t>(ids.size());
  KvCache cache(model.caches(), (tokens + kBlockSize - 1) / kBlockSize, kBlockSize, CacheType::f32);
  std::vector<float> logits(static_cast<size_t>(tokens * model.vocab_size()));
  for (int32_t first = 0; first < tokens; first += span) {
    run_step(model, cache, ids, first, std::min(span, tokens - first), logits.data() + first * model.vocab_size());
  }
  std::ofstream file(out, std::ios::binary);
  file.write(reinterpret_cast<const char*>(logits.data()), static_cast<std::streamsize>(logits.size() * sizeof(float)));
  std::printf("%d\n", model.threads());
}

}  // namespace
}  // namespace deepmnn

int main(int argc, char** argv) {
  if (argc < 6) return 2;
  std::vector<int32_t> ids;
  for (int i = 5; i < argc; ++i) ids.push_back(std::atoi(argv[i]));
  try {
    deepmnn::run(argv[1], argv[2], argv[3], std::atoi(argv[4]), ids);
  } catch (const deepmnn::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
