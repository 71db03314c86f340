#include "runtime/quantized.h"

#include <algorithm>

#include "runtime/step.h"

namespace deepmnn {
namespace {

void fill(Step& step, const float* x, int64_t stride, int64_t n, int64_t cols, const QuantizedRows& out) {
  for_rows(step, n, cols,
           [&](int64_t row, int) { step.kernels.quantize_rows(x + row * stride, stride, 1, cols, out.from(row)); });
}

}  // namespace

QuantizedRows take_quantized(Step& step, int64_t n, int64_t cols, RowForm form) {
  const int64_t panels = panel_count(cols) * n;
  PlainPanel* plain = form == RowForm::plain ? step.scratch.take<PlainPanel>(panels) : nullptr;
  return {step.scratch.take<int8_t>(panels * kPanelCols), step.scratch.take<PanelHead>(panels), n, plain};
}

QuantizedRows gather(Step& step, const QuantizedRows& rows, const int32_t* index, int64_t n, int64_t cols) {
  const QuantizedRows out = take_quantized(step, n, cols, rows.plain ? RowForm::plain : RowForm::rotated);
  const int64_t panels = panel_count(cols);
  for_rows(step, n, cols, [&](int64_t i, int) {
    for (int64_t panel = 0; panel < panels; ++panel) {
      const QuantizedRows from = rows.from(index[i]).from_panel(panel), to = out.from(i).from_panel(panel);
      std::copy_n(from.codes, kPanelCols, to.codes);
      *to.heads = *from.heads;
      if (to.plain) *to.plain = *from.plain;
    }
  });
  return out;
}

QuantizedRows quantize(Step& step, const float* x, int64_t stride, int64_t n, int64_t cols, RowForm form) {
  const QuantizedRows out = take_quantized(step, n, cols, form);
  fill(step, x, stride, n, cols, out);
  return out;
}

void QuantizedCache::clear() {
  for (Entry& entry : entries_) entry.buffer = -1;
}

void QuantizedCache::use(MemoryUse& use, bool reset) {
  for (Entry& entry : entries_) {
    for (Arena* arena : {&entry.codes, &entry.heads, &entry.plain}) arena->use(use, reset);
  }
}

QuantizedRows QuantizedCache::get(Step& step, const Buffer& buffer, RowForm form) {
  for (const Entry& entry : entries_) {
    if (entry.buffer == buffer.id && entry.form == form) return entry.rows;
  }
  const QuantizedRows rows = put(step, buffer, form);
  fill(step, step.f32(buffer), buffer.width, step.n(buffer), buffer.width, rows);
  return rows;
}

QuantizedRows QuantizedCache::put(Step& step, const Buffer& buffer, RowForm form) {
  Entry& entry = entries_[next_];
  next_ = (next_ + 1) % kEntries;
  const int64_t n = step.n(buffer), panels = panel_count(buffer.width) * n;
  entry.buffer = -1;
  const auto room = [&](Arena& arena, int64_t count, size_t size) {
    return arena.reserve(count * static_cast<int64_t>(size), "quantised activations");
  };
  entry.rows = {reinterpret_cast<int8_t*>(room(entry.codes, panels * kPanelCols, 1)),
                reinterpret_cast<PanelHead*>(room(entry.heads, panels, sizeof(PanelHead))), n, nullptr};
  if (form == RowForm::plain) {
    entry.rows.plain = reinterpret_cast<PlainPanel*>(room(entry.plain, panels, sizeof(PlainPanel)));
  }
  entry.form = form;
  entry.buffer = buffer.id;
  return entry.rows;
}

Rows input_rows(Step& step, const Buffer& buffer, const Weight& weight) {
  Rows rows;
  rows.x = step.f32(buffer);
  rows.stride = buffer.width;
  rows.n = step.n(buffer);
  const RowForm form = form_of(weight.format);
  if (form != RowForm::floats) rows.quantized = step.quantized.get(step, buffer, form);
  return rows;
}

}  // namespace deepmnn
