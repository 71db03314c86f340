// deepmnn._core: the table of storage formats, and the sizes of weights.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <string>

#include "bindings/arrays.h"

namespace deepmnn {
namespace {

std::string names() {
  std::string text;
  for (const FormatInfo& format : kFormats) text += (text.empty() ? "" : ", ") + std::string(format.name);
  return text;
}

// A dictionary for each format, by its number; the keys are those of deepmnn.formats.Format.
nb::list formats() {
  nb::list table;
  for (int code = 0; code < kFormatCount; ++code) {
    const FormatInfo& format = kFormats[code];
    nb::dict entry;
    entry["name"] = format.name;
    entry["code"] = code;
    entry["bits"] = format.bits;
    entry["columns"] = format.columns;
    nb::list levels;
    for (int i = 0; is_quantized(static_cast<Format>(code)) && i < 1 << format.bits; ++i) {
      levels.append(level_of(format, i));
    }
    entry["levels"] = nb::tuple(levels);
    entry["groups"] = nb::none();
    if (is_kept(static_cast<Format>(code))) {
      constexpr const char* scales[] = {"f16", "u8", "i8", "e8m0"};
      constexpr const char* shifts[] = {"", "f16", "u8", "zero"};
      nb::dict groups;
      groups["columns"] = format.group;
      groups["scale"] = scales[static_cast<int>(format.scale)];
      groups["shift"] = shifts[static_cast<int>(format.shift)];
      entry["groups"] = groups;
    }
    table.append(entry);
  }
  return table;
}

int64_t nbytes(const std::string& format, int64_t rows, int64_t cols) {
  const Weight w = weight_shape(format, rows, cols);
  return packed_nbytes(w.format, w.rows, w.cols);
}

}  // namespace

Format parse_format(const std::string& name) {
  int code = 0;
  while (code < kFormatCount && name != kFormats[code].name) ++code;
  if (code == kFormatCount) throw Error("request", "weight format '" + name + "'; expected one of " + names());
  return static_cast<Format>(code);
}

Weight weight_shape(const std::string& format, int64_t rows, int64_t cols) {
  Weight weight;
  weight.format = parse_format(format);
  constexpr int64_t kMost = int64_t{1} << 40;
  if (rows < 0 || cols < 0 || rows > kMost || cols > kMost ||
      static_cast<double>(rows + 16) * static_cast<double>(cols + 128) > 0x1p56) {
    throw Error("request", "a weight of " + std::to_string(rows) + " rows and " + std::to_string(cols) +
                               " columns; expected sizes from 0 up to what memory can hold");
  }
  if (weight.format == Format::vector && rows != 1) {
    throw Error("request", "a vector of " + std::to_string(rows) + " rows; expected 1 row");
  }
  weight.rows = rows;
  weight.cols = cols;
  return weight;
}

}  // namespace deepmnn

void bind_formats(nanobind::module_& m) {
  using namespace nanobind::literals;
  m.def("formats", &deepmnn::formats, "The table of storage formats.");
  m.def("packed_nbytes", &deepmnn::nbytes, "format"_a, "rows"_a, "cols"_a);
}
