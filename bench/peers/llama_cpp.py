"""llama.cpp, by the low-level functions of llama-cpp-python."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.peers.engine import Config

TITLE, BUILDER = "llama.cpp", "gguf_file"
SETTINGS = "Q4_0, lm_head too, repacked at load; flash attention auto, KV cache f16, its defaults"

PIECE = 2048
"""Most tokens of one call: the engine's default n_batch."""


def version(source: Path | None) -> str | None:
    try:
        import gguf  # noqa: F401  # writes the model
        import llama_cpp
    except ImportError:
        return None
    return f"llama-cpp-python {llama_cpp.__version__}"


def exceeds(isa: str, source: Path | None) -> str:
    import llama_cpp

    return beyond(llama_cpp.llama_print_system_info())


def beyond(info: bytes) -> str:
    """Why a build is not limited to AVX2, from the library's system info; "" if it is."""
    found = re.findall(r"(AVX512\w*|AVX_VNNI|AMX\w*) = 1", info.decode())
    return f"it is compiled with {', '.join(found)}" if found else ""


def refuses(config: Config) -> str:
    return ""


def load(model: Path, threads: int, source: Path | None) -> LlamaSession:
    return LlamaSession(model, threads)


class Pieces:
    """Prompts and steps of several sequences as batches: token, position, sequence, last."""

    def __init__(self) -> None:
        self._lengths: list[int] = []

    def start(self, prompts: Sequence[Sequence[int]]) -> Iterator[list[tuple[int, int, int, bool]]]:
        """The prompts in pieces of at most PIECE tokens, one sequence after another."""
        self._lengths = [len(ids) for ids in prompts]
        rows = [
            (token, position, sequence, position == len(ids) - 1)
            for sequence, ids in enumerate(prompts)
            for position, token in enumerate(ids)
        ]
        for begin in range(0, len(rows), PIECE):
            yield rows[begin : begin + PIECE]

    def step(self, tokens: Sequence[int]) -> list[tuple[int, int, int, bool]]:
        """The next token of every sequence."""
        rows = [
            (token, self._lengths[sequence], sequence, True)
            for sequence, token in enumerate(tokens)
        ]
        self._lengths = [length + 1 for length in self._lengths]
        return rows


class LlamaSession:
    """One context, made anew for every number of sequences."""

    most = None

    def __init__(self, model: Path, threads: int) -> None:
        import llama_cpp

        self._lib: Any = llama_cpp
        self._silent = llama_cpp.llama_log_callback(lambda *_: None)  # kept: C holds a pointer
        llama_cpp.llama_log_set(self._silent, None)
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        self._model = self._lib.llama_model_load_from_file(str(model).encode(), params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {model}")
        self._threads, self._context, self._pieces = threads, None, Pieces()
        self._batch = self._lib.llama_batch_init(PIECE, 0, 1)

    def reserve(self, batch: int, tokens: int) -> None:
        if self._context is not None:
            self._lib.llama_free(self._context)
        params = self._lib.llama_context_default_params()
        params.n_ctx = batch * -(-tokens // 256) * 256
        params.n_seq_max = batch
        params.n_threads = params.n_threads_batch = self._threads
        self._context = self._lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp makes no context of {params.n_ctx} tokens")

    def start(self, prompts: Sequence[Sequence[int]]) -> None:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), False)
        for rows in self._pieces.start(prompts):
            self._decode(rows)

    def step(self, tokens: Sequence[int]) -> None:
        self._decode(self._pieces.step(tokens))

    def _decode(self, rows: Sequence[tuple[int, int, int, bool]]) -> None:
        batch = self._batch
        batch.n_tokens = len(rows)
        for index, (token, position, sequence, last) in enumerate(rows):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
            batch.logits[index] = last
        if code := self._lib.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode gives {code} for {len(rows)} tokens")
        self._lib.llama_synchronize(self._context)
