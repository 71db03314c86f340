// Attention of each token over rows of its own: they are brought together, and its heads attend to them as to one key.
// A token's numbers depend on its own rows alone.
#pragma once

#include <cstring>

#include "ops/attend.h"

namespace deepmnn {

struct GatheredShape {
  AttendShape attend;  // keys are the values, too
  int64_t heads = 0;
  CacheType type = CacheType::f32;
  int64_t row_nbytes = 0;
  int64_t scales = 0;  // CacheRows has it
};

constexpr int64_t kGatheredNbytes = 32 << 20;  // of the rows at once; one token may have more

// q and out [tokens, heads, dim], sinks [heads]. count(token): rows that the token sees, at least one; most: no token
// has more. source(token, i): where its row i lies.
template <class Count, class Source>
void attend_gathered(Step& step, const GatheredShape& g, const float* q, const float* sinks, float* out, int64_t tokens,
                     int64_t most, Count&& count, Source&& source) {
  const int64_t dim = g.attend.qk_dim, width = g.heads * dim;
  const int64_t together = std::max<int64_t>(1, std::min(tokens, kGatheredNbytes / (most * g.row_nbytes)));
  uint8_t* rows = step.scratch.take<uint8_t>(together * most * g.row_nbytes);
  AttendJob* jobs = step.scratch.take<AttendJob>(together);
  const AttendRoom room = take_attend_room(step, g.attend);
  for (int64_t first = 0; first < tokens; first += together) {
    const int64_t n = std::min(together, tokens - first);
    for (int64_t i = 0; i < n; ++i) {
      AttendJob job;
      job.keys.type = g.type;
      job.keys.k = job.keys.v = {rows + i * most * g.row_nbytes, g.row_nbytes, 0, g.scales};
      job.q = q + (first + i) * width;
      job.q_stride = dim;
      job.tokens = 1;
      job.per_token = g.heads;
      job.history = count(first + i) - 1;
      job.sinks = sinks;
      job.out = out + (first + i) * width;
      job.out_token_stride = width;
      job.out_query_stride = dim;
      jobs[i] = job;
    }
    for_rows(step, n * most, g.row_nbytes / 4, [&](int64_t at, int) {
      const int64_t i = at / most, row = at % most;
      if (row > jobs[i].history) return;
      std::memcpy(rows + at * g.row_nbytes, source(first + i, row), static_cast<size_t>(g.row_nbytes));
    });
    attend(step, g.attend, room, jobs, n);
  }
}

// The sequence of every token, and its row there.
struct TokenPlace {
  int32_t sequence;
  int32_t position;
};
inline const TokenPlace* token_places(Step& step) {
  TokenPlace* places = step.scratch.take<TokenPlace>(step.batch.tokens);
  for (int64_t s = 0; s < step.batch.sequences; ++s) {
    for (int64_t token = step.batch.sequence_starts[s]; token < step.batch.sequence_starts[s + 1]; ++token) {
      const int64_t position = step.batch.history(s) + token - step.batch.sequence_starts[s];
      places[token] = {static_cast<int32_t>(s), static_cast<int32_t>(position)};
    }
  }
  return places;
}

}  // namespace deepmnn
