/* llama.cpp and ik_llama.cpp: the logits of every token, and what a GGUF file holds. */
#include <stdlib.h>
#include <string.h>

#include "llama.h"
#if __has_include("gguf.h")
#include "gguf.h"
#else
#define IK_LLAMA 1 /* its GGUF functions are in ggml.h */
#endif

static void silent(enum ggml_log_level level, const char* text, void* data) { (void)level, (void)text, (void)data; }

struct llama_model* judged_load(const char* path) {
  llama_log_set(silent, NULL);
  llama_backend_init();
  struct llama_model_params params = llama_model_default_params();
#ifdef IK_LLAMA
  params.mla = 3;
  params.flash_attn = true;
#endif
  return llama_model_load_from_file(path, params);
}

int judged_vocab(const struct llama_model* model) { return llama_vocab_n_tokens(llama_model_get_vocab(model)); }

/* Reads the tokens in a context of their own; out: [count, vocab]. Returns 0, or an error's number. */
int judged_logits(struct llama_model* model, int threads, const int* tokens, int count, int vocab, float* out) {
  struct llama_context_params params = llama_context_default_params();
  params.n_ctx = params.n_batch = (uint32_t)(count + 255) / 256 * 256;
  params.n_threads = params.n_threads_batch = threads;
#ifdef IK_LLAMA
  params.mla_attn = 3;
  params.flash_attn = true;
#endif
  struct llama_context* context = llama_init_from_model(model, params);
  if (!context) return -1;
  struct llama_batch batch = llama_batch_init(count, 0, 1);
  batch.n_tokens = count;
  for (int i = 0; i < count; i++) {
    batch.token[i] = tokens[i];
    batch.pos[i] = i;
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = 0;
    batch.logits[i] = 1;
  }
  int code = llama_decode(context, batch);
  if (!code) memcpy(out, llama_get_logits(context), sizeof(float) * (size_t)count * (size_t)vocab);
  llama_batch_free(batch);
  llama_free(context);
  return code;
}

/* Calls `tell` with each tensor's name, type and bytes. Returns the number of tensors, or -1. */
int judged_tensors(const char* path, void (*tell)(const char* name, const char* type, long long nbytes)) {
  struct ggml_context* tensors = NULL;
  struct gguf_init_params params = {.no_alloc = true, .ctx = &tensors};
  struct gguf_context* file = gguf_init_from_file(path, params);
  if (!file) return -1;
  int count = 0;
  for (struct ggml_tensor* t = ggml_get_first_tensor(tensors); t; t = ggml_get_next_tensor(tensors, t), count++)
    tell(t->name, ggml_type_name(t->type), (long long)ggml_nbytes(t));
  ggml_free(tensors);
  gguf_free(file);
  return count;
}
