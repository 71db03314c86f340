// Blocks of a matrix to codes and stored bytes: the kernels of a panel (rounding.h, layout.h), panel after panel.
#pragma once

#include "kernels/kernels.h"

namespace deepmnn {

// A quantised matrix before it is laid out in bytes, row after row: what deepmnn.formats.Codes holds.
template <class Int8, class Half>
struct CodesOf {
  Int8* levels;  // [rows, stored columns]
  Half* scales;  // fp16 [rows, panels]
};
using Codes = CodesOf<const int8_t, const uint16_t>;
using NewCodes = CodesOf<int8_t, uint16_t>;

// Rounds block `block` of w [rows, cols] to its rows of `out`.
void round_block(const Kernels& kernels, const float* w, const Weight& shape, int64_t block, const NewCodes& out);

// Lays out block `block` of codes at its place in `out`, the whole matrix.
void pack_block(const Kernels& kernels, const Codes& codes, const Weight& shape, int64_t block, uint8_t* out);

// Both in one go, without codes of the whole block in between; floats are only laid out.
void quantize_pack_block(const Kernels& kernels, const float* w, const Weight& shape, int64_t block, uint8_t* out);

}  // namespace deepmnn
