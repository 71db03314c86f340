/* llama.cpp or ik_llama.cpp: one prompt and some steps; a line of JSON when a phase ends, and after each step.

   gguf_run MODEL IDS TOKENS STEPS THREADS OPTION...

   IDS is a file of token ids: TOKENS of the prompt, then those to run in the steps; greedy ones follow. Options: map
   (else the file is read), and for ik_llama.cpp defer and prefetch, its own for mapped experts. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "llama.h"
#if !__has_include("gguf.h")
#define IK_LLAMA 1 /* its GGUF functions are in ggml.h */
#endif

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int has(char** words, int count, const char* word) {
  for (int i = 0; i < count; i++)
    if (!strcmp(words[i], word)) return 1;
  return 0;
}

static void silent(enum ggml_log_level level, const char* text, void* data) {
  (void)data;
  if (level >= GGML_LOG_LEVEL_WARN) fputs(text, stderr);
}

static void fail(const char* what) {
  fprintf(stderr, "%s\n", what);
  exit(1);
}

static struct llama_model* load(const char* path, char** options, int count) {
  struct llama_model_params params = llama_model_default_params();
  int map = has(options, count, "map");
#ifdef IK_LLAMA
  params.use_mmap = map;
  params.repack_tensors = false; /* it would read the file instead of mapping it */
#ifdef PREFETCHES
  params.defer_experts = has(options, count, "defer");
#endif
  params.mla = 3;
  params.flash_attn = true;
#else
  params.load_mode = map ? LLAMA_LOAD_MODE_MMAP : LLAMA_LOAD_MODE_NONE;
  params.use_extra_bufts = false; /* repacked weights are copies beside the mapped ones */
#endif
  return llama_model_load_from_file(path, params);
}

static struct llama_context* context_of(struct llama_model* model, int tokens, int threads, char** options, int count) {
#ifndef PREFETCHES
  if (has(options, count, "prefetch")) fail("this version prefetches no experts");
#endif
  struct llama_context_params params = llama_context_default_params();
  params.n_ctx = (uint32_t)(tokens + 255) / 256 * 256;
  params.n_threads = params.n_threads_batch = threads;
#ifdef IK_LLAMA
  params.flash_attn = true;
  params.mla_attn = 3;
  params.fused_moe_up_gate = true;
#ifdef PREFETCHES
  params.prefetch_experts = has(options, count, "prefetch");
#endif
#endif
  return llama_init_from_model(model, params);
}

static int best(const float* logits, int vocab) {
  int found = 0;
  for (int i = 1; i < vocab; i++)
    if (logits[i] > logits[found]) found = i;
  return found;
}

/* The most likely token after `count` more, of which only the last gives logits. */
static int run(struct llama_context* context, struct llama_batch* batch, const int* ids, int count, int position,
               int vocab) {
  batch->n_tokens = count;
  for (int i = 0; i < count; i++) {
    batch->token[i] = ids[i];
    batch->pos[i] = position + i;
    batch->n_seq_id[i] = 1;
    batch->seq_id[i][0] = 0;
    batch->logits[i] = i == count - 1;
  }
  if (llama_decode(context, *batch)) fail("llama_decode failed");
  llama_synchronize(context);
  return best(llama_get_logits_ith(context, count - 1), vocab);
}

int main(int argc, char** argv) {
  if (argc < 6) fail("MODEL IDS TOKENS STEPS THREADS OPTION...");
  int count = atoi(argv[3]), steps = atoi(argv[4]), threads = atoi(argv[5]), known = 0, capacity = 1 << 16;
  int* ids = malloc(sizeof(int) * (size_t)capacity);
  FILE* file = fopen(argv[2], "r");
  if (!file || !ids) fail("the ids cannot be read");
  while (known < capacity && fscanf(file, "%d", &ids[known]) == 1) known++;
  fclose(file);
  if (count < 1 || count > known) fail("there are fewer ids than tokens");

  llama_log_set(silent, NULL);
  llama_backend_init();
  double began = now();
  struct llama_model* model = load(argv[1], argv + 6, argc - 6);
  if (!model) fail("the model cannot be loaded");
  int vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
  struct llama_context* context = context_of(model, count + steps, threads, argv + 6, argc - 6);
  if (!context) fail("no context can be made");
  struct llama_batch batch = llama_batch_init(count, 0, 1);
  printf("{\"phase\": \"load\", \"seconds\": %.6f}\n", now() - began);
  fflush(stdout);

  began = now();
  int token = run(context, &batch, ids, count, 0, vocab);
  printf("{\"phase\": \"prefill\", \"seconds\": %.6f}\n", now() - began);
  fflush(stdout);

  began = now();
  for (int i = 0; i < steps; i++) {
    int given = count + i < known ? ids[count + i] : token;
    token = run(context, &batch, &given, 1, count + i, vocab);
    printf("{\"phase\": \"decode\", \"seconds\": %.6f, \"id\": %d}\n", now() - began, given);
    fflush(stdout);
  }
  _Exit(0);
}
