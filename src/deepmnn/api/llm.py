"""A loaded model: logits, sessions, generation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np

from deepmnn.api.options import DEFAULT_CACHE_BYTES, KV_DTYPES, LoadOptions
from deepmnn.backends.base import F32, Backend
from deepmnn.engine.completion import Chunk, Completion
from deepmnn.engine.driver import Driver, making
from deepmnn.engine.engine import Engine
from deepmnn.engine.request import Event, Request, result_of
from deepmnn.engine.session import Session
from deepmnn.errors import RequestError
from deepmnn.text.answer_end import end_ids
from deepmnn.text.chat_template import Message
from deepmnn.text.generation_config import GenerationConfig, read_context_length
from deepmnn.text.sampling_params import SamplingParams
from deepmnn.text.stream import TextStream
from deepmnn.text.text_files import TextFiles
from deepmnn.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from deepmnn.artifact.reader import Artifact
    from deepmnn.exporters.mnn.folder import MnnFolder

Prompt = str | Sequence[Message] | Sequence[int]
"""Plain text, a conversation (rendered with the chat template), or token ids."""

_PROMPTS = "text, a list of messages, a list of token ids, or a list of those"


class LLM:
    """A model that answers. Made by `load`; any number of threads may ask it.

    Attributes:
        artifact: the files: `.config`, `.manifest`.
        path: the directory of the tokenizer.
        text_files: the tokenizer's and other small files.
        backend: what runs the steps.
        options: what `load` was given.
        tokenizer: raises TokenizerError at first use when the model has none.
    """

    def __init__(
        self,
        artifact: Artifact | MnnFolder,
        text_files: TextFiles,
        backend: Backend,
        options: LoadOptions,
    ) -> None:
        self.artifact = artifact
        self.path: Path = text_files.directory
        self.text_files = text_files
        self.backend = backend
        self.options = options
        self.config: dict[str, Any] = dict(artifact.config)
        self.context_length = read_context_length(self.config)
        self.generation_config = GenerationConfig.read(text_files, self.config)
        self._driver: Driver | None = None

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self.backend.vocab_size

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes one token takes in the KV cache; int8: where widths are whole groups of 64."""
        return math.ceil(self.backend.cache_width * KV_DTYPES[self.options.kv_dtype])

    @property
    def has_tokenizer(self) -> bool:
        """Whether the model came with a tokenizer; without one it works on token ids only."""
        return "tokenizer.json" in self.text_files

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises TokenizerError when there is none."""
        return Tokenizer(self.text_files)

    @cached_property
    def _end_ids(self) -> frozenset[int]:
        """The tokens that end an answer, by the tokenizer's files, too."""
        return end_ids(self.tokenizer, self.generation_config)

    @property
    def driver(self) -> Driver:
        """Runs the requests: its thread owns the engine. The KV cache is allocated at first use."""
        if self._driver is None:
            with making:
                if self._driver is None:
                    self._driver = Driver(self._new_engine())
        return self._driver

    @property
    def engine(self) -> Engine:
        """The scheduler and the KV cache, to look at: what this thread has closed is gone by then.

        Only the driver's thread may change it (`driver.run`).
        """
        return self.driver.run(lambda engine: engine)

    def _new_engine(self) -> Engine:
        affordable = DEFAULT_CACHE_BYTES // max(1, self.kv_bytes_per_token)
        return Engine(
            self.backend,
            self.options.cache_tokens or max(1, min(4 * self.context_length, affordable)),
            self.context_length,
            kv_dtype=self.options.kv_dtype,
            eos_ids=self.generation_config.eos_ids,
            max_batch_tokens=self.options.max_batch_tokens,
            max_sequences=self.options.max_sequences,
        )

    def session(self, *, share_prefix: bool = False) -> Session:
        """A sequence to drive by hand: prefill, decode, rollback."""
        return Session(self.driver, share_prefix=share_prefix)

    def logits(self, ids: Sequence[int]) -> F32:
        """Logits [len(ids), vocab_size] after each token of a fresh context.

        Raises RequestError or ContextLengthError.
        """
        with self.session() as session:
            return session.logits(ids)

    @overload
    def generate(  # type: ignore[overload-overlap]  # a str is a Sequence[str] too
        self, prompts: Prompt, params: SamplingParams | None = None
    ) -> Completion: ...

    @overload
    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams | None = None
    ) -> list[Completion]: ...

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | None = None
    ) -> Completion | list[Completion]:
        """Answers one prompt (returns a Completion) or a list of them (returns a list).

        A prompt is text, a conversation (a list of {"role", "content"}) or a list of token ids; a
        list of those runs as one batch. params defaults to what generation_config.json recommends.

        Raises RequestError, ContextLengthError or TokenizerError before any work is done.
        """
        single, batch = _as_batch(prompts)
        answers = [Completion() for _ in batch]
        for chunk in self._stream(batch, params, whole=True):
            answers[chunk.index].add(chunk)
        return answers[0] if single else answers

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        whole: bool = False,
    ) -> Iterator[Chunk]:
        """As generate, but yields a Chunk whenever an answer grows.

        The call itself checks the requests; the work starts with the first chunk, and goes on
        while chunks are read. Closing the iterator early cancels it before the next step.

        whole: one Chunk for each answer, when it is complete.
        """
        return self._stream(_as_batch(prompts)[1], params, whole)

    def encode(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt."""
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        if len(prompt) > 0 and isinstance(prompt[0], Mapping):
            return self.tokenizer.encode_chat(cast(Sequence[Message], prompt))
        return list(cast(Sequence[int], prompt))

    def _stream(
        self, prompts: Sequence[Prompt], params: SamplingParams | None, whole: bool
    ) -> Iterator[Chunk]:
        params = self.generation_config.params if params is None else params
        if not isinstance(params, SamplingParams):
            raise RequestError(f"the parameters are {params!r:.80}", "deepmnn.SamplingParams")
        asked = []
        for prompt in prompts:
            ids = self.encode(prompt)
            self.driver.engine.check(ids, params)
            asked.append((ids, self._output(ids, params)))
        return self._run(asked, params, whole)

    def _run(
        self, asked: list[tuple[list[int], TextStream | None]], params: SamplingParams, whole: bool
    ) -> Iterator[Chunk]:
        driver = self.driver
        events: SimpleQueue[Event] = SimpleQueue()
        requests = [
            Request(driver.engine.sequence(ids, params, output), events.put, index, whole=whole)
            for index, (ids, output) in enumerate(asked)
        ]
        unfinished = len(requests)
        try:
            driver.submit(requests)
            while unfinished:
                chunk = result_of(events.get())
                unfinished -= chunk.finish_reason is not None
                yield chunk
        finally:
            for request in requests:
                driver.cancel(request)

    def _output(self, ids: list[int], params: SamplingParams) -> TextStream | None:
        """The text side of a request; None without a tokenizer, which only token ids can do."""
        if not self.has_tokenizer and not params.stop:
            return None
        tokenizer = self.tokenizer
        tail = tokenizer.decode(ids[-16:], skip_special_tokens=False).rstrip()
        stop = cast(tuple[str, ...], params.stop)
        return TextStream(tokenizer, stop, tail.endswith("<think>"), self._end_ids)


def _as_batch(prompts: Prompt | Sequence[Prompt]) -> tuple[bool, list[Prompt]]:
    """(whether it was a single prompt, the prompts as a list)."""
    if isinstance(prompts, str):
        return True, [prompts]
    try:
        # Their items are strings and numbers: they would pass for prompts.
        items = None if isinstance(prompts, Mapping | bytes | bytearray) else list(prompts)
    except TypeError:
        items = None
    if items is None:
        raise RequestError(f"the prompt is {prompts!r:.80}", _PROMPTS)
    if not items:
        raise RequestError("the prompt is empty", _PROMPTS)
    if all(isinstance(item, Mapping) for item in items):
        return True, [cast(Prompt, items)]
    if all(isinstance(item, int | np.integer) for item in items):
        return True, [cast(Prompt, items)]
    if any(
        isinstance(item, Mapping | int | np.integer) or not hasattr(item, "__len__")
        for item in items
    ):
        raise RequestError(f"the prompt is {prompts!r:.80}", _PROMPTS)
    return False, cast(list[Prompt], items)
