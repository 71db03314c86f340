#include "kernels/blocks.h"

#include <algorithm>
#include <cstring>

namespace deepmnn {
namespace {

// Where a panel of a block lies in the arrays of a matrix.
struct Place {
  Place(const Weight& shape, int64_t block, int64_t panel)
      : stored(stored_cols(shape.format, shape.cols)),
        row(block * kBlockRows),
        rows(std::min<int64_t>(shape.rows - row, kBlockRows)),
        col(panel * kPanelCols),
        cols(std::min(stored - col, kPanelCols)) {}

  // Of row r of the block.
  int64_t levels(int64_t r) const { return (row + r) * stored + col; }
  int64_t scales(int64_t r) const { return (row + r) * panel_count(stored) + col / kPanelCols; }

  int64_t stored;
  int64_t row, rows;  // those that exist
  int64_t col, cols;
};

}  // namespace

void round_block(const Kernels& kernels, const float* w, const Weight& shape, int64_t block, const NewCodes& out) {
  PanelCodes panel;
  for (int64_t p = 0; p < panel_count(shape.cols); ++p) {
    const Place at(shape, block, p);
    kernels.round_panel(w, shape, at.row, at.col, panel);
    for (int64_t r = 0; r < at.rows; ++r) {
      std::memcpy(out.levels + at.levels(r), panel.levels[r], static_cast<size_t>(at.cols));
      out.scales[at.scales(r)] = panel.scales[r];
    }
  }
}

void pack_block(const Kernels& kernels, const Codes& codes, const Weight& shape, int64_t block, uint8_t* out) {
  PanelCodes panel = {};  // rows that do not exist are zeros
  out += block * block_nbytes(shape.format, shape.cols);
  for (int64_t p = 0; p < panel_count(shape.cols); ++p) {
    const Place at(shape, block, p);
    for (int64_t r = 0; r < at.rows; ++r) {
      std::memcpy(panel.levels[r], codes.levels + at.levels(r), static_cast<size_t>(at.cols));
      panel.scales[r] = codes.scales[at.scales(r)];
    }
    kernels.pack_panel(panel, shape, at.cols, out);
    out += block_nbytes(shape.format, at.cols);
  }
}

void quantize_pack_block(const Kernels& kernels, const float* w, const Weight& shape, int64_t block, uint8_t* out) {
  out += block * block_nbytes(shape.format, shape.cols);
  if (!is_quantized(shape.format)) return kernels.pack_floats(w, shape, block * kBlockRows, out);
  PanelCodes panel;
  for (int64_t p = 0; p < panel_count(shape.cols); ++p) {
    const Place at(shape, block, p);
    kernels.round_panel(w, shape, at.row, at.col, panel);
    kernels.pack_panel(panel, shape, at.cols, out);
    out += block_nbytes(shape.format, at.cols);
  }
}

}  // namespace deepmnn
