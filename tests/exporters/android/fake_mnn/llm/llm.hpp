// The part of MNN's public llm/llm.hpp that the bridge uses, declared anew for a model of bytes: fake_llm.cc.
#pragma once
#include <cstddef>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

namespace MNN {
namespace Transformer {

using ChatMessage = std::pair<std::string, std::string>;
using ChatMessages = std::vector<ChatMessage>;

enum class LlmStatus {
  NOT_LOADED = -1,
  RUNNING = 0,
  NORMAL_FINISHED = 1,
  MAX_TOKENS_FINISHED = 2,
  USER_CANCEL = 3,
  INTERNAL_ERROR = 4,
  TIMEOUT = 5,
};

struct LlmContext {
  int current_token = -1;
  LlmStatus status = LlmStatus::NOT_LOADED;
};

class Llm {
 public:
  static Llm* createLLM(const std::string& config_path);
  static void destroy(Llm* llm);
  virtual ~Llm() = default;
  virtual bool load();
  bool set_config(const std::string& content);
  bool reuse_kv();
  void reset();
  void eraseHistory(size_t begin, size_t end);
  size_t getCurrentHistory() const;
  void response(const std::vector<int>& ids, std::ostream* os, const char* end_with, int max_new_tokens);
  void generate(int max_token);
  std::string tokenizer_decode(int token);
  virtual std::vector<int> tokenizer_encode(const std::string& query);
  std::string apply_chat_template(const ChatMessages& chat) const;
  const LlmContext* getContext() const { return &context_; }

 private:
  int next() const;

  LlmContext context_;
  std::string settings_;
  std::string cores_;       // those that a thread started by load() may run on
  std::vector<int> cache_;  // one token for every key and value
  size_t removed_ = 0;      // from its end, at the next forward
  bool unwell_ = false;     // config.json says "broken"
};

}  // namespace Transformer
}  // namespace MNN
