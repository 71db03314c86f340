// Attention to a window of tokens and to compressed entries (docs/ops.md): sliding_attention,
// heavily_compressed_attention, compressed_sparse_attention. The cache keeps a window of rows, the rows that a
// compressor has not used up, and one row of entries for many tokens. Where a row lies, Step::entry_row alone knows.
#include "ops/cache_rows.h"
#include "ops/compressed.h"
#include "ops/gathered.h"
#include "ops/ops.h"
#include "ops/rope.h"
#include "ops/select_keys.h"

namespace deepmnn {
namespace {

// [tokens, most] as select_keys gives them; none of a kind that does not choose.
struct ChosenKeys {
  const int32_t* rows = nullptr;
  int64_t most = 0;
};

// What turns the rows of new tokens into entries, and keeps both.
class Compressor {
 public:
  // kv, gate: which inputs; bias: which weight, followed by the norm's; rows: which cache entry, then the entries'.
  void read(const OpSpec& spec, const EntryShape& shape, size_t kv, size_t bias, size_t rows) {
    shape_ = shape;
    kv_ = spec.input(kv, Dim::tokens, shape.row_width());
    gate_ = spec.input(kv + 1, Dim::tokens, shape.row_width());
    bias_ = spec.vector(bias, shape.ratio * shape.row_width());
    norm_ = spec.vector(bias + 1, shape.width);
    rows_ = spec.cache(rows, 2 * shape.row_width(), 1, shape.rows(), true);
    entries_ = spec.cache(rows + 1, shape.width, shape.ratio);
  }

  size_t entries() const { return entries_; }
  int64_t width() const { return shape_.width; }

  // Keeps the new tokens' rows, and makes the entries of the windows that end with one of them.
  void run(Step& step, const TokenPlace* places, const Rope& rope, int64_t turned, float eps) const {
    const int64_t width = shape_.row_width();
    for_rows(step, step.batch.tokens, 2 * width, [&](int64_t token, int) {
      float* row = row_of(step, places[token].sequence, places[token].position);
      std::copy_n(step.f32(kv_) + token * width, width, row);
      std::copy_n(step.f32(gate_) + token * width, width, row + width);
    });
    const float *bias = step.pin_vector(bias_), *norm = step.pin_vector(norm_);
    if (step.batch.longest() < shape_.ratio) return;  // no window is complete: room for one grows with the ratio
    const int64_t d = shape_.width, rows = shape_.rows(), room = 4 * d;
    float* rooms = step.scratch.take<float>(step.pool.size() * room);
    const float** pointers = step.scratch.take<const float*>(step.pool.size() * 2 * rows);
    for (int64_t s = 0; s < step.batch.sequences; ++s) {
      const int64_t first = step.batch.history(s) / shape_.ratio;
      const int64_t windows = step.batch.context_lengths[s] / shape_.ratio - first;
      for_rows(step, windows, 8 * rows * d, [&](int64_t i, int worker) {
        const int64_t window = first + i, begin = (window + 1) * shape_.ratio - rows;
        const float **kv = pointers + worker * 2 * rows, **gate = kv + rows;
        for (int64_t r = 0; r < rows; ++r) {
          kv[r] = begin + r < 0 ? nullptr : row_of(step, s, begin + r);
          gate[r] = begin + r < 0 ? nullptr : kv[r] + width;
        }
        float *work = rooms + worker * room, *entry = work + 2 * d;
        compress_window(shape_, kv, gate, bias, work, entry);
        step.kernels.rms_norm(entry, norm, eps, d, entry);
        rope.rotate_at(step, window * shape_.ratio, work, entry + d - turned);
        rotate_heads(step, entry, 1, d);
        store_row(step, entry, d, entries_, step.entry_row(entries_, s, window));
      });
    }
  }

 private:
  float* row_of(const Step& step, int64_t s, int64_t position) const {
    return reinterpret_cast<float*>(cache_row(step, rows_, step.entry_row(rows_, s, position)));
  }

  EntryShape shape_;
  Buffer kv_, gate_;
  WeightRef bias_, norm_;
  size_t rows_ = 0, entries_ = 0;
};

// Chooses entries by keys of their own.
class Indexer {
 public:
  void read(const OpSpec& spec, int64_t ratio) {
    shape_.heads = spec.int_attr("index_heads", 1, kMaxExtentAttr);
    shape_.dim = spec.int_attr("index_dim", 2, kMaxExtentAttr);
    shape_.top_k = spec.int_attr("top_k", 1, kMaxExtentAttr);
    shape_.scale = spec.float_attr("index_scale");
    shape_.ratio = ratio;
    shape_.whole_rows = true;
    q_ = spec.input(4, Dim::tokens, shape_.heads * shape_.dim);
    weights_ = spec.input(5, Dim::tokens, shape_.heads);
    compressor_.read(spec, {ratio, shape_.dim, true}, 6, 4, 3);
  }

  int64_t dim() const { return shape_.dim; }

  // The last token that each entry is made of. No row is longer than the step's entries are many, whatever top_k is.
  ChosenKeys run(Step& step, const TokenPlace* places, const Rope& rope, int64_t turned, float eps) const {
    compressor_.run(step, places, rope, turned, eps);
    IndexShape shape = shape_;
    shape.top_k = std::max<int64_t>(1, std::min(shape_.top_k, shape_.keys(step.batch.longest())));
    int32_t* chosen = step.scratch.take<int32_t>(step.batch.tokens * shape.top_k);
    float* q = step.scratch.take<float>(step.batch.tokens * q_.width);
    for_rows(step, step.batch.tokens, 2 * q_.width, [&](int64_t token, int) {
      float* to = q + token * q_.width;
      std::copy_n(step.f32(q_) + token * q_.width, q_.width, to);
      for (int64_t head = 0; head < shape_.heads; ++head) {
        rope.rotate(step, token, to + (head + 1) * shape_.dim - turned);
      }
      rotate_heads(step, to, shape_.heads, shape_.dim);
    });
    for (int64_t s = 0; s < step.batch.sequences; ++s) {
      const int64_t token = step.batch.sequence_starts[s];
      IndexJob job;
      job.type = step.cache.type(compressor_.entries());
      job.k = cache_rows(step, compressor_.entries(), 0);
      job.table = step.table(compressor_.entries(), s);
      job.block_size = step.cache.rows_of_block(compressor_.entries());
      job.q = q + token * q_.width;
      job.weights = step.f32(weights_) + token * weights_.width;
      job.tokens = step.batch.tokens_of(s);
      job.history = step.batch.history(s);
      job.rows = chosen + token * shape.top_k;
      select_keys(step, shape, job);
    }
    return {chosen, shape.top_k};
  }

 private:
  IndexShape shape_;
  Buffer q_, weights_;
  Compressor compressor_;
};

enum class Kind { sliding, heavily, sparse };

class CompressedAttention : public Op {
 public:
  CompressedAttention(const OpSpec& spec, Kind kind) : kind_(kind) {
    const size_t inputs = kind == Kind::sliding ? 3 : kind == Kind::heavily ? 5 : 9;
    spec.require_counts(inputs, 1, kind == Kind::sliding ? 2 : kind == Kind::heavily ? 4 : 6);
    shape_.heads = spec.int_attr("heads", 1, kMaxExtentAttr);
    dim_ = spec.int_attr("head_dim", 2, kMaxExtentAttr);
    shape_.attend = {dim_, dim_, spec.float_attr("scale")};
    window_ = spec.int_attr("window", 1, kMaxExtentAttr);
    eps_ = spec.float_attr("eps");
    q_ = spec.input(0, Dim::tokens, shape_.heads * dim_);
    kv_ = spec.input(1, Dim::tokens, dim_);
    spec.require_graph_input(inputs - 1, "positions");
    y_ = spec.output(0, Dim::tokens, q_.width);
    norm_ = spec.vector(0, dim_);
    sinks_ = spec.vector(1, shape_.heads);
    rope_ = Rope(spec, turned_ = spec.int_attr("qk_rope_head_dim", 2, dim_));
    rows_ = spec.cache(0, dim_, 1, window_);
    int64_t least = dim_;
    if (kind != Kind::sliding) {
      ratio_ = spec.int_attr("ratio", 1, kMaxExtentAttr);
      compressor_.read(spec, {ratio_, dim_, kind == Kind::sparse}, 2, 2, 1);
    }
    if (kind == Kind::sparse) {
      indexer_.read(spec, ratio_);
      least = std::min(least, indexer_.dim());
    }
    spec.require(turned_ <= least, std::to_string(turned_) + " rotated columns", "as many as a head has, or fewer");
  }

  void run(Step& step) override {
    const TokenPlace* places = token_places(step);
    keep_rows(step, places);
    ChosenKeys chosen;
    if (kind_ != Kind::sliding) compressor_.run(step, places, rope_, turned_, eps_);
    if (kind_ == Kind::sparse) chosen = indexer_.run(step, places, rope_, turned_, eps_);
    const float* q = queries(step);
    GatheredShape shape = shape_;
    const CacheRows rows = cache_rows(step, rows_, 0);
    shape.type = step.cache.type(rows_);
    shape.row_nbytes = rows.row_nbytes;
    shape.scales = rows.scales;
    int64_t most = 1;
    for (int64_t token = 0; token < step.batch.tokens; ++token) most = std::max(most, seen(places[token], chosen));
    attend_gathered(
        step, shape, q, step.pin_vector(sinks_), step.f32(y_), step.batch.tokens, most,
        [&](int64_t token) { return seen(places[token], chosen); },
        [&](int64_t token, int64_t i) { return row(step, places[token], token, i, chosen); });
    for_rows(step, step.batch.tokens, 2 * y_.width, [&](int64_t token, int) {
      float* y = step.f32(y_) + token * y_.width;
      for (int64_t head = 0; head < shape_.heads; ++head)
        rope_.rotate_back(step, token, y + (head + 1) * dim_ - turned_);
    });
  }

 private:
  void keep_rows(Step& step, const TokenPlace* places) const {
    const float *kv = step.f32(kv_), *norm = step.pin_vector(norm_);
    float* rooms = step.scratch.take<float>(step.pool.size() * dim_);
    for_rows(step, step.batch.tokens, 2 * dim_, [&](int64_t token, int worker) {
      float* row = rooms + worker * dim_;
      step.kernels.rms_norm(kv + token * dim_, norm, eps_, dim_, row);
      rope_.rotate(step, token, row + dim_ - turned_);
      rotate_heads(step, row, 1, dim_);
      store_row(step, row, dim_, rows_, step.entry_row(rows_, places[token].sequence, places[token].position));
    });
  }

  // Normed by head and rotated, as rows of the cache hold their like.
  const float* queries(Step& step) const {
    float* queries = step.scratch.take<float>(step.batch.tokens * q_.width);
    for_rows(step, step.batch.tokens, 2 * q_.width, [&](int64_t token, int) {
      float* to = queries + token * q_.width;
      for (int64_t head = 0; head < shape_.heads; ++head) {
        float* q = to + head * dim_;
        step.kernels.rms_norm(step.f32(q_) + token * q_.width + head * dim_, nullptr, eps_, dim_, q);
        rope_.rotate(step, token, q + dim_ - turned_);
      }
      rotate_heads(step, to, shape_.heads, dim_);
    });
    return queries;
  }

  int64_t windowed(const TokenPlace& at) const { return std::min<int64_t>(window_, at.position + 1); }

  int64_t seen(const TokenPlace& at, const ChosenKeys& chosen) const {
    if (kind_ == Kind::sliding) return windowed(at);
    const int64_t entries = (at.position + 1) / ratio_;
    return windowed(at) + (chosen.rows ? std::min(entries, chosen.most) : entries);
  }

  const uint8_t* row(const Step& step, const TokenPlace& at, int64_t token, int64_t i, const ChosenKeys& chosen) const {
    const int64_t n = windowed(at);
    if (i < n) return cache_row(step, rows_, step.entry_row(rows_, at.sequence, at.position + 1 - n + i));
    const int64_t entry = chosen.rows ? chosen.rows[token * chosen.most + i - n] / ratio_ : i - n;
    return cache_row(step, compressor_.entries(), step.entry_row(compressor_.entries(), at.sequence, entry));
  }

  Kind kind_;
  GatheredShape shape_;
  int64_t dim_, window_, turned_, ratio_ = 1;
  float eps_;
  Buffer q_, kv_, y_;
  WeightRef norm_, sinks_;
  Rope rope_;
  size_t rows_;
  Compressor compressor_;
  Indexer indexer_;
};

}  // namespace

OpPtr make_sliding_attention(const OpSpec& spec) { return std::make_unique<CompressedAttention>(spec, Kind::sliding); }
OpPtr make_heavily_compressed_attention(const OpSpec& spec) {
  return std::make_unique<CompressedAttention>(spec, Kind::heavily);
}
OpPtr make_compressed_sparse_attention(const OpSpec& spec) {
  return std::make_unique<CompressedAttention>(spec, Kind::sparse);
}

}  // namespace deepmnn
