// deepmnn._core: packing, unpacking and sampling; and the list of instruction sets.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <vector>

#include "bindings/arrays.h"
#include "kernels/dispatch.h"
#include "runtime/thread_pool.h"

void bind_errors(nanobind::module_& m);
void bind_kernel_table(nanobind::module_& m);

namespace deepmnn {

Format parse_format(const std::string& name, int64_t group_size) {
  const char* names[] = {"vector", "f32", "bf16", "w8", "w4"};
  const auto* found = std::find(std::begin(names), std::end(names), name);
  if (found == std::end(names)) {
    throw Error("request", "weight format '" + name + "'; expected one of vector, f32, bf16, w8, w4");
  }
  const Format format = static_cast<Format>(found - names);
  if (!allows_group_size(format, group_size)) {
    throw Error("request", "group_size " + std::to_string(group_size) + " for " + name + "; expected " +
                               allowed_group_sizes(format));
  }
  return format;
}

Weight weight_shape(const std::string& dtype, int64_t rows, int64_t cols, int64_t group_size) {
  Weight weight;
  weight.format = parse_format(dtype, group_size);
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
  weight.group_size = static_cast<int32_t>(group_size);
  return weight;
}

namespace {

int64_t nbytes(const Weight& w) { return packed_nbytes(w.format, w.rows, w.cols, w.group_size); }

nb::ndarray<nb::numpy, uint8_t> quantize_pack(const Array& w, const std::string& dtype, int64_t group_size,
                                              int64_t threads, const std::string& isa) {
  const Matrix<float> source = matrix<float>(w, "w");
  if (source.stride != source.cols) reject<float>(w, "w", "C-contiguous");
  const Weight shape = weight_shape(dtype, source.rows, source.cols, group_size);
  if (shape.format == Format::vector) throw Error("request", "weight format 'vector'; expected f32, bf16, w8 or w4");
  if (threads < 1 || threads > 1024) {
    throw Error("request", "threads " + std::to_string(threads) + "; expected 1 to 1024");
  }
  const Kernels& kernels = select_kernels(isa.c_str());
  NewArray<uint8_t> out({nbytes(shape)});
  {
    const nb::gil_scoped_release release;
    const int64_t blocks = (shape.rows + kBlockRows - 1) / kBlockRows;
    ThreadPool pool(static_cast<int>(std::min(threads, blocks)));
    pool.run(blocks,
             [&](int64_t block, int) { kernels.quantize_pack(source.data, shape, block, block + 1, out.data()); });
  }
  return out.release();
}

nb::ndarray<nb::numpy, float> unpack(const Array& packed, const std::string& dtype, int64_t rows, int64_t cols,
                                     int64_t group_size) {
  Weight weight = weight_shape(dtype, rows, cols, group_size);
  weight.data = vector<uint8_t>(packed, "packed", nbytes(weight));
  const bool plain = weight.format == Format::vector;
  const Kernels& scalar = *runnable_kernels().back();
  NewArray<float> out = plain ? NewArray<float>({cols}) : NewArray<float>({rows, cols});
  {
    const nb::gil_scoped_release release;
    if (plain) std::copy_n(weight.data, cols * 4, reinterpret_cast<uint8_t*>(out.data()));
    for (int64_t row = 0; row < rows && !plain; ++row) {
      scalar.decode_row(weight, row, out.data() + row * cols);
    }
  }
  return out.release();
}

int32_t sample_array(const Array& logits, float temperature, int32_t top_k, float top_p, float min_p, float u,
                     const std::string& isa) {
  const float* data = vector<float>(logits, "logits");
  SamplingParams params;
  params.temperature = temperature;
  params.top_k = top_k;
  params.top_p = top_p;
  params.min_p = min_p;
  const Kernels& kernels = select_kernels(isa.c_str());
  const nb::gil_scoped_release release;
  return sample(kernels, data, static_cast<int64_t>(logits.shape(0)), params, u);
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Kernels* table : runnable_kernels()) names.emplace_back(table->isa);
  return names;
}

}  // namespace
}  // namespace deepmnn

void bind_kernels(nanobind::module_& m) {
  namespace nb = nanobind;
  using namespace nb::literals;
  bind_errors(m);
  m.def("isas", &deepmnn::isas, "Instruction sets this machine runs, best first.");
  m.def(
      "packed_nbytes",
      [](const std::string& dtype, int64_t rows, int64_t cols, int64_t group_size) {
        return deepmnn::nbytes(deepmnn::weight_shape(dtype, rows, cols, group_size));
      },
      "dtype"_a, "rows"_a, "cols"_a, "group_size"_a = 0);
  m.def("quantize_pack", &deepmnn::quantize_pack, "w"_a, "dtype"_a, "group_size"_a = 0, "threads"_a = 1, "isa"_a = "");
  m.def("unpack", &deepmnn::unpack, "packed"_a, "dtype"_a, "rows"_a, "cols"_a, "group_size"_a = 0);
  m.def("sample", &deepmnn::sample_array, "logits"_a, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "u"_a,
        "isa"_a = "");
  bind_kernel_table(m);
}
