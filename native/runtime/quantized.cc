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

QuantizedRows take_quantized(Step& step, int64_t n, int64_t cols) {
  const int64_t panels = panel_count(cols) * n;
  return {step.scratch.take<int8_t>(panels * kPanelCols), step.scratch.take<PanelHead>(panels), n};
}

QuantizedRows gather(Step& step, const QuantizedRows& rows, const int32_t* index, int64_t n, int64_t cols) {
  const QuantizedRows out = take_quantized(step, n, cols);
  const int64_t panels = panel_count(cols);
  for_rows(step, n, cols, [&](int64_t i, int) {
    for (int64_t panel = 0; panel < panels; ++panel) {
      const QuantizedRows from = rows.from(index[i]).from_panel(panel), to = out.from(i).from_panel(panel);
      std::copy_n(from.codes, kPanelCols, to.codes);
      *to.heads = *from.heads;
    }
  });
  return out;
}

QuantizedRows quantize(Step& step, const float* x, int64_t stride, int64_t n, int64_t cols) {
  const QuantizedRows out = take_quantized(step, n, cols);
  fill(step, x, stride, n, cols, out);
  return out;
}

void QuantizedCache::clear() {
  for (Entry& entry : entries_) entry.buffer = -1;
}

QuantizedRows QuantizedCache::get(Step& step, const Buffer& buffer) {
  for (const Entry& entry : entries_) {
    if (entry.buffer == buffer.id) return entry.rows;
  }
  const QuantizedRows rows = put(step, buffer);
  fill(step, step.f32(buffer), buffer.width, step.n(buffer), buffer.width, rows);
  return rows;
}

QuantizedRows QuantizedCache::put(Step& step, const Buffer& buffer) {
  Entry& entry = entries_[next_];
  next_ = (next_ + 1) % kEntries;
  const int64_t n = step.n(buffer), panels = panel_count(buffer.width) * n;
  entry.buffer = -1;
  entry.rows = {reinterpret_cast<int8_t*>(entry.codes.reserve(panels * kPanelCols, "quantised activations")),
                reinterpret_cast<PanelHead*>(
                    entry.heads.reserve(panels * static_cast<int64_t>(sizeof(PanelHead)), "quantised activations")),
                n};
  entry.buffer = buffer.id;
  return entry.rows;
}

Rows input_rows(Step& step, const Buffer& buffer, const Weight& weight) {
  Rows rows;
  rows.x = step.f32(buffer);
  rows.stride = buffer.width;
  rows.n = step.n(buffer);
  if (is_quantized(weight.format)) rows.quantized = step.quantized.get(step, buffer);
  return rows;
}

}  // namespace deepmnn
