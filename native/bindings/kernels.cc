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
void bind_formats(nanobind::module_& m);
void bind_kernel_table(nanobind::module_& m);

namespace deepmnn {

namespace {

int64_t nbytes(const Weight& w) { return packed_nbytes(w.format, w.rows, w.cols, w.group_size); }

nb::ndarray<nb::numpy, uint8_t> quantize_pack(const Array& w, const std::string& format, int64_t group_size,
                                              int64_t threads, const std::string& isa) {
  const Matrix<float> source = matrix<float>(w, "w");
  if (source.stride != source.cols) reject<float>(w, "w", "C-contiguous");
  const Weight shape = weight_shape(format, source.rows, source.cols, group_size);
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

nb::ndarray<nb::numpy, float> unpack(const Array& packed, const std::string& format, int64_t rows, int64_t cols,
                                     int64_t group_size) {
  Weight weight = weight_shape(format, rows, cols, group_size);
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
  bind_formats(m);
  m.def("isas", &deepmnn::isas, "Instruction sets this machine runs, best first.");
  m.def("quantize_pack", &deepmnn::quantize_pack, "w"_a, "format"_a, "group_size"_a = 0, "threads"_a = 1, "isa"_a = "");
  m.def("unpack", &deepmnn::unpack, "packed"_a, "format"_a, "rows"_a, "cols"_a, "group_size"_a = 0);
  m.def("sample", &deepmnn::sample_array, "logits"_a, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "u"_a,
        "isa"_a = "");
  bind_kernel_table(m);
}
