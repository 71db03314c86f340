"""A loaded model: logits, sessions, generation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np

from deepmnn.api.options import DEFAULT_CACHE_BYTES, KV_DTYPES, LoadOptions
from deepmnn.backends.base import F32, Backend
from deepmnn.engine.completion import Chunk, Completion
from deepmnn.engine.engine import Engine
from deepmnn.engine.sequence import Sequence as EngineSequence
from deepmnn.engine.session import Session
from deepmnn.errors import RequestError
from deepmnn.text.chat_template import Message
from deepmnn.text.generation_config import GenerationConfig, read_context_length
from deepmnn.text.sampling_params import SamplingParams
from deepmnn.text.stream import TextStream
from deepmnn.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from deepmnn.artifact.reader import Artifact
    from deepmnn.exporters.mnn.folder import MnnFolder

Prompt = str | Sequence[Message] | Sequence[int]
"""Plain text, a conversation (rendered with the chat template), or token ids."""

_PROMPTS = "text, a list of messages, a list of token ids, or a list of those"


class LLM:
    """A model that answers. Made by `load`; not thread-safe.

    Attributes:
        artifact: the files: `.config`, `.manifest`.
        path: the directory of the tokenizer.
        backend: what runs the steps.
        options: how it was loaded.
        engine: the scheduler and the KV cache; allocated at first use.
        tokenizer: raises TokenizerError at first use when the model has none.
    """

    def __init__(
        self,
        artifact: Artifact | MnnFolder,
        path: Path,
        backend: Backend,
        options: LoadOptions,
    ) -> None:
        self.artifact = artifact
        self.path = path
        self.backend = backend
        self.options = options
        self.config: dict[str, Any] = dict(artifact.config)
        self.context_length = read_context_length(self.config)
        self.generation_config = GenerationConfig.read(path, self.config)

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
        return (self.path / "tokenizer.json").is_file()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises TokenizerError when there is none."""
        return Tokenizer(self.path)

    @cached_property
    def engine(self) -> Engine:
        """Runs the requests."""
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
        return Session(self.engine, share_prefix=share_prefix)

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
        for chunk in self._stream(batch, params):
            answers[chunk.index].add(chunk)
        return answers[0] if single else answers

    def stream(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | None = None
    ) -> Iterator[Chunk]:
        """As generate, but yields a Chunk whenever an answer grows.

        The call itself checks the requests; the work starts with the first chunk, and closing the
        iterator early cancels it.
        """
        return self._stream(_as_batch(prompts)[1], params)

    def encode(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt."""
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        if len(prompt) > 0 and isinstance(prompt[0], Mapping):
            return self.tokenizer.encode_chat(cast(Sequence[Message], prompt))
        return list(cast(Sequence[int], prompt))

    def _stream(self, prompts: Sequence[Prompt], params: SamplingParams | None) -> Iterator[Chunk]:
        params = self.generation_config.params if params is None else params
        if not isinstance(params, SamplingParams):
            raise RequestError(f"the parameters are {params!r:.80}", "deepmnn.SamplingParams")
        requests = []
        for prompt in prompts:
            ids = self.encode(prompt)
            self.engine.check(ids, params)
            requests.append((ids, self._output(ids, params)))
        return self._run(requests, params)

    def _run(
        self, requests: list[tuple[list[int], TextStream | None]], params: SamplingParams
    ) -> Iterator[Chunk]:
        sequences = [self.engine.submit(ids, params, output) for ids, output in requests]
        reported = [0] * len(sequences)
        unfinished = set(range(len(sequences)))
        try:
            while unfinished:
                if not any(_has_news(sequences[i], reported[i]) for i in unfinished):
                    self.engine.step()
                for index in sorted(unfinished):
                    if _has_news(sequences[index], reported[index]):
                        chunk = _report(sequences[index], index, reported[index])
                        reported[index] = chunk.completion_tokens
                        if chunk.finish_reason:
                            unfinished.discard(index)
                        yield chunk
        finally:
            for sequence in sequences:
                self.engine.cancel(sequence)

    def _output(self, ids: list[int], params: SamplingParams) -> TextStream | None:
        """The text side of a request; None without a tokenizer, which only token ids can do."""
        if not self.has_tokenizer and not params.stop:
            return None
        tokenizer = self.tokenizer
        tail = tokenizer.decode(ids[-16:], skip_special_tokens=False).rstrip()
        return TextStream(tokenizer, cast(tuple[str, ...], params.stop), tail.endswith("<think>"))


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


def _has_news(sequence: EngineSequence, reported: int) -> bool:
    return sequence.completion_tokens > reported or sequence.finish_reason is not None


def _report(sequence: EngineSequence, index: int, reported: int) -> Chunk:
    """What the sequence has got since `reported` tokens."""
    first, last = sequence.first_token, sequence.last_token
    reasoning, text = sequence.output.take() if sequence.output else ("", "")
    return Chunk(
        index=index,
        text=text,
        reasoning=reasoning,
        ids=sequence.ids[sequence.prompt_tokens + reported :],
        finish_reason=sequence.finish_reason,
        prompt_tokens=sequence.prompt_tokens,
        cached_tokens=sequence.cached_tokens,
        completion_tokens=sequence.completion_tokens,
        prefill_seconds=first - sequence.submitted if first else 0.0,
        decode_seconds=last - first if first and last else 0.0,
    )
