#include "ops/gemm.h"

namespace deepmnn {
namespace {

constexpr int64_t kRowTileNbytes = 192 << 10;    // a tile's float rows stay in L2 while weights pass
constexpr int64_t kBlockTileNbytes = 256 << 10;  // a tile's weights stay in L2 while row tiles pass
constexpr int64_t kMinRowTile = 24;
constexpr int64_t kMinTileWork = 16 << 10;  // weight bytes × rows: less is not worth a thread
constexpr int64_t kTilesPerWorker = 8;
constexpr int64_t kKernelBlocks = 4;                           // a kernel takes up to so many at once
constexpr int64_t kQuantizedBlocks = kPanelCols / kBlockRows;  // are computed, then quantised: a panel
static_assert(kQuantizedBlocks % kKernelBlocks == 0);

struct Tile {
  int32_t task;
  int32_t first_row;
  int32_t rows;
  int32_t begin, end;  // output blocks
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t blocks_of(const LinearTask& task) { return ceil_div(task.out_cols, kBlockRows); }

// Weight bytes behind one output block.
int64_t block_weight_nbytes(const LinearTask& task) {
  const Weight& weight = task.weight;
  return block_nbytes(weight.format, weight.cols) * (task.epilogue == Epilogue::swiglu ? 2 : 1);
}

int64_t row_tile(const LinearTask& task) {
  // Integer rows are walked in panels of columns: how long they are does not matter.
  const int64_t most = is_quantized(task.weight.format)
                           ? kLinearPanelRows
                           : std::max(kMinRowTile, kRowTileNbytes / (task.weight.cols * 4));
  const int64_t even = ceil_div(task.rows.n, ceil_div(task.rows.n, most));
  return ceil_div(even, 4) * 4;
}

// How many blocks go into one tile, given all the work there is: whole units, or for a single row any number.
int64_t block_tile(const LinearTask& task, int64_t work, int64_t workers, int64_t unit) {
  const int64_t per_block = block_weight_nbytes(task) * std::min(task.rows.n, row_tile(task));
  const int64_t share = std::max(kMinTileWork, work / (workers * kTilesPerWorker));
  const int64_t blocks = std::min(share / per_block, kBlockTileNbytes / block_weight_nbytes(task));
  return std::max(blocks / unit * unit, unit);
}

// Calls function(tile): tiles of a task that share weights follow one another.
template <class Function>
void for_tiles(const LinearTask* tasks, int64_t count, int64_t workers, bool quantize, Function&& function) {
  int64_t work = 0;
  for (int64_t i = 0; i < count; ++i) work += block_weight_nbytes(tasks[i]) * blocks_of(tasks[i]) * tasks[i].rows.n;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t rows = tasks[i].rows.n, blocks = blocks_of(tasks[i]);
    if (rows == 0) continue;
    const int64_t unit = quantize ? kQuantizedBlocks : (rows > 1 ? kKernelBlocks : 1);
    const int64_t row_step = row_tile(tasks[i]), block_step = block_tile(tasks[i], work, workers, unit);
    for (int64_t block = 0; block < blocks; block += block_step) {
      for (int64_t row = 0; row < rows; row += row_step) {
        function(Tile{static_cast<int32_t>(i), static_cast<int32_t>(row),
                      static_cast<int32_t>(std::min(row_step, rows - row)), static_cast<int32_t>(block),
                      static_cast<int32_t>(std::min(blocks, block + block_step))});
      }
    }
  }
}

// The task's rows [first, first + n).
LinearTask row_range(LinearTask task, int64_t first, int64_t n) {
  Rows& rows = task.rows;
  if (rows.index) rows.index += first;
  if (rows.x && !rows.index) rows.x += first * rows.stride;
  if (rows.quantized.codes) rows.quantized = rows.quantized.from(first);
  rows.n = n;
  if (task.y) task.y += first * task.y_stride;
  return task;
}

// Blocks [begin, end) of the task, a panel of columns at a time by way of `room` [rows, kPanelCols].
void run_quantized(const Kernels& kernels, const LinearTask& task, int64_t begin, int64_t end, const QuantizedRows& out,
                   float* room) {
  LinearTask part = task;
  part.y = room;
  part.y_stride = kPanelCols;
  for (int64_t first = begin; first < end; first += kQuantizedBlocks) {
    const int64_t column = first * kBlockRows;
    part.weight.data = task.weight.data + first * block_weight_nbytes(task);
    part.out_cols = std::min(kPanelCols, task.out_cols - column);
    kernels.linear(part, 0, std::min(kQuantizedBlocks, end - first));
    kernels.quantize_rows(room, kPanelCols, task.rows.n, part.out_cols, out.from_panel(column / kPanelCols));
  }
}

}  // namespace

void run_linear(Step& step, const LinearTask* tasks, int64_t count, const QuantizedRows* outputs) {
  const int64_t workers = step.pool.size();
  int64_t tiles = 0, rows = 0;
  for_tiles(tasks, count, workers, outputs != nullptr, [&](const Tile& tile) {
    ++tiles;
    rows = std::max<int64_t>(rows, tile.rows);
  });
  Tile* list = step.scratch.take<Tile>(tiles);
  int64_t filled = 0;
  for_tiles(tasks, count, workers, outputs != nullptr, [&](const Tile& tile) { list[filled++] = tile; });
  const int64_t floats = outputs ? rows * kPanelCols : 0;
  float* rooms = step.scratch.take<float>(workers * floats);
  step.pool.run(tiles, [&](int64_t piece, int worker) {
    const Tile& tile = list[piece];
    const LinearTask task = row_range(tasks[tile.task], tile.first_row, tile.rows);
    if (!outputs) return step.kernels.linear(task, tile.begin, tile.end);
    run_quantized(step.kernels, task, tile.begin, tile.end, outputs[tile.task].from(tile.first_row),
                  rooms + worker * floats);
  });
}

}  // namespace deepmnn
