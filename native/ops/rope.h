// The rotary attributes that all ops share which rotate.
#pragma once

#include "runtime/step.h"

namespace deepmnn {

class Rope {
 public:
  Rope() = default;
  // dim: floats per head that are rotated. interleaved: the attribute that says which make a pair.
  Rope(const OpSpec& spec, int64_t dim, const char* interleaved = "interleaved")
      : table_(spec.rope_attr(dim)), half_(dim / 2), interleaved_(spec.int_attr(interleaved, 0, 1) != 0) {}

  // Rotates one head of a token in place.
  void rotate(const Step& step, int64_t token, float* x) const {
    step.kernels.rope(x, step.ropes.cos(table_, token), step.ropes.sin(table_, token), half_, interleaved_);
  }

  // By minus its position.
  void rotate_back(const Step& step, int64_t token, float* x) const {
    const float *cos = step.ropes.cos(table_, token), *sin = step.ropes.sin(table_, token);
    const int64_t apart = interleaved_ ? 1 : half_;
    for (int64_t i = 0; i < half_; ++i) {
      float* pair = x + (interleaved_ ? 2 * i : i);
      const float first = pair[0], second = pair[apart];
      pair[0] = first * cos[i] + second * sin[i];
      pair[apart] = second * cos[i] - first * sin[i];
    }
  }

  // The same at any position; room: the floats of a head.
  void rotate_at(const Step& step, int64_t position, float* room, float* x) const {
    step.ropes.angles(table_, position, room, room + half_);
    step.kernels.rope(x, room, room + half_, half_, interleaved_);
  }

 private:
  size_t table_ = 0;
  int64_t half_ = 0;
  bool interleaved_ = false;
};

}  // namespace deepmnn
