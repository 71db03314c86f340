// The kernel interface: plain data in, plain data out, one table of functions per ISA.
//
// Every kernel is written once, in kernels/<op>.h, against the thin vector types of isa/<isa>.h, and compiled once
// per ISA (isa/kernels_<isa>.cc). Nothing here knows about threads, files or models: a kernel works on a range that
// its caller chose. Weight layouts: docs/layouts.md.
#pragma once

#include <cstdint>

#include "kernels/formats.h"

namespace deepmnn {

constexpr int64_t kLinearPanelRows = 256;  // input rows that an integer linear walks together, in panels of columns

// A stored matrix [rows, cols] (y = W x). A vector has rows = 1 and raw float32 data.
struct Weight {
  const uint8_t* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  Format format = Format::f32;
};

// A panel of a block of 16 rows before it is laid out in bytes; what is stored of a row is columns [0, stored).
struct PanelCodes {
  int8_t levels[kBlockRows][kPanelCols];
  uint16_t scales[kBlockRows];  // fp16
};

// What a product needs of a panel of a quantised row besides its codes.
struct PanelHead {
  float scale;
  int32_t sum;  // of its codes
};

// The quads (4 neighbouring columns) of a panel with the largest numbers have codes of 16 bits in a row that kept
// formats read: it is not rotated, and so a few columns may be far larger than the rest.
constexpr int kOutliers = 3;
constexpr int32_t kOutlierStep = 128;  // a number is scale * (code + this * its outlier's code)

// And what only kept formats need, besides.
struct PlainPanel {
  // Sums of numbers / scale, and of codes, in every 16 columns (16 sums), 32 (8), 64 (4), 128 (2) and all of them;
  // integers.
  float sums[32], code_sums[32];
  int32_t quads[kOutliers];
  int8_t outliers[kOutliers][4];
  int32_t outlier_sums[kOutliers];
};
// Where the sums of groups of so many columns begin.
constexpr int64_t sums_of(int64_t group) { return 32 - 2 * (kPanelCols / group); }

// Activations in int8 (docs/layouts.md), panel by panel: what a tile of some rows reads of a panel lies together,
// however long the rows are. Codes [panels, height, kPanelCols], heads [panels, height]; codes after the last column
// are 0. Rotated where there are no plain panels [panels, height]; where there are, as kept formats read them.
struct QuantizedRows {
  int8_t* codes = nullptr;
  PanelHead* heads = nullptr;
  int64_t height = 0;  // rows from one panel to the next
  PlainPanel* plain = nullptr;

  // Row `first` and those after it.
  QuantizedRows from(int64_t first) const {
    return {codes + first * kPanelCols, heads + first, height, plain ? plain + first : nullptr};
  }
  // Panel `panel` and those after it.
  QuantizedRows from_panel(int64_t panel) const { return from(panel * height); }
};

// Input rows of a linear. Weights of floats read x, quantised ones the quantised form.
struct Rows {
  const float* x = nullptr;
  int64_t stride = 0;              // floats between rows of x
  QuantizedRows quantized;         // row i of the task
  const int32_t* index = nullptr;  // row i of the task is row index[i] of x; null: row i
  int64_t n = 0;
};

enum class Epilogue : uint32_t {
  store,       // y = W x (+ bias)
  accumulate,  // y += W x
  swiglu,      // blocks are (gate, up) pairs: y = silu(gate x) * (up x), half as many output columns
};

struct LinearTask {
  Weight weight;
  Rows rows;
  float* y = nullptr;
  int64_t y_stride = 0;         // floats between rows of y
  int64_t out_cols = 0;         // columns of y that exist: padding rows of W are not stored
  const float* bias = nullptr;  // [out_cols] or null; store only
  Epilogue epilogue = Epilogue::store;
  float limit = 0.0f;  // swiglu: gate is at most that, up within it and its negative; 0: no limit
};

struct SamplingParams {
  float temperature = 1.0f;  // 0: greedy
  int32_t top_k = 0;         // 0: all
  float top_p = 1.0f;
  float min_p = 0.0f;
};

struct Kernels;

// Draws one index of logits [n]. u in [0, 1) is the random number, so equal arguments give equal answers. Filters run
// in the order temperature, top_k, top_p, min_p; ties go to the lower index. Throws Error("request") when no logit is
// finite, one is NaN, or a parameter is out of range.
int32_t sample(const Kernels& kernels, const float* logits, int64_t n, const SamplingParams& params, float u);

// How a KV cache stores its rows: docs/layouts.md.
enum class CacheType : uint32_t { f32 = 0, bf16 = 1, int8 = 2 };

constexpr int64_t kCacheGroup = 64;  // columns of an int8 row that share a scale

// Keys or values: `column` and the columns after it of rows of a cache.
struct CacheRows {
  const uint8_t* data = nullptr;  // row 0
  int64_t row_nbytes = 0;
  int64_t column = 0;
  int64_t scales = 0;  // int8: bytes from a row's start to its scales
};

// Float caches: for few queries (a decoding GQA group) rows are read as they lie; for many (16 make a vector) keys and
// values are brought into strips first. The two round differently. An int8 cache is multiplied as integers, always.
enum class AttentionForm { rows, strips };

constexpr int64_t kAttentionStripCols = 64;

// Floats of working memory for strips and int8. A head of an int8 row may touch one more group of columns than it
// fills.
constexpr int64_t attention_work(int64_t queries, int64_t qk_dim, int64_t v_dim) {
  const int64_t padded = (queries + 15) / 16 * 16;
  const int64_t qk = (qk_dim + kAttentionStripCols - 1) / kAttentionStripCols * kAttentionStripCols + kCacheGroup;
  const int64_t v = (v_dim + kAttentionStripCols - 1) / kAttentionStripCols * kAttentionStripCols + kCacheGroup;
  return (padded + kAttentionStripCols) * (qk + v) + padded * (kAttentionStripCols + 5);
}

// Floats of working memory for 16 of an indexer's keys.
constexpr int64_t index_work(int64_t dim) { return (dim + kCacheGroup - 1) / kCacheGroup * kCacheGroup * 16 + 64; }

// One function per kernel; every ISA fills one table.
struct Kernels {
  const char* isa;

  // y columns of output blocks [begin, end); a block is 16 columns of y (for swiglu: of one gate/up pair).
  void (*linear)(const LinearTask& task, int64_t begin, int64_t end);

  // The same without rounding activations: y = W x, or for the other y = transposed(W) x, of rows of floats (out_cols
  // are W's rows, or its columns; no bias, no epilogue). See kernels/float_linear.h.
  void (*float_linear)(const LinearTask& task);
  void (*float_linear_transposed)(const LinearTask& task);

  // Quantises rows [n, cols] (stride floats apart) to the first n rows of out, as plain rows where it has plain panels.
  void (*quantize_rows)(const float* x, int64_t stride, int64_t n, int64_t cols, const QuantizedRows& out);

  // What the quantised form of a row x [cols] stands for, to y.
  void (*round_row)(const float* x, int64_t cols, float* y);

  // Quantises n floats to codes, and a scale for every kCacheGroup of them (docs/layouts.md, "Rows of the KV cache").
  void (*quantize_cache)(const float* x, int64_t n, int8_t* codes, float* scales);

  // Rotates heads x [heads, d] in place as the rows of an int8 cache hold them (kernels/rotate_heads.h), and back.
  void (*rotate_heads)(float* x, int64_t heads, int64_t d);
  void (*unrotate_heads)(float* x, int64_t heads, int64_t d);

  // Rotates rows [n, cols] of floats, each as quantised rows are (kernels/rotation.h), to y [n, stored columns].
  void (*rotate_rows)(const float* x, int64_t n, int64_t cols, float* y);

  // Rotates the panel at row and col of w [rows, cols] and rounds it to codes, with scales of least squared error. Rows
  // and columns past the matrix count as zeros.
  void (*round_panel)(const float* w, const Weight& shape, int64_t row, int64_t col, PanelCodes& out);

  // Lays out a panel of `cols` stored columns.
  void (*pack_panel)(const PanelCodes& panel, const Weight& shape, int64_t cols, uint8_t* out);

  // Lays out the block at `row` of w [rows, cols] in a format of floats.
  void (*pack_floats)(const float* w, const Weight& shape, int64_t row, uint8_t* out);

  // Decodes columns [0, cols) of one weight row to y (embedding lookup).
  void (*decode_row)(const Weight& weight, int64_t row, float* y);

  // y = x / sqrt(mean(x^2) + eps) * w, one row of d floats; w may be null.
  void (*rms_norm)(const float* x, const float* w, float eps, int64_t d, float* y);
  // sum = a + b; y = rms_norm(sum).
  void (*add_rms_norm)(const float* a, const float* b, const float* w, float eps, int64_t d, float* sum, float* y);

  void (*add)(const float* a, const float* b, int64_t n, float* y);
  void (*mul)(const float* a, const float* b, int64_t n, float* y);
  void (*axpy)(float a, const float* x, int64_t n, float* y);  // y += a x
  void (*scale)(const float* x, float factor, int64_t n, float* y);
  void (*silu)(const float* x, int64_t n, float* y);
  void (*sigmoid)(const float* x, int64_t n, float* y);
  void (*softmax)(const float* x, int64_t n, float* y);

  // Rotates one head x [2 * half] in place with cos, sin [half]; interleaved: pairs (2i, 2i+1), else (i, i + half).
  void (*rope)(float* x, const float* cos, const float* sin, int64_t half, bool interleaved);

  // Flash-style attention state for queries against one run of cache rows; see kernels/attention.h.
  struct AttentionTask {
    const float* q;  // query vectors, one every q_stride floats, each qk_dim long
    int64_t q_stride;
    int64_t n_queries;  // queries that share these keys (heads of a KV group, or all heads for MLA latent; × tokens)
    int64_t qk_dim;
    int64_t v_dim;
    float scale;
    AttentionForm form;
    CacheType type;       // of k and v
    CacheRows k, v;       // MLA absorbed: the values are the first columns of the keys
    bool values_in_keys;  // they are: v starts where k does and v_dim <= qk_dim
    // The run is keys [first_key, first_key + n_keys). Key j is row table[j / block_size] * block_size + j % block_size
    // of k and v, or row j without a table.
    const int32_t* table;
    int64_t block_size;
    int64_t first_key;
    int64_t n_keys;
    int64_t keys_ahead;  // keys after the run that the next task probably reads: their rows are asked for
    const int32_t*
        limits;  // [n_queries]: query i sees keys [0, limits[i]) of this run (causal mask), clamped to n_keys
    // Strips alone: query i sees those of these keys whose mask[i / 16 * mask_stride + key] has the bit i % 16; null:
    // all.
    const uint16_t* mask;
    int64_t mask_stride;
    float* acc;      // [n_queries, v_dim] running output, unnormalised; not read while the sum is 0
    float* max_sum;  // [n_queries, 2] running maximum and sum; start at {-inf, 0}
    float* work;     // attention_work(n_queries, qk_dim, v_dim) floats, 64-byte aligned for speed; strips and int8
  };
  void (*attention)(const AttentionTask& task);

  // Converts n floats to bf16, round to nearest even.
  void (*to_bf16)(const float* x, int64_t n, uint16_t* y);

  // The first index of the largest of n numbers; -1 when there are none or one is NaN.
  int64_t (*argmax)(const float* x, int64_t n);
  // The first i in [begin, n) with x[i] > low; n when there is none.
  int64_t (*find_above)(const float* x, int64_t begin, int64_t n, float low);
  // The sum of exp((x - shift) * factor) in float: for a few thousand numbers. Of -inf it is 0.
  float (*exp_sum)(const float* x, int64_t n, float shift, float factor);

  // Runs the dot product of w4 in registers and returns the multiply-accumulates done: what this ISA can do at most.
  int64_t (*peak_dot)(int64_t rounds);

  // The same for the f32 multiply-add, which bf16 weights use, too.
  int64_t (*peak_fma)(int64_t rounds);

  // y = (x - mean) / sqrt(variance + eps) * w + b, one row of d floats.
  void (*layer_norm)(const float* x, const float* w, const float* b, float eps, int64_t d, float* y);

  // Scores of an indexer's keys: out[t][j] = sum over heads of weights[t][h] * max(0, q[t][h] . key first_key + j).
  struct IndexTask {
    const float* q;        // [tokens, heads, dim]; float caches
    const int8_t* codes;   // [tokens, heads, groups of kCacheGroup columns], zeros after the last column; int8 caches
    const float* scales;   // [tokens, heads, groups]
    const int32_t* sums;   // [tokens, heads, groups]: of a group's codes
    const float* weights;  // [tokens, heads]
    int64_t tokens, heads, dim;
    CacheType type;  // of k
    CacheRows k;     // column 0
    // Key j is row j * ratio + ratio - 1, which lies where AttentionTask's rows do.
    const int32_t* table;
    int64_t block_size;
    int64_t ratio;
    int64_t first_key;
    int64_t n_keys;
    const int32_t* limits;  // [tokens]: keys, from 0 on, that a token sees; other scores may be anything
    float* out;             // token t's from out + t * out_stride on, in whole vectors of 16
    int64_t out_stride;
    float* work;  // index_work(dim) floats
  };
  void (*index_scores)(const IndexTask& task);
};

}  // namespace deepmnn
