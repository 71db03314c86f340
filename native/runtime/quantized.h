// Activations in the int8 form of docs/layouts.md, shared by consecutive ops that read the same buffer.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"
#include "runtime/memory.h"

namespace deepmnn {

class Step;
struct Buffer;

// Room for n rows in the op's scratch.
QuantizedRows take_quantized(Step& step, int64_t n, int64_t cols);

// Rows index[0 .. n) of rows of `cols` columns, brought together in scratch: integer linears read rows that follow one
// another.
QuantizedRows gather(Step& step, const QuantizedRows& rows, const int32_t* index, int64_t n, int64_t cols);

// Quantises x [n, cols] (stride floats apart) into scratch, on the pool.
QuantizedRows quantize(Step& step, const float* x, int64_t stride, int64_t n, int64_t cols);

// The last few buffers that were quantised in this step. A buffer is written once in a step, so an entry stays valid
// until the step ends.
class QuantizedCache {
 public:
  void clear();
  // The buffer's rows, quantised now or before.
  QuantizedRows get(Step& step, const Buffer& buffer);
  // Room for them, which the caller fills before anyone gets them.
  QuantizedRows put(Step& step, const Buffer& buffer);

 private:
  static constexpr int kEntries = 4;
  struct Entry {
    int64_t buffer = -1;
    QuantizedRows rows;
    Arena codes, heads;
  };
  Entry entries_[kEntries];
  int next_ = 0;
};

// A buffer's rows as a linear reads them: with the quantised form when the weight needs it.
Rows input_rows(Step& step, const Buffer& buffer, const Weight& weight);

}  // namespace deepmnn
