"""A loaded model: logits, sessions, generation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, cast, overload

from deepmnn.api.options import DEFAULT_CACHE_BYTES, KV_DTYPES, LoadOptions
from deepmnn.api.prompts import Prompt, read_prompts
from deepmnn.backends.base import F32, Backend
from deepmnn.engine.completion import Chunk, Completion
from deepmnn.engine.driver import Driver, making
from deepmnn.engine.engine import Engine
from deepmnn.engine.request import Event, Request, result_of
from deepmnn.engine.sequence import Sequence as Answer
from deepmnn.engine.session import Session
from deepmnn.errors import RequestError, shown
from deepmnn.models import build, read_config
from deepmnn.text.answer_end import end_ids
from deepmnn.text.chat_template import Message
from deepmnn.text.constraint import Constraint, Grammars, json_answer
from deepmnn.text.generation_config import GenerationConfig
from deepmnn.text.sampling_params import SamplingParams
from deepmnn.text.stream import TextStream
from deepmnn.text.text_files import TextFiles
from deepmnn.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from deepmnn.artifact.reader import Artifact
    from deepmnn.exporters.mnn.folder import MnnFolder

Params = SamplingParams | Sequence[SamplingParams] | None
"""For all prompts, or one for each; None is what generation_config.json recommends."""

Asked = tuple[list[int], SamplingParams]
"""A prompt, checked, and what is wanted of it."""


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
        self.context_length = read_config(self.config).context_length
        self.generation_config = GenerationConfig.read(text_files, self.config)
        self._driver: Driver | None = None
        self._tokenizer: Tokenizer | None = None
        self._ends: frozenset[int] | None = None
        self._made_grammars: Grammars | None = None
        self._parameters: int | None = None

    def __repr__(self) -> str:
        """The model and what runs it, on one line."""
        manifest, core = self.artifact.manifest, getattr(self.backend, "model", None)
        backend = type(self.backend).__name__.removesuffix("Backend").lower()
        facts = [
            f"{self.artifact.path.name!r}",
            f"model_type={manifest['model_type']!r}",
            f"parameters={_count(self.parameters)}",
            f"recipe={manifest['quant']!r}",
            f"backend={backend!r}",
            *([] if core is None else [f"isa={core.isa!r}", f"threads={core.threads}"]),
            f"context_length={self.context_length}",
        ]
        return f"LLM({', '.join(facts)})"

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self.backend.vocab_size

    @property
    def parameters(self) -> int:
        """How many numbers the weights are, without those of multi-token prediction."""
        if self._parameters is None:
            graph = build(self.config)
            run = (weight for name, weight in graph.weights.items() if name not in graph.kept)
            self._parameters = sum(math.prod(weight.shape) for weight in run)
        return self._parameters

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes one token takes in the KV cache; int8: where widths are whole groups of 64."""
        return math.ceil(self.backend.cache_width * KV_DTYPES[self.options.kv_dtype])

    @property
    def has_tokenizer(self) -> bool:
        """Whether the model came with a tokenizer; without one it works on token ids only."""
        return "tokenizer.json" in self.text_files

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises TokenizerError when there is none."""
        if self._tokenizer is None:
            with making:  # which a process waits for that forks meanwhile
                self._tokenizer = self._tokenizer or Tokenizer(self.text_files)
        return self._tokenizer

    @property
    def _end_ids(self) -> frozenset[int]:
        """The tokens that end an answer, by the tokenizer's files, too."""
        if self._ends is None:
            with making:
                self._ends = self._ends or end_ids(self.tokenizer, self.generation_config)
        return self._ends

    @property
    def _grammars(self) -> Grammars:
        """What answers may be held to. Raises MissingDependencyError without llguidance."""
        if self._made_grammars is None:
            with making:
                self._made_grammars = self._made_grammars or Grammars(
                    self.tokenizer, self.vocab_size, self._end_ids
                )
        return self._made_grammars

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
        self, prompts: Prompt, params: Params = None
    ) -> Completion: ...

    @overload
    def generate(self, prompts: Sequence[Prompt], params: Params = None) -> list[Completion]: ...

    def generate(self, prompts: Prompt | Sequence[Prompt], params: Params = None) -> Any:
        """Answers one prompt (returns a Completion) or a list of them (returns a list).

        A prompt is text, a conversation (a list of {"role", "content"}) or token ids: a list, an
        array or a tensor of them, or what a Hugging Face tokenizer returns. A list of prompts, or a
        matrix, runs as one batch.

        params is for all prompts, or a list with one for each; None is what generation_config.json
        recommends. Where its n is above 1, a list of n Completions stands in place of the one, of
        which the types above speak.

        Raises RequestError, ContextLengthError or TokenizerError before any work is done.
        """
        single, asked = self._ask(prompts, params)
        answers = [[Completion() for _ in range(wanted.n)] for _, wanted in asked]
        for chunk in self._run(asked, whole=True):
            answers[chunk.index][chunk.choice].add(chunk)
        made = [given if len(given) > 1 else given[0] for given in answers]
        return made[0] if single else made

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: Params = None,
        *,
        whole: bool = False,
    ) -> Iterator[Chunk]:
        """As generate, but yields a Chunk whenever an answer grows.

        The call itself checks the requests; the work starts with the first chunk, and goes on
        while chunks are read. Closing the iterator early cancels it before the next step.

        whole: one Chunk for each answer, when it is complete.
        """
        return self._run(self._ask(prompts, params)[1], whole)

    def encode(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt, however long it is."""
        single, prompts = read_prompts(prompt)
        if not single:
            raise RequestError(f"there are {len(prompts)} prompts", "one")
        return list(self._encode(prompts[0]))

    def _ask(self, prompts: Prompt | Sequence[Prompt], params: Params) -> tuple[bool, list[Asked]]:
        """(whether it is a single prompt, all as the engine takes them)."""
        single, read = read_prompts(prompts)
        wanted = self._params(params, len(read))
        if any(each.stop for each in wanted):
            self.tokenizer  # noqa: B018  # raises when there is none
        engine = self.driver.engine
        asked = []
        for prompt, each in zip(read, wanted, strict=True):
            ids = engine.check(self._encode(prompt, engine))
            self._constraint(ids, each)  # raises where there can be none, and keeps the grammar
            asked.append((ids, each))
        return single, asked

    def _params(self, params: Params, prompts: int) -> list[SamplingParams]:
        """One for each prompt. Raises RequestError."""
        given = self.generation_config.params if params is None else params
        if isinstance(given, SamplingParams):
            return [given] * prompts
        if not isinstance(given, list | tuple) or not all(
            isinstance(each, SamplingParams) for each in given
        ):
            raise RequestError(
                f"the parameters are {shown(given)}", "deepmnn.SamplingParams, or a list of them"
            )
        if len(given) != prompts:
            raise RequestError(
                f"there are {len(given)} SamplingParams for {prompts} prompts", "one for each"
            )
        return list(given)

    def _encode(self, prompt: Prompt, engine: Engine | None = None) -> Sequence[int]:
        """The token ids; with an engine, a text that it can not take is not tokenised first."""
        if isinstance(prompt, str):
            self._check_length(prompt, engine)
            return self.tokenizer.encode(prompt)
        if not isinstance(prompt[0], Mapping):
            return cast(Sequence[int], prompt)
        messages = cast(Sequence[Message], prompt)
        # Templates leave out nothing that the user says; of other messages they may.
        said = [m.get("content") for m in messages if m.get("role") == "user"]
        self._check_length("".join(t.strip() for t in said if isinstance(t, str)), engine)
        text = self.tokenizer.apply_chat_template(messages)
        self._check_length(text, engine)
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _check_length(self, text: str, engine: Engine | None) -> None:
        """Raises ContextLengthError when the text surely has too many tokens."""
        if engine is None or len(text) < engine.context_length:
            return
        least = self.tokenizer.least_tokens(text)
        if least >= engine.context_length:
            raise engine.too_long(f"the prompt has at least {least:,} tokens")

    def _run(self, asked: list[Asked], whole: bool) -> Iterator[Chunk]:
        driver = self.driver
        events: SimpleQueue[Event] = SimpleQueue()
        requests = [
            Request(sequence, events.put, index, choice, whole=whole)
            for index, (ids, params) in enumerate(asked)
            for choice, sequence in enumerate(self._sequences(ids, params))
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

    def _sequences(self, ids: list[int], params: SamplingParams) -> Iterator[Answer]:
        """One for each of the n answers to a prompt."""
        output, constraint = self._output(ids, params), self._constraint(ids, params)
        first = self.driver.engine.sequence(ids, params, output, constraint)
        yield first
        for number in range(1, params.n):
            yield first.sibling(number, self._output(ids, params))

    def _output(self, ids: list[int], params: SamplingParams) -> TextStream | None:
        """The text side of a request; None without a tokenizer, which only token ids can do."""
        if not self.has_tokenizer and not params.stop:
            return None
        stop = cast(tuple[str, ...], params.stop)
        return TextStream(self.tokenizer, stop, self._inside_reasoning(ids), self._end_ids)

    def _constraint(self, ids: list[int], params: SamplingParams) -> Constraint | None:
        """What holds an answer to the schema that is wanted, if one is."""
        if params.json_schema is None:
            return None
        answer = json_answer(params.json_schema)
        return self._grammars.constraint(answer, self._inside_reasoning(ids))

    def _inside_reasoning(self, ids: list[int]) -> bool:
        """Whether a prompt has opened the reasoning."""
        tail = self.tokenizer.decode(ids[-16:], skip_special_tokens=False).rstrip()
        return tail.endswith("<think>")


def _count(number: float) -> str:
    """A parameter count for people: "15.7B"."""
    scale, unit = (1e9, "B") if number >= 1e9 else (1e6, "M")
    return f"{number / scale:.3g}{unit}"
