/* ik_llama.cpp behind four functions: its structs change too often to be declared in Python. */
#include <stdlib.h>

#include "llama.h"

typedef struct {
  struct llama_model* model;
  struct llama_context* context;
  struct llama_batch batch;
  int threads;
} peer;

static void silent(enum ggml_log_level level, const char* text, void* data) { (void)level, (void)text, (void)data; }

void* peer_load(const char* path, int threads, int piece) {
  llama_log_set(silent, NULL);
  llama_backend_init();
  struct llama_model_params params = llama_model_default_params();
  params.repack_tensors = true; /* -rtr, for which it reads the file instead of mapping it */
  params.use_mmap = false;
  params.mla = 3;
  params.flash_attn = true;
  struct llama_model* model = llama_model_load_from_file(path, params);
  peer* self = model ? calloc(1, sizeof(peer)) : NULL;
  if (!self) return NULL;
  self->model = model;
  self->threads = threads;
  self->batch = llama_batch_init(piece, 0, 1);
  return self;
}

int peer_reserve(peer* self, int sequences, int tokens) {
  if (self->context) llama_free(self->context);
  struct llama_context_params params = llama_context_default_params();
  params.n_ctx = (uint32_t)tokens;
  params.n_seq_max = (uint32_t)sequences;
  params.n_threads = params.n_threads_batch = (uint32_t)self->threads;
  params.flash_attn = true;
  params.mla_attn = 3;
  params.fused_moe_up_gate = true;
  self->context = llama_init_from_model(self->model, params);
  return self->context ? 0 : -1;
}

void peer_clear(peer* self) { llama_kv_cache_clear(self->context); }

int peer_decode(peer* self, int count, const int* tokens, const int* positions, const int* sequences,
                const char* last) {
  self->batch.n_tokens = count;
  for (int i = 0; i < count; i++) {
    self->batch.token[i] = tokens[i];
    self->batch.pos[i] = positions[i];
    self->batch.n_seq_id[i] = 1;
    self->batch.seq_id[i][0] = sequences[i];
    self->batch.logits[i] = last[i];
  }
  int code = llama_decode(self->context, self->batch);
  llama_synchronize(self->context);
  return code;
}
