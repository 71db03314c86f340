// deepmnn._core: weights from numbers to codes to stored bytes, and back.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <string>
#include <tuple>

#include "bindings/arrays.h"
#include "kernels/blocks.h"
#include "kernels/dispatch.h"
#include "runtime/thread_pool.h"

namespace deepmnn {
namespace {

using Bytes = nb::ndarray<nb::numpy, uint8_t>;

int64_t nbytes(const Weight& w) { return packed_nbytes(w.format, w.rows, w.cols); }

Weight quantized_shape(const std::string& format, int64_t rows, int64_t cols) {
  const Weight shape = weight_shape(format, rows, cols);
  if (!is_quantized(shape.format) || is_kept(shape.format)) {
    throw Error("request", "weight format '" + format + "'; expected one that numbers are rounded to");
  }
  return shape;
}

Matrix<float> numbers(const Array& array, const char* name = "w") {
  const Matrix<float> source = matrix<float>(array, name);
  if (source.stride != source.cols) reject<float>(array, name, "C-contiguous");
  return source;
}

// A contiguous matrix of that shape.
template <class T>
const T* whole(const Array& a, const char* name, int64_t rows, int64_t cols) {
  const Matrix<T> m = matrix<T>(a, name);
  if (m.rows != rows || m.cols != cols || m.stride != cols) {
    reject<T>(a, name, "[" + std::to_string(rows) + ", " + std::to_string(cols) + "], C-contiguous");
  }
  return m.data;
}

// Runs job(block) for every block of the matrix, without Python.
template <class Job>
void each_block(const Weight& shape, int64_t threads, const Job& job) {
  if (threads < 1 || threads > 1024) {
    throw Error("request", "threads " + std::to_string(threads) + "; expected 1 to 1024");
  }
  const nb::gil_scoped_release release;
  const int64_t blocks = (shape.rows + kBlockRows - 1) / kBlockRows;
  ThreadPool pool(static_cast<int>(std::min(threads, blocks)));
  pool.run(blocks, [&](int64_t block, int) { job(block); });
}

// Levels [rows, stored columns], scales [rows, panels].
auto quantize(const Array& w, const std::string& format, int64_t threads, const std::string& isa) {
  const Matrix<float> source = numbers(w);
  const Weight shape = quantized_shape(format, source.rows, source.cols);
  const Kernels& kernels = select_kernels(isa.c_str());
  const int64_t stored = stored_cols(shape.format, shape.cols);
  NewArray<int8_t> levels({shape.rows, stored});
  NewArray<Half> scales({shape.rows, panel_count(stored)});
  const NewCodes out{levels.data(), &scales.data()->bits};
  each_block(shape, threads, [&](int64_t block) { round_block(kernels, source.data, shape, block, out); });
  return std::make_tuple(levels.release(), scales.release());
}

Bytes pack(const Array& levels, const Array& scales, const std::string& format, int64_t threads,
           const std::string& isa) {
  const Matrix<int8_t> matrix_of_levels = matrix<int8_t>(levels, "levels");
  const int64_t rows = matrix_of_levels.rows, cols = matrix_of_levels.cols;
  const Weight shape = quantized_shape(format, rows, cols);
  const int64_t stored = stored_cols(shape.format, cols);
  const Codes from{whole<int8_t>(levels, "levels", rows, stored),
                   &whole<Half>(scales, "scales", rows, panel_count(stored))->bits};
  const Kernels& kernels = select_kernels(isa.c_str());
  NewArray<uint8_t> out({nbytes(shape)});
  each_block(shape, threads, [&](int64_t block) { pack_block(kernels, from, shape, block, out.data()); });
  return out.release();
}

// The rows of x [n, cols], each rotated as a quantised row is: [n, columns that are stored].
nb::ndarray<nb::numpy, float> rotate(const Array& x, int64_t threads, const std::string& isa) {
  const Matrix<float> source = numbers(x, "x");
  const Kernels& kernels = select_kernels(isa.c_str());
  const int64_t stored = (source.cols + kPartCols - 1) / kPartCols * kPartCols;
  NewArray<float> out({source.rows, stored});
  Weight shape;
  shape.rows = source.rows;
  each_block(shape, threads, [&](int64_t block) {
    const int64_t row = block * kBlockRows, n = std::min<int64_t>(kBlockRows, source.rows - row);
    kernels.rotate_rows(source.data + row * source.cols, n, source.cols, out.data() + row * stored);
  });
  return out.release();
}

Bytes quantize_pack(const Array& w, const std::string& format, int64_t threads, const std::string& isa) {
  const Matrix<float> source = numbers(w);
  const Weight shape = weight_shape(format, source.rows, source.cols);
  if (shape.format == Format::vector || is_kept(shape.format)) {
    throw Error("request", "weight format '" + format + "'; expected one of matrices that numbers are rounded to");
  }
  const Kernels& kernels = select_kernels(isa.c_str());
  NewArray<uint8_t> out({nbytes(shape)});
  each_block(shape, threads,
             [&](int64_t block) { quantize_pack_block(kernels, source.data, shape, block, out.data()); });
  return out.release();
}

nb::ndarray<nb::numpy, float> unpack(const Array& packed, const std::string& format, int64_t rows, int64_t cols) {
  Weight weight = weight_shape(format, rows, cols);
  weight.data = vector<uint8_t>(packed, "packed", nbytes(weight));
  const bool plain = weight.format == Format::vector;
  const Kernels& kernels = *runnable_kernels().back();
  NewArray<float> out = plain ? NewArray<float>({cols}) : NewArray<float>({rows, cols});
  {
    const nb::gil_scoped_release release;
    if (plain) std::copy_n(weight.data, cols * 4, reinterpret_cast<uint8_t*>(out.data()));
    for (int64_t row = 0; row < rows && !plain; ++row) kernels.decode_row(weight, row, out.data() + row * cols);
  }
  return out.release();
}

}  // namespace
}  // namespace deepmnn

void bind_weights(nanobind::module_& m) {
  using namespace nanobind::literals;
  m.def("rotate", &deepmnn::rotate, "x"_a, "threads"_a = 1, "isa"_a = "");
  m.def("quantize", &deepmnn::quantize, "w"_a, "format"_a, "threads"_a = 1, "isa"_a = "");
  m.def("pack", &deepmnn::pack, "levels"_a, "scales"_a, "format"_a, "threads"_a = 1, "isa"_a = "");
  m.def("quantize_pack", &deepmnn::quantize_pack, "w"_a, "format"_a, "threads"_a = 1, "isa"_a = "");
  m.def("unpack", &deepmnn::unpack, "packed"_a, "format"_a, "rows"_a, "cols"_a);
}
