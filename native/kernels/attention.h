// Flash-style attention (Dao et al., 2022): queries against one run of cache rows, tile by tile. A query carries its
// running maximum m and sum s between runs: acc and s are those of exp(score - m), so a new maximum rescales both.
// Nothing here depends on what a query is: a head of a GQA group or of MLA (expanded or absorbed), of any token. A
// query's numbers depend on the form the task asks for, never on the other queries.
#pragma once

#include "kernels/attention_panels.h"
#include "kernels/attention_rows.h"

namespace deepmnn::DEEPMNN_NS {

template <class Cache>
void attend_run(const AttentionTask& task) {
  task.form == AttentionForm::rows ? attend_rows<Cache>(task) : attend_panels<Cache>(task);
}

inline void attention_kernel(const AttentionTask& task) {
  switch (task.type) {
    case CacheType::f32:
      return attend_run<CacheF32>(task);
    case CacheType::bf16:
      return attend_run<CacheBf16>(task);
    case CacheType::int8:
      return attend_run<CacheInt8>(task);
  }
}

}  // namespace deepmnn::DEEPMNN_NS
