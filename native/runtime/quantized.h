// Activations in the int8 form of docs/layouts.md, shared by consecutive ops that read the same buffer.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"
#include "runtime/memory.h"

namespace deepmnn {

class Step;
struct Buffer;

// How a matrix reads the rows that it multiplies: as they are; or in int8, rotated, or plain where it is kept.
enum class RowForm : int { floats, rotated, plain };
constexpr int kRowForms = 3;
constexpr RowForm form_of(Format format) {
  return !is_quantized(format) ? RowForm::floats : is_kept(format) ? RowForm::plain : RowForm::rotated;
}

// The int8 forms that several matrices read, and rows in each of them.
class ReadForms {
 public:
  void add(Format format) { read_[static_cast<int>(form_of(format))] = true; }
  bool quantized() const { return reads(RowForm::rotated) || reads(RowForm::plain); }
  bool reads(RowForm form) const { return read_[static_cast<int>(form)]; }
  // The one form that all of them read; floats where there are several.
  RowForm only() const {
    if (reads(RowForm::floats) || (reads(RowForm::rotated) && reads(RowForm::plain))) return RowForm::floats;
    return reads(RowForm::plain) ? RowForm::plain : RowForm::rotated;
  }

 private:
  bool read_[kRowForms] = {};
};
struct FormedRows {
  QuantizedRows of[kRowForms];

  // Rows from `first` on, as a weight reads them; none for floats.
  QuantizedRows from(int64_t first, const Weight& weight) const {
    const QuantizedRows& rows = of[static_cast<int>(form_of(weight.format))];
    return rows.codes ? rows.from(first) : rows;
  }
  // make(form): rows in each int8 form that is read.
  template <class Make>
  static FormedRows all(const ReadForms& forms, const Make& make) {
    FormedRows rows;
    for (RowForm form : {RowForm::rotated, RowForm::plain}) {
      if (forms.reads(form)) rows.of[static_cast<int>(form)] = make(form);
    }
    return rows;
  }
};

// Room for n rows in the op's scratch.
QuantizedRows take_quantized(Step& step, int64_t n, int64_t cols, RowForm form);

// Rows index[0 .. n) of rows of `cols` columns, brought together in scratch: integer linears read rows that follow one
// another.
QuantizedRows gather(Step& step, const QuantizedRows& rows, const int32_t* index, int64_t n, int64_t cols);

// Quantises x [n, cols] (stride floats apart) into scratch, on the pool.
QuantizedRows quantize(Step& step, const float* x, int64_t stride, int64_t n, int64_t cols, RowForm form);

// The last few buffers that were quantised in this step. A buffer is written once in a step, so an entry stays valid
// until the step ends.
class QuantizedCache {
 public:
  void clear();
  void use(MemoryUse& use, bool reset);
  // The buffer's rows in an int8 form, quantised now or before.
  QuantizedRows get(Step& step, const Buffer& buffer, RowForm form);
  // Room for them, which the caller fills before anyone gets them.
  QuantizedRows put(Step& step, const Buffer& buffer, RowForm form);

 private:
  static constexpr int kEntries = 4;
  struct Entry {
    int64_t buffer = -1;
    RowForm form = RowForm::floats;
    QuantizedRows rows;
    Arena codes, heads, plain;
  };
  Entry entries_[kEntries];
  int next_ = 0;
};

// A buffer's rows as a linear reads them: with the quantised form when the weight needs it.
Rows input_rows(Step& step, const Buffer& buffer, const Weight& weight);

}  // namespace deepmnn
