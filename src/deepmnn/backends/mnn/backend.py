"""The MNN backend: an exported folder run by the MNN wheel.

MNN's runtime keeps one history of keys and values, in one sequence, and hides it. So the cache
here holds token ids: a step looks how far the runtime's history is that of its sequence, drops the
rest and runs what is missing. One growing sequence costs nothing extra, and neither do rollback
and the turns of a chat; sequences that take turns are recomputed from where they part.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from deepmnn import _core
from deepmnn.backends.base import (
    F32,
    I32,
    Batch,
    Cache,
    Draw,
    check_batch,
    no_draft,
    sample_in_turn,
)
from deepmnn.backends.mnn.cache import MnnCache
from deepmnn.backends.mnn.options import MnnOptions
from deepmnn.backends.mnn.wheel import captured, runtime
from deepmnn.errors import ArtifactError, RequestError, StorageError, Words, argument
from deepmnn.graph.caches import CacheEntry

MOST_THREADS = 32
"""MNN takes no more."""

CHUNK = 512
"""Tokens of one forward pass at most: it bounds the activations of a recomputed history."""

_FLOAT_ATTENTION = 8
"""MNN's attention_mode: flash attention, keys and values as they are. The int8 modes are wrong for
a history that grows over several steps, the 3 and 4 bit modes on x86 (docs/log.md)."""

_started_in: int | None = None
"""The process in which MNN has started its threads."""


class Folder(Protocol):
    """What `export` wrote; exporters/mnn/folder.py has the meaning of the fields."""

    path: Path
    runtime_config: Path

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""

    @property
    def cache_width(self) -> int:
        """Elements that MNN caches for each token."""


class MnnBackend:
    """A loaded model; see backends/base.py for the protocol.

    Args:
        folder: what `export` wrote.
        threads: worker threads, at most 32; 0: one for each physical core. MNN keeps one pool a
            process: the first model with more than one thread sets the most for those after it.
        options: how MNN computes.

    Raises:
        MissingDependencyError: the MNN wheel is missing or of another version.
        ArtifactError: MNN cannot load the folder; its words are in the message.
        StorageError: options.mmap cannot be written to.
    """

    max_sequences: int | None = 1
    draft_state: str | None = None

    def __init__(self, folder: Folder, threads: int = 0, options: MnnOptions | None = None) -> None:
        options = options or MnnOptions()
        self.vocab_size = folder.vocab_size
        self.outputs: tuple[str, ...] = ("logits",)
        self.caches = {"keys and values": CacheEntry(folder.cache_width)}
        self.threads = min(threads or _core.available_cores(), MOST_THREADS)
        check_threads(self.threads)
        self._history: I32 = np.empty(0, np.int32)
        self._every = self._copied = False
        self._llm = _load(folder, self._settings(options, folder.runtime_config.name))

    def new_cache(
        self, blocks: int, block_size: int, dtype: str = "f32", recent_blocks: int | None = None
    ) -> MnnCache:
        """An empty cache of token ids; MNN's own grows with the longest sequence.

        Raises RequestError for impossible sizes, and for a dtype other than "f32".
        """
        check_kv_dtype(dtype)
        return MnnCache(blocks, block_size)

    def step(self, cache: Cache, batch: Batch) -> F32:
        """Runs one step, one sequence after another; logits [rows, vocab_size].

        Raises RequestError when the batch does not fit the model or the cache, and when MNN gives
        up, which it does for want of memory; the next step starts afresh. And in a forked child,
        which has none of MNN's threads.
        """
        check_threads(self.threads)
        if not isinstance(cache, MnnCache):
            raise RequestError(f"the cache is a {type(cache).__name__}", "one made by new_cache")
        check_batch(batch, cache, self.vocab_size)
        logits = np.empty((len(batch.logit_rows), self.vocab_size), np.float32)
        for sequence, length in enumerate(batch.context_lengths):
            start, stop = batch.sequence_starts[sequence : sequence + 2]
            ids = cache.append(batch.block_tables[sequence], int(length), batch.ids[start:stop])
            own = (batch.logit_rows >= start) & (batch.logit_rows < stop)
            logits[own] = self._extend(ids, int(stop - start), batch.logit_rows[own] - start)
        return logits

    def run(self, cache: Cache, batch: Batch) -> dict[str, F32]:
        """Like `step`, but returns every output by name: MNN has the logits."""
        return {"logits": self.step(cache, batch)}

    def draft(self, cache: Cache, batch: Batch, state: F32) -> tuple[F32, F32]:
        """A folder for MNN has no draft part. Raises RequestError."""
        raise no_draft()

    def sample(self, draws: list[Draw]) -> list[int]:
        """The token ids that are drawn. Raises RequestError when logits are no numbers."""
        return sample_in_turn(draws)

    def _extend(self, ids: I32, new: int, rows: I32) -> F32:
        """Makes `ids` the history; logits [rows, vocab_size] of rows of its last `new` tokens."""
        kept = _common_prefix(self._history, ids[: len(ids) - new])
        wanted, logits = rows + len(ids) - new, np.empty((len(rows), self.vocab_size), np.float32)
        self._history = self._history[:0]  # a failure leaves nothing to build on
        self._rewind(kept)
        for start in range(kept, len(ids), CHUNK):
            piece = ids[start : start + CHUNK]
            here = (wanted >= start) & (wanted < start + len(piece))
            logits[here] = self._forward(piece, wanted[here] - start)
        self._history = ids
        return logits

    def _forward(self, ids: I32, rows: I32) -> F32:
        """Runs ids after the runtime's history; their logits [rows, vocab_size]."""
        llm = self._llm
        found = self._run(ids, every=bool((rows < len(ids) - 1).any()))
        try:
            # To ask a failed result for anything would crash.
            context = llm.get_context()
            if context["status"] != 0:
                raise RequestError(
                    f"MNN could not run {len(ids)} tokens after {context['all_seq_len']}",
                    "memory for them",
                    Words(
                        "Shorten the prompt, or load the model with a smaller max_batch_tokens.",
                        "Shorten the prompt, or set a smaller --max-batch-tokens.",
                    ),
                )
            values = found.read()
            if values.size not in (self.vocab_size, len(ids) * self.vocab_size):
                raise ArtifactError(
                    f"MNN gave {values.size} logits for {len(ids)} tokens",
                    f"{self.vocab_size} for each",
                    "Export the model again.",
                )
            view = values.reshape(-1, self.vocab_size)  # MNN's memory
            logits: F32 = view[rows if len(view) == len(ids) else np.zeros_like(rows)]
            return logits  # a copy
        finally:
            del found  # it must not outlive the runtime, as in a traceback it would

    def _run(self, ids: I32, every: bool) -> Any:
        """MNN's forward pass, with the logits of every token or of the last one."""
        llm = self._llm
        if every != self._every:
            llm.set_config(json.dumps({"all_logits": every}))
            self._every = every
        # After the first token MNN takes all for decoding, and keeps a copy of the network for
        # each number of tokens it has decoded at once: this keeps it at "one" and "many".
        llm.set_context({"gen_seq_len": int(len(ids) == 1)})
        if not every or self._copied:
            return llm.forward(ids.tolist())
        self._copied = True
        with captured():  # another copy, and it says so
            return llm.forward(ids.tolist())

    def _rewind(self, length: int) -> None:
        """Cuts the runtime's history, whatever became of the last step."""
        self._llm.set_context({"status": 0})
        if length < self._llm.get_current_history():
            self._llm.erase_history(length, 0)

    def _settings(self, options: MnnOptions, config: str) -> dict[str, Any]:
        """MNN's configuration, over that of the folder."""
        settings: dict[str, Any] = {
            "backend_type": "cpu",
            "thread_num": self.threads,
            "memory": options.memory,
            "precision": options.precision,
            "attention_mode": _FLOAT_ATTENTION,
            "all_logits": False,
            "use_mmap": options.mmap is not None,
            "use_cached_mmap": False,
            # deepmnn writes the prompts: MNN has no need to parse a template, or a context.json
            # that somebody put beside it.
            "use_template": False,
            "jinja": "",
            "context_file": f"{config}/none",
        }
        if options.mmap is not None:
            settings["tmp_path"] = self._weights_directory(options.mmap)
        return settings

    def _weights_directory(self, parent: str | Path) -> str:
        try:
            made = tempfile.mkdtemp(prefix="deepmnn-mnn-", dir=parent)
        except OSError as error:
            raise StorageError(f"{parent}: {error.strerror}", "a writable directory") from error
        weakref.finalize(self, _remove, made, os.getpid())
        return made


def check_threads(threads: int) -> None:
    """Notes that MNN starts threads here, for the first model that has several.

    Raises RequestError in a child that was forked after that: MNN would wait for them for ever.
    """
    global _started_in
    if threads > 1:
        _started_in = _started_in or os.getpid()
        if _started_in != os.getpid():
            raise RequestError(
                "this process was forked from one in which MNN had started its threads",
                "threads of this process",
                "Load the model with threads=1 here, or in a process of its own.",
            )


def check_kv_dtype(dtype: str) -> None:
    """Raises RequestError unless MNN can store keys and values so."""
    if dtype != "f32":
        raise RequestError(
            argument("kv_dtype", f" is {dtype!r}"),
            "'f32': MNN stores keys and values as it computes them",
        )


def _load(folder: Folder, settings: dict[str, Any]) -> Any:
    """MNN's runtime with the model."""
    module = runtime()
    try:
        with captured() as printed:
            llm = module.llm.create(str(folder.runtime_config), False)
            llm.set_config(json.dumps(settings))
            loaded = llm.load()
    except TypeError:  # it takes no other path
        raise ArtifactError(f"{str(folder.path)!r} is not UTF-8", "a plain path") from None
    if not loaded:
        raise ArtifactError(
            f"MNN cannot load {folder.path}: {' '.join(printed().split())}",
            "a folder that this version of deepmnn exported",
            "Export the model again.",
        )
    return llm


def _remove(directory: str, process: int) -> None:
    """A forked child that ends leaves it to its parent."""
    if process == os.getpid():
        shutil.rmtree(directory, ignore_errors=True)


def _common_prefix(a: I32, b: I32) -> int:
    """How many leading elements are equal."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length
