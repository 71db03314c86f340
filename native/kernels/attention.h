// Flash-style attention (Dao et al., 2022): queries against one run of cache rows, tile by tile. A query carries its
// running maximum m and sum s between runs: acc and s are those of exp(score - m), so a new maximum rescales both.
// Nothing here depends on what a query is: a head of a GQA group or of MLA (expanded or absorbed), of any token. A
// query's numbers depend on the form the task asks for (float caches), never on the other queries.
#pragma once

#include "kernels/attention_int8.h"
#include "kernels/attention_rows.h"
#include "kernels/attention_strips.h"

namespace deepmnn::DEEPMNN_NS {

inline void attention_kernel(const AttentionTask& task) {
  const bool rows = task.form == AttentionForm::rows;
  switch (task.type) {
    case CacheType::f32:
      return rows ? attend_rows<CacheF32>(task) : attend_strips<CacheF32>(task);
    case CacheType::bf16:
      return rows ? attend_rows<CacheBf16>(task) : attend_strips<CacheBf16>(task);
    case CacheType::int8:
      return attend_int8(task);
  }
}

}  // namespace deepmnn::DEEPMNN_NS
