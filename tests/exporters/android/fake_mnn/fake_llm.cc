// A model whose tokens are bytes. What it says next depends on nothing but its KV cache, so that a cache with the wrong
// tokens gives a wrong answer. The cache, its pending removal and the statuses go as in MNN 3.6.1.
#include <sched.h>

#include <chrono>
#include <fstream>
#include <iterator>
#include <llm/llm.hpp>
#include <thread>

namespace MNN {
namespace Transformer {

static const int kStop = 256;

Llm* Llm::createLLM(const std::string& config_path) {
  std::ifstream file(config_path);
  auto* llm = new Llm;
  llm->settings_.assign(std::istreambuf_iterator<char>(file), {});
  llm->unwell_ = llm->settings_.find("broken") != std::string::npos;
  return llm;
}

void Llm::destroy(Llm* llm) { delete llm; }

bool Llm::set_config(const std::string& content) {
  settings_ = content;
  return true;
}

bool Llm::load() {
  std::thread([this] {
    cpu_set_t set;
    sched_getaffinity(0, sizeof(set), &set);
    for (int core = 0; core < CPU_SETSIZE; ++core) {
      if (CPU_ISSET(core, &set)) cores_ += std::to_string(core) + " ";
    }
  }).join();
  context_.status = LlmStatus::RUNNING;
  return !unwell_;
}

bool Llm::reuse_kv() { return settings_.find("\"reuse_kv\":true") != std::string::npos; }

void Llm::reset() { removed_ = cache_.size(); }

void Llm::eraseHistory(size_t begin, size_t end) {
  if (end == 0) removed_ = cache_.size() - begin;
}

size_t Llm::getCurrentHistory() const { return cache_.size(); }

std::string Llm::apply_chat_template(const ChatMessages& chat) const {
  std::string prompt;
  for (const auto& message : chat) prompt += message.first + ":" + message.second + "\n";
  return prompt + "assistant:";
}

std::vector<int> Llm::tokenizer_encode(const std::string& query) {
  std::vector<int> ids;
  for (unsigned char byte : query) ids.push_back(byte);
  return ids;
}

std::string Llm::tokenizer_decode(int token) { return std::string(1, static_cast<char>(token)); }

void Llm::response(const std::vector<int>& ids, std::ostream*, const char*, int) {
  if (!reuse_kv()) reset();
  cache_.resize(cache_.size() - removed_);
  removed_ = 0;
  cache_.insert(cache_.end(), ids.begin(), ids.end());
  context_.current_token = -1;
  context_.status = LlmStatus::RUNNING;
}

void Llm::generate(int) {
  if (context_.status == LlmStatus::INTERNAL_ERROR || context_.current_token == kStop) return;
  const int token = next();
  context_.current_token = token;
  if (token < 0) {
    context_.status = LlmStatus::INTERNAL_ERROR;
  } else if (token == kStop) {
    context_.status = LlmStatus::NORMAL_FINISHED;
  } else {
    cache_.push_back(token);
    context_.status = LlmStatus::MAX_TOKENS_FINISHED;
  }
}

/// The next byte of the answer to the last "user:" line of the cache; negative: the model fails.
int Llm::next() const {
  std::string text;
  for (int token : cache_) text += static_cast<char>(token);
  const size_t last = text.rfind("user:"), first = text.find("user:");
  const auto line = [&](size_t start) {
    start = text.find(':', start) + 1;
    return text.substr(start, text.find('\n', start) - start);
  };
  const std::string question = line(last);
  const size_t said = text.size() - (text.find("\nassistant:", last) + 11);
  std::string answer = question;  // an echo, unless
  if (question == "settings?") answer = settings_;
  if (question == "cores?") answer = cores_;
  if (question == "first?") answer = line(first);
  if (question == "said?") answer = line(text.rfind("assistant:", last));
  if (question == "count!") {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return '0' + static_cast<int>(said % 10);
  }
  if (question == "fail!" && said == 2) return -1;
  return said < answer.size() ? static_cast<unsigned char>(answer[said]) : kStop;
}

}  // namespace Transformer
}  // namespace MNN
