// Picks the next token. Every filter reduces to a cut in one order (larger logit first, then lower index), found
// without sorting the vocabulary; the draw then walks the kept tokens in index order.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "runtime/error.h"

namespace deepmnn {

namespace {

struct Token {
  float logit;
  int32_t index;
  float weight;  // exp((logit - maximum) / temperature): the probability, not yet normalised
};

bool better(const Token& a, const Token& b) { return a.logit != b.logit ? a.logit > b.logit : a.index < b.index; }

int32_t argmax(const float* logits, int64_t n) {
  int64_t best = -1;
  for (int64_t i = 0; i < n; ++i) {
    if (std::isnan(logits[i])) throw Error("request", "logits contain NaN at index " + std::to_string(i));
    if (best < 0 || logits[i] > logits[best]) best = i;
  }
  if (best < 0 || !std::isfinite(logits[best])) {
    throw Error("request", "no finite number is the largest of " + std::to_string(n) + " logits");
  }
  return static_cast<int32_t>(best);
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

double total_weight(const std::vector<Token>& tokens) {
  double total = 0;
  for (const Token& token : tokens) total += token.weight;
  return total;
}

template <class Condition>
void drop(std::vector<Token>& tokens, Condition condition) {
  tokens.erase(std::remove_if(tokens.begin(), tokens.end(), condition), tokens.end());
}

// The k best, in index order.
void keep_top_k(std::vector<Token>& tokens, int32_t k) {
  if (k == 0 || static_cast<size_t>(k) >= tokens.size()) return;
  std::vector<Token> order = tokens;
  std::nth_element(order.begin(), order.begin() + (k - 1), order.end(), better);
  const Token last = order[static_cast<size_t>(k - 1)];
  drop(tokens, [&](const Token& token) { return better(last, token); });
}

// The shortest prefix, best first, that holds at least top_p of the weight.
void keep_top_p(std::vector<Token>& tokens, float top_p) {
  if (top_p >= 1) return;
  const double total = total_weight(tokens), wanted = static_cast<double>(top_p) * total;
  // Together, weights below this bound are less than the share that may go: none of them is needed.
  const double bound = (total - wanted) / static_cast<double>(tokens.size());
  std::vector<Token> heap;
  for (const Token& token : tokens) {
    if (token.weight >= bound) heap.push_back(token);
  }
  const auto worse = [](const Token& a, const Token& b) { return better(b, a); };
  std::make_heap(heap.begin(), heap.end(), worse);
  Token last = heap.front();
  for (double sum = 0; sum < wanted && !heap.empty(); heap.pop_back()) {
    std::pop_heap(heap.begin(), heap.end(), worse);
    last = heap.back();
    sum += last.weight;
  }
  drop(tokens, [&](const Token& token) { return better(last, token); });
}

}  // namespace

int32_t sample(const float* logits, int64_t n, const SamplingParams& params, float u) {
  check(params, u);
  const int32_t best = argmax(logits, n);
  if (params.temperature == 0) return best;
  std::vector<Token> tokens;
  for (int64_t i = 0; i < n; ++i) {
    const float weight = std::exp((logits[i] - logits[best]) / params.temperature);
    if (weight > 0) tokens.push_back({logits[i], static_cast<int32_t>(i), weight});
  }
  keep_top_k(tokens, params.top_k);
  keep_top_p(tokens, params.top_p);
  drop(tokens, [&](const Token& token) { return token.weight < params.min_p; });  // the best token's weight is 1
  const double wanted = static_cast<double>(u) * total_weight(tokens);
  double sum = 0;
  for (const Token& token : tokens) {
    sum += token.weight;
    if (sum > wanted) return token.index;
  }
  return tokens.back().index;
}

}  // namespace deepmnn
