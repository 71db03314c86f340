// Numpy arrays in and out of the core: checked, never converted silently.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "runtime/error.h"

namespace deepmnn {

// A float16, as bits.
struct Half {
  uint16_t bits;
};

}  // namespace deepmnn

template <>
struct nanobind::detail::dtype_traits<deepmnn::Half> {
  static constexpr dlpack::dtype value{static_cast<uint8_t>(dlpack::dtype_code::Float), 16, 1};
  static constexpr auto name = const_name("float16");
};

namespace deepmnn {

namespace nb = nanobind;
using Array = nb::ndarray<nb::ro, nb::device::cpu>;

// A matrix whose rows may lie apart: `stride` elements from one row to the next.
template <class T>
struct Matrix {
  const T* data;
  int64_t rows, cols, stride;
};

inline std::string describe(const Array& a) {
  const nb::dlpack::dtype type = a.dtype();
  const char* kinds[] = {"int", "uint", "float"};
  std::string text = (type.code < 3 ? kinds[type.code] : "type code " + std::to_string(type.code) + " of ") +
                     std::to_string(type.bits) + " [";
  for (size_t i = 0; i < a.ndim(); ++i) text += (i ? ", " : "") + std::to_string(a.shape(i));
  return text + "]";
}

template <class T>
[[noreturn]] void reject(const Array& a, const char* name, const std::string& expected) {
  const char* kinds[] = {"int", "uint", "float"};
  const char* kind = kinds[nb::dtype<T>().code];
  throw Error("request", std::string(name) + " is " + describe(a) + "; expected " + kind +
                             std::to_string(8 * sizeof(T)) + " " + expected);
}

// Any matrix whose columns are contiguous.
template <class T>
Matrix<T> matrix(const Array& a, const char* name) {
  if (a.dtype() != nb::dtype<T>() || a.ndim() != 2) reject<T>(a, name, "with two dimensions");
  const int64_t rows = static_cast<int64_t>(a.shape(0)), cols = static_cast<int64_t>(a.shape(1));
  if (rows > 0 && cols > 1 && a.stride(1) != 1) reject<T>(a, name, "with contiguous columns");
  return {static_cast<const T*>(a.data()), rows, cols, rows > 1 && cols > 0 ? a.stride(0) : cols};
}

// A contiguous vector of `size` elements (-1: any number).
template <class T>
const T* vector(const Array& a, const char* name, int64_t size = -1) {
  if (a.dtype() != nb::dtype<T>() || a.ndim() != 1 || (size >= 0 && static_cast<int64_t>(a.shape(0)) != size)) {
    reject<T>(a, name, size < 0 ? "with one dimension" : "[" + std::to_string(size) + "]");
  }
  if (a.shape(0) > 1 && a.stride(0) != 1) reject<T>(a, name, "contiguous");
  return static_cast<const T*>(a.data());
}

// A new zeroed array, owned by Python once `release`d.
template <class T>
class NewArray {
 public:
  explicit NewArray(std::initializer_list<int64_t> shape) : shape_(shape.begin(), shape.end()) {
    size_t size = 1;
    for (const size_t dim : shape_) size *= dim;
    data_ = std::make_unique<T[]>(size);
  }
  T* data() { return data_.get(); }
  nb::ndarray<nb::numpy, T> release() {
    T* data = data_.release();
    const nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return nb::ndarray<nb::numpy, T>(data, shape_.size(), shape_.data(), owner);
  }

 private:
  std::vector<size_t> shape_;
  std::unique_ptr<T[]> data_;
};

// The storage format of that name (kernels/formats.h).
Format parse_format(const std::string& name);

// The shape of a stored weight; throws Error("request") when its size in bytes could not be counted.
Weight weight_shape(const std::string& format, int64_t rows, int64_t cols);

}  // namespace deepmnn
