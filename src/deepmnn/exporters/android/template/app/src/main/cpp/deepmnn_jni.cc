// SPDX-License-Identifier: Apache-2.0
// The native half of org.deepmnn.MnnInterpreter, over MNN's public header llm/llm.hpp. MNN is built without exceptions:
// none may pass through it, so nothing of ours is called from inside of MNN.
#include <jni.h>
#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>
#include <llm/llm.hpp>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using MNN::Transformer::ChatMessages;
using MNN::Transformer::Llm;
using MNN::Transformer::LlmStatus;

enum Finish { kEnd, kLength, kStopped };  // as Generation.Finish

struct Destroy {
  void operator()(Llm* llm) const { Llm::destroy(llm); }
};

struct Session {
  std::unique_ptr<Llm, Destroy> llm;
  std::vector<int> cached;  // the tokens whose keys and values MNN holds
};

/// Runs body; what it throws becomes a MnnException, unless Java already has an exception of its own.
template <typename Body>
void guarded(JNIEnv* env, Body body) {
  try {
    body();
  } catch (const std::exception& fault) {
    if (!env->ExceptionCheck()) env->ThrowNew(env->FindClass("org/deepmnn/MnnException"), fault.what());
  }
}

std::string text(JNIEnv* env, jbyteArray bytes) {
  std::string copy(env->GetArrayLength(bytes), '\0');
  env->GetByteArrayRegion(bytes, 0, static_cast<jsize>(copy.size()), reinterpret_cast<jbyte*>(copy.data()));
  return copy;
}

ChatMessages chat(JNIEnv* env, jobjectArray parts) {
  ChatMessages messages;
  for (jsize i = 0; i + 1 < env->GetArrayLength(parts); i += 2) {
    auto role = static_cast<jbyteArray>(env->GetObjectArrayElement(parts, i));
    auto content = static_cast<jbyteArray>(env->GetObjectArrayElement(parts, i + 1));
    messages.emplace_back(text(env, role), text(env, content));
    env->DeleteLocalRef(role);
    env->DeleteLocalRef(content);
  }
  return messages;
}

/// Binds this thread, and the threads that it will start, to cores.
void bind(JNIEnv* env, jintArray cores) {
  const jsize count = env->GetArrayLength(cores);
  if (count == 0) return;
  std::vector<jint> numbers(count);
  env->GetIntArrayRegion(cores, 0, count, numbers.data());
  cpu_set_t set;
  CPU_ZERO(&set);
  for (jint number : numbers) CPU_SET(number, &set);
  if (sched_setaffinity(0, sizeof(set), &set) != 0) {
    throw std::runtime_error(std::string("the cores cannot be used: ") + std::strerror(errno) +
                             "; expected cores that this app may run on. Use power() instead of cores().");
  }
}

/// Text on its way to Java, through a direct buffer: see Utf8Stream.
class Sink {
 public:
  Sink(JNIEnv* env, jobject bytes, jobject stream)
      : env_(env),
        stream_(stream),
        on_token_(env->GetMethodID(env->GetObjectClass(stream), "onToken", "(I)I")),
        buffer_(static_cast<char*>(env->GetDirectBufferAddress(bytes))),
        capacity_(static_cast<size_t>(env->GetDirectBufferCapacity(bytes))) {}

  /// Whether more is wanted.
  bool put(const std::string& piece) {
    size_t sent = 0;
    do {
      const size_t count = std::min(capacity_ - waiting_, piece.size() - sent);
      std::memcpy(buffer_ + waiting_, piece.data() + sent, count);
      sent += count;
      const jint left = env_->CallIntMethod(stream_, on_token_, static_cast<jint>(waiting_ + count));
      if (env_->ExceptionCheck()) throw std::runtime_error("the listener threw");
      if (left < 0) return false;
      waiting_ = static_cast<size_t>(left);
    } while (sent < piece.size());
    return true;
  }

 private:
  JNIEnv* env_;
  jobject stream_;
  jmethodID on_token_;
  char* buffer_;
  size_t capacity_;
  size_t waiting_ = 0;  // bytes of an unfinished character, at the front
};

/// Drops from the cache what ids do not begin with. Returns how many of ids are left to start from: never all of them,
/// for the last one has to run.
size_t keep_prefix(Session& session, const std::vector<int>& ids) {
  Llm& llm = *session.llm;
  auto& cached = session.cached;
  size_t kept = 0;
  if (llm.reuse_kv() && llm.getCurrentHistory() == cached.size()) {
    const size_t most = std::min(cached.size(), ids.size() - 1);
    kept = std::mismatch(ids.begin(), ids.begin() + most, cached.begin()).first - ids.begin();
  }
  if (kept == 0) {
    llm.reset();
  } else if (kept < cached.size()) {
    llm.eraseHistory(kept, 0);
  }
  cached.resize(kept);
  return kept;
}

void check(Session& session) {
  const LlmStatus status = session.llm->getContext()->status;
  if (status == LlmStatus::RUNNING || status == LlmStatus::NORMAL_FINISHED || status == LlmStatus::MAX_TOKENS_FINISHED)
    return;
  session.cached.clear();
  throw std::runtime_error("MNN stopped with status " + std::to_string(static_cast<int>(status)) +
                           "; expected a token. See the log (adb logcat -s MNNJNI); memory may be short.");
}

std::vector<jlong> generate(Session& session, const ChatMessages& messages, jint context_tokens, jint limit,
                            Sink& sink) {
  Llm& llm = *session.llm;
  const std::vector<int> ids = llm.tokenizer_encode(llm.apply_chat_template(messages));
  if (ids.empty()) throw std::runtime_error("an empty prompt; expected at least one token. Write something.");
  const jint room = context_tokens - static_cast<jint>(ids.size());
  if (room < 1) {
    throw std::runtime_error("a chat of " + std::to_string(ids.size()) + " tokens; expected less than " +
                             std::to_string(context_tokens) + ". Begin a new chat.");
  }
  const size_t reused = keep_prefix(session, ids);
  llm.response(std::vector<int>(ids.begin() + reused, ids.end()), nullptr, "", 0);  // 0: prefill only
  check(session);
  session.cached = ids;

  Finish finish = sink.put("") ? kLength : kStopped;
  jlong made = 0;
  while (finish == kLength && made < std::min(limit, room)) {
    llm.generate(1);
    check(session);
    if (llm.getContext()->status == LlmStatus::NORMAL_FINISHED) {  // the stop token: chosen, not run, no text
      finish = kEnd;
      break;
    }
    const int token = llm.getContext()->current_token;
    session.cached.push_back(token);
    ++made;
    if (!sink.put(llm.tokenizer_decode(token))) finish = kStopped;
  }
  return {static_cast<jlong>(ids.size()), static_cast<jlong>(reused), made, finish};
}

}  // namespace

extern "C" JNIEXPORT jlong JNICALL Java_org_deepmnn_MnnInterpreter_open(JNIEnv* env, jclass, jbyteArray config_path,
                                                                        jbyteArray settings, jintArray cores) {
  jlong handle = 0;
  guarded(env, [&] {
    bind(env, cores);
    auto session = std::make_unique<Session>();
    session->llm.reset(Llm::createLLM(text(env, config_path)));
    if (!session->llm || !session->llm->set_config(text(env, settings)) || !session->llm->load()) {
      throw std::runtime_error(
          "MNN cannot open the model; expected a folder for MNN 3.6.1. See the log (adb logcat -s MNNJNI); memory may "
          "be "
          "short.");
    }
    handle = reinterpret_cast<jlong>(session.release());
  });
  return handle;
}

extern "C" JNIEXPORT void JNICALL Java_org_deepmnn_MnnInterpreter_close(JNIEnv*, jclass, jlong handle) {
  delete reinterpret_cast<Session*>(handle);
}

extern "C" JNIEXPORT jlongArray JNICALL Java_org_deepmnn_MnnInterpreter_generate(JNIEnv* env, jclass, jlong handle,
                                                                                 jobjectArray messages,
                                                                                 jint context_tokens, jint limit,
                                                                                 jobject bytes, jobject stream) {
  jlongArray result = nullptr;
  guarded(env, [&] {
    Sink sink(env, bytes, stream);
    const auto counts = generate(*reinterpret_cast<Session*>(handle), chat(env, messages), context_tokens, limit, sink);
    result = env->NewLongArray(static_cast<jsize>(counts.size()));
    if (result) env->SetLongArrayRegion(result, 0, static_cast<jsize>(counts.size()), counts.data());
  });
  return result;
}
