// Picks the next token. Every filter reduces to a cut in one order (larger logit first, then lower index), found
// without sorting the vocabulary; the draw then walks the kept tokens in index order.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <functional>
#include <iterator>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "runtime/error.h"

namespace deepmnn {

namespace {

constexpr int64_t kRun = 1024;  // logits whose weights are added up in float; the sums of runs are doubles

struct Token {
  float logit;
  int32_t index;
  float weight;
};

using Tokens = std::vector<Token>;

bool better(const Token& a, const Token& b) { return a.logit != b.logit ? a.logit > b.logit : a.index < b.index; }

double total_weight(Tokens::const_iterator begin, Tokens::const_iterator end) {
  double total = 0;
  for (auto token = begin; token != end; ++token) total += token->weight;
  return total;
}

template <class Condition>
void drop(Tokens& tokens, Condition condition) {
  tokens.erase(std::remove_if(tokens.begin(), tokens.end(), condition), tokens.end());
}

// Logits [n] without NaN and their weights exp((logit - best) / temperature): probabilities, not yet normalised.
class Logits {
 public:
  Logits(const Kernels& kernels, const float* x, int64_t n, float best, float temperature)
      : kernels_(kernels), x_(x), n_(n), best_(best), temperature_(temperature) {}

  // The k best in index order, but for those that weigh nothing.
  Tokens best_k(int64_t k) const {
    std::vector<float> heap(x_, x_ + k);  // the largest so far, the smallest of them in front
    const std::greater<float> order;
    std::make_heap(heap.begin(), heap.end(), order);
    for (int64_t i = k; (i = find_above(i, heap.front())) < n_; ++i) {
      std::pop_heap(heap.begin(), heap.end(), order);
      heap.back() = x_[i];
      std::push_heap(heap.begin(), heap.end(), order);
    }
    const float last = heap.front();
    int64_t ties = std::count(heap.begin(), heap.end(), last);
    return collect(std::nextafter(last, -HUGE_VALF), [&](float logit) { return logit > last || ties-- > 0; });
  }

  // In index order all tokens that weigh `bound` or more, perhaps some that weigh less.
  Tokens at_least(double bound) const {
    const double rounding = 0.01;
    const double low = best_ + temperature_ * (std::log(bound) - rounding);
    const float below = std::nextafter(static_cast<float>(std::max<double>(low, -FLT_MAX)), -HUGE_VALF);
    return collect(below, [](float) { return true; });
  }

  // The weight of every run.
  std::vector<float> run_weights() const {
    const float factor = std::min(1.0f / temperature_, FLT_MAX);  // infinity times 0 would be NaN
    std::vector<float> weights;
    for (int64_t i = 0; i < n_; i += kRun) {
      weights.push_back(kernels_.exp_sum(x_ + i, std::min(kRun, n_ - i), best_, factor));
    }
    return weights;
  }

  // Draws from all of them.
  int32_t draw(float u) const {
    const std::vector<float> runs = run_weights();
    double total = 0, sum = 0;
    for (const float weight : runs) total += weight;
    const double wanted = static_cast<double>(u) * total;
    size_t run = 0;
    while (run + 1 < runs.size() && sum + runs[run] <= wanted) sum += runs[run++];
    const int64_t begin = static_cast<int64_t>(run) * kRun, end = std::min(n_, begin + kRun);
    int64_t last = begin;
    for (int64_t i = begin; i < end && sum <= wanted; ++i) {
      const float w = weight(x_[i]);
      sum += w;
      if (w > 0) last = i;
    }
    return static_cast<int32_t>(last);
  }

 private:
  int64_t find_above(int64_t begin, float low) const { return kernels_.find_above(x_, begin, n_, low); }

  float weight(float logit) const { return std::exp((logit - best_) / temperature_); }

  // Those above `low` that are wanted, in index order. Where one is, more are: the search goes on after a few.
  template <class Wanted>
  Tokens collect(float low, Wanted wanted) const {
    constexpr int64_t kFew = 64;
    Tokens tokens;
    for (int64_t begin = 0; (begin = find_above(begin, low)) < n_; begin += kFew) {
      for (int64_t i = begin; i < std::min(n_, begin + kFew); ++i) {
        if (!(x_[i] > low)) continue;
        const float w = weight(x_[i]);
        if (w > 0 && wanted(x_[i])) tokens.push_back({x_[i], static_cast<int32_t>(i), w});
      }
    }
    return tokens;
  }

  const Kernels& kernels_;
  const float* x_;
  int64_t n_;
  float best_, temperature_;
};

int64_t argmax(const Kernels& kernels, const float* logits, int64_t n) {
  const int64_t best = kernels.argmax(logits, n);
  for (int64_t i = 0; i < n && best < 0; ++i) {
    if (std::isnan(logits[i])) throw Error("request", "logits contain NaN at index " + std::to_string(i));
  }
  if (best < 0 || !std::isfinite(logits[best])) {
    throw Error("request", "no finite number is the largest of " + std::to_string(n) + " logits");
  }
  return best;
}

void check(const SamplingParams& p, float u) {
  const auto require = [](bool right, const char* name, double value, const char* expected) {
    if (!right) throw Error("request", name + (" " + std::to_string(value)) + "; expected " + expected);
  };
  require(p.temperature >= 0 && std::isfinite(p.temperature), "temperature", p.temperature, "0 or a positive number");
  require(p.top_k >= 0, "top_k", p.top_k, "0 (all) or a positive number");
  require(p.top_p > 0 && p.top_p <= 1, "top_p", p.top_p, "a number above 0, at most 1");
  require(p.min_p >= 0 && p.min_p <= 1, "min_p", p.min_p, "a number from 0 to 1");
  require(u >= 0 && u < 1, "u", u, "a random number in [0, 1)");
}

constexpr size_t kBins = 1017;  // of weights up to 1: eight for each power of 2

size_t bin_of(const Token& token) {
  uint32_t bits;
  std::memcpy(&bits, &token.weight, sizeof(bits));
  return std::min<size_t>(bits >> 20, kBins - 1);
}

// Keeps the shortest prefix, best first, that weighs at least `wanted`. The weights of bins tell in which one it ends;
// there the last token is found by halving.
void keep_prefix(Tokens& tokens, double wanted) {
  std::vector<double> bins(kBins);
  for (const Token& token : tokens) bins[bin_of(token)] += token.weight;
  size_t bin = kBins - 1;
  double before = 0;  // the weight of what is better than *from
  while (bin > 0 && before + bins[bin] < wanted) before += bins[bin--];
  Tokens order;
  std::copy_if(tokens.begin(), tokens.end(), std::back_inserter(order),
               [&](const Token& t) { return bin_of(t) == bin; });
  if (order.empty()) return;                    // rounding: all together weigh a little less
  auto from = order.begin(), to = order.end();  // the last one kept is here
  while (to - from > 1) {
    const auto middle = from + (to - from) / 2;
    std::nth_element(from, middle, to, better);
    const double half = total_weight(from, middle);
    if (before + half >= wanted) {
      to = middle;
    } else {
      before += half;
      from = middle;
    }
  }
  const Token last = *from;
  drop(tokens, [&](const Token& token) { return better(last, token); });
}

int32_t draw(const Tokens& tokens, float u) {
  const double wanted = static_cast<double>(u) * total_weight(tokens.begin(), tokens.end());
  double sum = 0;
  for (const Token& token : tokens) {
    sum += token.weight;
    if (sum > wanted) return token.index;
  }
  return tokens.back().index;
}

// Those of all tokens that top_p keeps. Together, weights below the bound are less than the share that may go.
Tokens top_p_of_all(const Logits& logits, int64_t n, float top_p) {
  double total = 0;
  for (const float weight : logits.run_weights()) total += weight;
  const double wanted = static_cast<double>(top_p) * total;
  Tokens tokens = logits.at_least((total - wanted) / static_cast<double>(n));
  keep_prefix(tokens, wanted);
  return tokens;
}

}  // namespace

int32_t sample(const Kernels& kernels, const float* x, int64_t n, const SamplingParams& params, float u) {
  check(params, u);
  const int64_t best = argmax(kernels, x, n);
  if (params.temperature == 0) return static_cast<int32_t>(best);
  const Logits logits(kernels, x, n, x[best], params.temperature);
  Tokens tokens;
  if (params.top_k > 0 && params.top_k < n) {
    tokens = logits.best_k(params.top_k);
    if (params.top_p < 1) keep_prefix(tokens, params.top_p * total_weight(tokens.begin(), tokens.end()));
  } else if (params.top_p < 1) {
    tokens = top_p_of_all(logits, n, params.top_p);
  } else if (params.min_p > 0) {
    tokens = logits.at_least(params.min_p);
  } else {
    return logits.draw(u);
  }
  drop(tokens, [&](const Token& token) { return token.weight < params.min_p; });  // the best token's weight is 1
  return draw(tokens, u);
}

}  // namespace deepmnn
