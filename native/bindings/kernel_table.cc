// deepmnn._core.kernels: every entry of the kernel table as a Python function, so that tests can hold each instruction
// set against numpy. Results are new arrays; `isa` is "" (the best) or a name of isas().
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "bindings/arrays.h"
#include "kernels/dispatch.h"

namespace deepmnn {
namespace {

using F32 = nb::ndarray<nb::numpy, float>;
using Unary = void (*)(const float*, int64_t, float*);
using Binary = void (*)(const float*, const float*, int64_t, float*);

const Kernels& table(const std::string& isa) { return select_kernels(isa.c_str()); }
int64_t size(const Array& a) { return static_cast<int64_t>(a.shape(0)); }

Epilogue parse_epilogue(const std::string& name) {
  if (name == "store") return Epilogue::store;
  if (name == "accumulate") return Epilogue::accumulate;
  if (name == "swiglu") return Epilogue::swiglu;
  throw Error("request", "epilogue '" + name + "'; expected store, accumulate or swiglu");
}

// Activations in the form that quantised weights read.
class Quantized {
 public:
  Quantized(const Matrix<float>& x, const Kernels& kernels, bool plain) {
    const int64_t panels = panel_count(x.cols) * x.rows;
    codes_.resize(static_cast<size_t>(panels * kPanelCols));
    heads_.resize(static_cast<size_t>(panels));
    if (plain) plain_.resize(static_cast<size_t>(panels));
    rows_ = {codes_.data(), heads_.data(), x.rows, plain ? plain_.data() : nullptr};
    kernels.quantize_rows(x.data, x.stride, x.rows, x.cols, rows_);
  }
  const QuantizedRows& rows() const { return rows_; }

 private:
  std::vector<int8_t> codes_;
  std::vector<PanelHead> heads_;
  std::vector<PlainPanel> plain_;
  QuantizedRows rows_;
};

// Codes [n, panels * 256], scales and sums [n, panels].
auto quantize_rows(const Array& x, const std::string& isa) {
  const Matrix<float> input = matrix<float>(x, "x");
  const Quantized quantized(input, table(isa), false);
  const int64_t panels = panel_count(input.cols);
  NewArray<int8_t> codes({input.rows, panels * kPanelCols});
  NewArray<float> scales({input.rows, panels});
  NewArray<int32_t> sums({input.rows, panels});
  for (int64_t row = 0; row < input.rows; ++row) {
    for (int64_t panel = 0; panel < panels; ++panel) {
      const QuantizedRows from = quantized.rows().from(row).from_panel(panel);
      const int64_t to = row * panels + panel;
      std::copy_n(from.codes, kPanelCols, codes.data() + to * kPanelCols);
      scales.data()[to] = from.heads->scale;
      sums.data()[to] = from.heads->sum;
    }
  }
  return std::make_tuple(codes.release(), scales.release(), sums.release());
}

void check_index(const int32_t* index, int64_t n, int64_t rows) {
  for (int64_t i = 0; i < n; ++i) {
    if (index[i] < 0 || index[i] >= rows) {
      throw Error("request", "index " + std::to_string(index[i]) + "; expected a row below " + std::to_string(rows));
    }
  }
}

// Rows index[0 .. n) of x, in `floats`.
Matrix<float> gathered(const Matrix<float>& x, const int32_t* index, int64_t n, std::vector<float>& floats) {
  for (int64_t i = 0; i < n; ++i) {
    const float* row = x.data + index[i] * x.stride;
    floats.insert(floats.end(), row, row + x.cols);
  }
  return {floats.data(), n, x.cols, x.cols};
}

// y is the initial content of the result: [n, at least out_cols].
F32 linear(const Array& x, const Array& packed, const std::string& format, int64_t rows, int64_t cols, const Array& y,
           int64_t out_cols, const std::string& epilogue, const std::optional<Array>& bias,
           const std::optional<Array>& index, int64_t begin, int64_t end, const std::string& isa) {
  const Kernels& kernels = table(isa);
  const Matrix<float> input = matrix<float>(x, "x"), initial = matrix<float>(y, "y");
  LinearTask task;
  task.weight = weight_shape(format, rows, cols);
  task.weight.data = vector<uint8_t>(packed, "packed", packed_nbytes(task.weight.format, rows, cols));
  task.epilogue = parse_epilogue(epilogue);
  const int64_t blocks = (rows + kBlockRows - 1) / kBlockRows / (task.epilogue == Epilogue::swiglu ? 2 : 1);
  if (input.cols != cols || out_cols > initial.cols || begin < 0 || begin > end || end > blocks) {
    throw Error("request", "shapes of a linear do not agree; expected x [n, cols], y [n, >= out_cols] and blocks 0.." +
                               std::to_string(blocks));
  }
  if (index) task.rows.index = vector<int32_t>(*index, "index");
  task.rows.n = index ? size(*index) : input.rows;
  if (initial.rows != task.rows.n) throw Error("request", "y has the wrong number of rows; expected one per input row");
  if (index) check_index(task.rows.index, task.rows.n, input.rows);
  NewArray<float> out({initial.rows, initial.cols});
  for (int64_t i = 0; i < initial.rows; ++i) {
    std::copy_n(initial.data + i * initial.stride, initial.cols, out.data() + i * initial.cols);
  }
  task.y = out.data();
  task.y_stride = initial.cols;
  task.out_cols = out_cols;
  if (bias) task.bias = vector<float>(*bias, "bias", out_cols);
  task.rows.x = input.data;
  task.rows.stride = input.stride;
  std::vector<float> floats;
  std::optional<Quantized> quantized;
  if (is_quantized(task.weight.format)) {
    quantized.emplace(index ? gathered(input, task.rows.index, task.rows.n, floats) : input, kernels,
                      is_kept(task.weight.format));
    task.rows.quantized = quantized->rows();
  }
  {
    const nb::gil_scoped_release release;
    kernels.linear(task, begin, end);
  }
  return out.release();
}

// W x, or transposed(W) x, for rows of x.
F32 float_linear(const Array& x, const Array& packed, const std::string& format, int64_t rows, int64_t cols,
                 bool transposed, const std::optional<Array>& index, const std::string& isa) {
  const Matrix<float> input = matrix<float>(x, "x");
  LinearTask task;
  task.weight = weight_shape(format, rows, cols);
  task.weight.data = vector<uint8_t>(packed, "packed", packed_nbytes(task.weight.format, rows, cols));
  if (input.cols != (transposed ? rows : cols))
    throw Error("request", "x does not fit W; expected one column for each");
  if (index) task.rows.index = vector<int32_t>(*index, "index");
  task.rows.n = index ? size(*index) : input.rows;
  if (index) check_index(task.rows.index, task.rows.n, input.rows);
  task.rows.x = input.data;
  task.rows.stride = input.stride;
  task.out_cols = task.y_stride = transposed ? cols : rows;
  NewArray<float> out({task.rows.n, task.out_cols});
  task.y = out.data();
  {
    const nb::gil_scoped_release release;
    transposed ? table(isa).float_linear_transposed(task) : table(isa).float_linear(task);
  }
  return out.release();
}

F32 round_row(const Array& x, const std::string& isa) {
  const float* data = vector<float>(x, "x");
  NewArray<float> out({size(x)});
  table(isa).round_row(data, size(x), out.data());
  return out.release();
}

F32 decode_row(const Array& packed, const std::string& format, int64_t rows, int64_t cols, int64_t row,
               const std::string& isa) {
  Weight weight = weight_shape(format, rows, cols);
  weight.data = vector<uint8_t>(packed, "packed", packed_nbytes(weight.format, rows, cols));
  if (row < 0 || row >= rows) throw Error("request", "row " + std::to_string(row) + "; expected a row of the weight");
  NewArray<float> out({cols});
  table(isa).decode_row(weight, row, out.data());
  return out.release();
}

F32 rms_norm(const Array& x, const std::optional<Array>& w, float eps, const std::string& isa) {
  const float* data = vector<float>(x, "x");
  const int64_t n = size(x);
  NewArray<float> out({n});
  table(isa).rms_norm(data, w ? vector<float>(*w, "w", n) : nullptr, eps, n, out.data());
  return out.release();
}

auto add_rms_norm(const Array& a, const Array& b, const std::optional<Array>& w, float eps, const std::string& isa) {
  const float* first = vector<float>(a, "a");
  const int64_t n = size(a);
  NewArray<float> total({n}), out({n});
  table(isa).add_rms_norm(first, vector<float>(b, "b", n), w ? vector<float>(*w, "w", n) : nullptr, eps, n,
                          total.data(), out.data());
  return std::make_tuple(total.release(), out.release());
}

template <Unary Kernels::* kKernel>
F32 unary(const Array& x, const std::string& isa) {
  const float* data = vector<float>(x, "x");
  NewArray<float> out({size(x)});
  (table(isa).*kKernel)(data, size(x), out.data());
  return out.release();
}

template <Binary Kernels::* kKernel>
F32 binary(const Array& a, const Array& b, const std::string& isa) {
  const float* first = vector<float>(a, "a");
  NewArray<float> out({size(a)});
  (table(isa).*kKernel)(first, vector<float>(b, "b", size(a)), size(a), out.data());
  return out.release();
}

F32 axpy(float a, const Array& x, const Array& y, const std::string& isa) {
  const float* data = vector<float>(x, "x");
  NewArray<float> out({size(x)});
  std::copy_n(vector<float>(y, "y", size(x)), size(x), out.data());
  table(isa).axpy(a, data, size(x), out.data());
  return out.release();
}

F32 scale(const Array& x, float factor, const std::string& isa) {
  const float* data = vector<float>(x, "x");
  NewArray<float> out({size(x)});
  table(isa).scale(data, factor, size(x), out.data());
  return out.release();
}

F32 rope(const Array& x, const Array& cos, const Array& sin, bool interleaved, const std::string& isa) {
  const float* c = vector<float>(cos, "cos");
  const int64_t half = size(cos);
  NewArray<float> out({2 * half});
  std::copy_n(vector<float>(x, "x", 2 * half), 2 * half, out.data());
  table(isa).rope(out.data(), c, vector<float>(sin, "sin", half), half, interleaved);
  return out.release();
}

nb::ndarray<nb::numpy, uint16_t> to_bf16(const Array& x, const std::string& isa) {
  const float* data = vector<float>(x, "x");
  NewArray<uint16_t> out({size(x)});
  table(isa).to_bf16(data, size(x), out.data());
  return out.release();
}

template <void (*Kernels::*kKernel)(float*, int64_t, int64_t)>
F32 turned_heads(const Array& x, const std::string& isa) {
  const Matrix<float> heads = matrix<float>(x, "x");
  NewArray<float> out({heads.rows, heads.cols});
  for (int64_t head = 0; head < heads.rows; ++head) {
    std::copy_n(heads.data + head * heads.stride, heads.cols, out.data() + head * heads.cols);
  }
  (table(isa).*kKernel)(out.data(), heads.rows, heads.cols);
  return out.release();
}

template <class T>
void set_cache(Kernels::AttentionTask& task, const Array& k, const Array& v) {
  const Matrix<T> keys = matrix<T>(k, "k"), values = matrix<T>(v, "v");
  if (keys.cols != task.qk_dim || values.cols != task.v_dim || keys.rows != values.rows) {
    throw Error("request", "shapes of q, k, v, acc do not agree; expected k [keys, qk_dim] and v [keys, v_dim]");
  }
  task.k = {reinterpret_cast<const uint8_t*>(keys.data), keys.stride * static_cast<int64_t>(sizeof(T)), 0};
  task.v = {reinterpret_cast<const uint8_t*>(values.data), values.stride * static_cast<int64_t>(sizeof(T)), 0};
  task.n_keys = keys.rows;
  task.type = sizeof(T) == 2 ? CacheType::bf16 : CacheType::f32;
}

// k and v are uint8 rows as the cache stores them: `width` codes, padding to 4, scales; qk_dim and v_dim columns are
// read from k_column and v_column on.
void set_int8_cache(Kernels::AttentionTask& task, const Array& k, const Array& v, int64_t width, int64_t k_column,
                    int64_t v_column) {
  const Matrix<uint8_t> keys = matrix<uint8_t>(k, "k"), values = matrix<uint8_t>(v, "v");
  const int64_t scales = (width + 3) / 4 * 4, nbytes = scales + (width + kCacheGroup - 1) / kCacheGroup * 4;
  if (width < 1 || keys.cols != nbytes || values.cols != nbytes || keys.rows != values.rows || k_column < 0 ||
      v_column < 0 || k_column + task.qk_dim > width || v_column + task.v_dim > width) {
    throw Error("request", "int8 rows do not fit; expected k and v [keys, " + std::to_string(nbytes) +
                               "] whose columns hold q's and acc's");
  }
  task.k = {keys.data, keys.stride, k_column, scales};
  task.v = {values.data, values.stride, v_column, scales};
  task.n_keys = keys.rows;
  task.type = CacheType::int8;
}

AttentionForm parse_form(const std::string& name) {
  if (name == "rows") return AttentionForm::rows;
  if (name == "strips") return AttentionForm::strips;
  throw Error("request", "attention form '" + name + "'; expected rows or strips");
}

// acc and max_sum are the state before this run of keys; returns the state after it.
auto attention(const Array& q, const Array& k, const Array& v, float factor, const Array& limits, const Array& acc,
               const Array& max_sum, const std::string& isa, const std::string& form, int64_t width, int64_t k_column,
               int64_t v_column) {
  const Matrix<float> queries = matrix<float>(q, "q"), old = matrix<float>(acc, "acc"),
                      state = matrix<float>(max_sum, "max_sum");
  const int64_t n = queries.rows;
  if (old.rows != n || state.rows != n || state.cols != 2 || old.stride != old.cols || state.stride != 2) {
    throw Error("request", "acc or max_sum has the wrong shape; expected acc [queries, v_dim], max_sum [queries, 2]");
  }
  Kernels::AttentionTask task{};
  task.q = queries.data;
  task.q_stride = queries.stride;
  task.n_queries = n;
  task.qk_dim = queries.cols;
  task.v_dim = old.cols;
  task.scale = factor;
  task.form = parse_form(form);
  task.limits = vector<int32_t>(limits, "limits", n);
  if (width) {
    set_int8_cache(task, k, v, width, k_column, v_column);
  } else {
    k.dtype() == nb::dtype<uint16_t>() ? set_cache<uint16_t>(task, k, v) : set_cache<float>(task, k, v);
  }
  task.values_in_keys = task.k.data == task.v.data && task.k.column == task.v.column &&
                        task.k.row_nbytes == task.v.row_nbytes && task.v_dim <= task.qk_dim;
  NewArray<float> out({n, old.cols}), out_state({n, 2}), work({attention_work(n, task.qk_dim, task.v_dim)});
  std::copy_n(old.data, n * old.cols, out.data());
  std::copy_n(state.data, n * 2, out_state.data());
  task.acc = out.data();
  task.max_sum = out_state.data();
  task.work = work.data();
  {
    const nb::gil_scoped_release release;
    table(isa).attention(task);
  }
  return std::make_tuple(out.release(), out_state.release());
}

F32 layer_norm(const Array& x, const Array& w, const Array& b, float eps, const std::string& isa) {
  const int64_t n = size(x);
  const float *data = vector<float>(x, "x"), *weight = vector<float>(w, "w", n), *bias = vector<float>(b, "b", n);
  NewArray<float> y({n});
  table(isa).layer_norm(data, weight, bias, eps, n, y.data());
  return y.release();
}

// Scores [tokens, keys] of q [tokens, heads * dim] with weights [tokens, heads] against rows k [rows, dim] of floats, of
// which every ratio-th is a key. A key that a token does not see (limits) has any score.
F32 index_scores(const Array& q, const Array& weights, const Array& k, const Array& limits, int64_t ratio,
                   const std::string& isa) {
  const Matrix<float> queries = matrix<float>(q, "q"), factors = matrix<float>(weights, "weights"),
                      rows = matrix<float>(k, "k");
  Kernels::IndexTask task{};
  task.tokens = queries.rows;
  task.heads = factors.cols;
  task.dim = rows.cols;
  if (ratio < 1 || factors.rows != task.tokens || queries.cols != task.heads * task.dim ||
      queries.stride != queries.cols || factors.stride != factors.cols) {
    throw Error("request", "ratio or a shape is wrong; expected q [tokens, heads * dim], weights [tokens, heads]");
  }
  task.q = queries.data;
  task.weights = factors.data;
  task.type = CacheType::f32;
  task.k = {reinterpret_cast<const uint8_t*>(rows.data), rows.stride * 4};
  task.block_size = 1;
  task.ratio = ratio;
  task.n_keys = rows.rows / ratio;
  task.limits = vector<int32_t>(limits, "limits", task.tokens);
  task.out_stride = (task.n_keys + 15) / 16 * 16;
  NewArray<float> out({task.tokens, task.out_stride}), work({index_work(task.dim)});
  task.out = out.data();
  task.work = work.data();
  table(isa).index_scores(task);
  return out.release();
}

int64_t argmax(const Array& x, const std::string& isa) { return table(isa).argmax(vector<float>(x, "x"), size(x)); }

int64_t find_above(const Array& x, int64_t begin, float low, const std::string& isa) {
  const float* data = vector<float>(x, "x");
  if (begin < 0) throw Error("request", "begin " + std::to_string(begin) + "; expected 0 or more");
  return table(isa).find_above(data, begin, size(x), low);
}

float exp_sum(const Array& x, float shift, float factor, const std::string& isa) {
  return table(isa).exp_sum(vector<float>(x, "x"), size(x), shift, factor);
}

template <int64_t (*Kernels::*kPeak)(int64_t)>
int64_t peak(int64_t rounds, const std::string& isa) {
  const Kernels& kernels = table(isa);
  const nb::gil_scoped_release release;
  return (kernels.*kPeak)(rounds);
}

void bind_rows(nb::module_& m) {
  using namespace nb::literals;
  m.def("rms_norm", &rms_norm, "x"_a, "w"_a.none(), "eps"_a, "isa"_a = "");
  m.def("add_rms_norm", &add_rms_norm, "a"_a, "b"_a, "w"_a.none(), "eps"_a, "isa"_a = "");
  m.def("layer_norm", &layer_norm, "x"_a, "w"_a, "b"_a, "eps"_a, "isa"_a = "");
  m.def("index_scores", &index_scores, "q"_a, "weights"_a, "k"_a, "limits"_a, "ratio"_a = 1, "isa"_a = "");
  m.def("add", &binary<&Kernels::add>, "a"_a, "b"_a, "isa"_a = "");
  m.def("mul", &binary<&Kernels::mul>, "a"_a, "b"_a, "isa"_a = "");
  m.def("axpy", &axpy, "a"_a, "x"_a, "y"_a, "isa"_a = "");
  m.def("scale", &scale, "x"_a, "factor"_a, "isa"_a = "");
  m.def("silu", &unary<&Kernels::silu>, "x"_a, "isa"_a = "");
  m.def("sigmoid", &unary<&Kernels::sigmoid>, "x"_a, "isa"_a = "");
  m.def("softmax", &unary<&Kernels::softmax>, "x"_a, "isa"_a = "");
  m.def("rope", &rope, "x"_a, "cos"_a, "sin"_a, "interleaved"_a, "isa"_a = "");
  m.def("rotate_heads", &turned_heads<&Kernels::rotate_heads>, "x"_a, "isa"_a = "");
  m.def("unrotate_heads", &turned_heads<&Kernels::unrotate_heads>, "x"_a, "isa"_a = "");
  m.def("to_bf16", &to_bf16, "x"_a, "isa"_a = "");
  m.def("argmax", &argmax, "x"_a, "isa"_a = "");
  m.def("find_above", &find_above, "x"_a, "begin"_a, "low"_a, "isa"_a = "");
  m.def("exp_sum", &exp_sum, "x"_a, "shift"_a, "factor"_a, "isa"_a = "");
}

}  // namespace
}  // namespace deepmnn

void bind_kernel_table(nanobind::module_& parent) {
  using namespace nanobind::literals;
  nanobind::module_ m = parent.def_submodule("kernels", "The kernel table, for tests.");
  m.def("linear", &deepmnn::linear, "x"_a, "packed"_a, "format"_a, "rows"_a, "cols"_a, "y"_a, "out_cols"_a,
        "epilogue"_a, "bias"_a.none(), "index"_a.none(), "begin"_a, "end"_a, "isa"_a = "");
  m.def("float_linear", &deepmnn::float_linear, "x"_a, "packed"_a, "format"_a, "rows"_a, "cols"_a, "transposed"_a,
        "index"_a.none(), "isa"_a = "");
  m.def("quantize_rows", &deepmnn::quantize_rows, "x"_a, "isa"_a = "");
  m.def("round_row", &deepmnn::round_row, "x"_a, "isa"_a = "");
  m.def("decode_row", &deepmnn::decode_row, "packed"_a, "format"_a, "rows"_a, "cols"_a, "row"_a, "isa"_a = "");
  m.def("attention", &deepmnn::attention, "q"_a, "k"_a, "v"_a, "scale"_a, "limits"_a, "acc"_a, "max_sum"_a,
        "isa"_a = "", "form"_a = "strips", "width"_a = 0, "k_column"_a = 0, "v_column"_a = 0);
  m.def("peak_dot", &deepmnn::peak<&deepmnn::Kernels::peak_dot>, "rounds"_a, "isa"_a = "");
  m.def("peak_fma", &deepmnn::peak<&deepmnn::Kernels::peak_fma>, "rounds"_a, "isa"_a = "");
  deepmnn::bind_rows(m);
}
