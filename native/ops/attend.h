// Causal attention of one sequence's queries over keys and values that lie in rows: in the pages of a cache, or one
// after another. Runs any number of (sequence, kv head) jobs in one or two dispatches.
#pragma once

#include <cstdint>

#include "runtime/step.h"

namespace deepmnn {

constexpr int64_t kSplitTokens = 4;  // sequences with at most this many new tokens split their keys

// Where a sequence's keys and values lie. Row r is row r % block_size of block table[r / block_size].
struct KeyRows {
  CacheType type = CacheType::f32;
  CacheRows k, v;
  const int32_t* table = nullptr;  // null: row r is row r
  int64_t block_size = 1;
};

inline CacheRows float_rows(const float* data, int64_t stride) {
  return {reinterpret_cast<const uint8_t*>(data), stride * 4, 0};
}

// Query j (one every q_stride floats), rotated where the rows are, belongs to new token i = j / per_token and sees the
// first history + i + 1 rows.
// Its answer goes to out + i * out_token_stride + (j % per_token) * out_query_stride.
struct AttendJob {
  KeyRows keys;
  const float* q = nullptr;
  int64_t q_stride = 0;
  int64_t tokens = 0;
  int64_t per_token = 1;
  int64_t history = 0;
  bool whole = false;              // its keys are not split, however few its tokens are
  const uint16_t* mask = nullptr;  // [queries / 16, keys]: bit j % 16 says whether query j sees a key; one a token
  float* out = nullptr;
  int64_t out_token_stride = 0;
  int64_t out_query_stride = 0;
  const float* sinks = nullptr;  // [per_token]: scores that take part in the softmax without a value; null: none
};

// Sizes that all jobs of an op share.
struct AttendShape {
  int64_t qk_dim = 0;
  int64_t v_dim = 0;
  float scale = 1.0f;
};

constexpr int64_t kAloneTokens = 16;  // so few new tokens of a sequence are computed as if each came alone

// What every worker computes with, in scratch.
struct AttendRoom {
  float* acc;       // [workers, tile, v_dim]
  float* max_sum;   // [workers, tile, 2]
  int32_t* limits;  // [workers, tile]
  float* strips;    // [workers, attention_work]
};
AttendRoom take_attend_room(Step& step, const AttendShape& shape);

// room: an op that attends several times takes it once.
void attend(Step& step, const AttendShape& shape, const AttendRoom& room, const AttendJob* jobs, int64_t count);
inline void attend(Step& step, const AttendShape& shape, const AttendJob* jobs, int64_t count) {
  attend(step, shape, take_attend_room(step, shape), jobs, count);
}

// What the plain and the fused op share: q and y [tokens, heads, dim], k and v [keys, kv_heads, dim].
class GroupedQueryOp : public Op {
 protected:
  void read_grouped_query(const OpSpec& spec, Dim keys);

  int64_t heads_ = 0, kv_heads_ = 0;
  AttendShape shape_;
  Buffer q_, k_, v_, y_;
};

}  // namespace deepmnn
