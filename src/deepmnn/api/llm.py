"""A loaded model: logits, sessions, generation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, overload

from deepmnn.api.memory import Sizes, Split
from deepmnn.api.options import KV_DTYPES, LoadOptions
from deepmnn.api.prompts import Prompt, read_prompts
from deepmnn.api.requests import Asked, Params, ask, encode, requests
from deepmnn.api.speculation import guess_ahead
from deepmnn.backends.base import F32, Backend
from deepmnn.engine.completion import Chunk, Completion
from deepmnn.engine.driver import Driver, making
from deepmnn.engine.engine import Engine
from deepmnn.engine.request import Event, Request, result_of
from deepmnn.engine.session import Session
from deepmnn.errors import RequestError
from deepmnn.graph.caches import kept_width
from deepmnn.models import build, read_config
from deepmnn.text.answer_end import end_ids
from deepmnn.text.constraint import Grammars
from deepmnn.text.generation_config import GenerationConfig
from deepmnn.text.sampling_params import SamplingParams
from deepmnn.text.text_files import TextFiles
from deepmnn.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from deepmnn.artifact.reader import Artifact
    from deepmnn.exporters.mnn.folder import MnnFolder


class LLM:
    """A model that answers. Made by `load`; any number of threads may ask it.

    Attributes:
        artifact: the files: `.config`, `.manifest`.
        path: the directory of the tokenizer.
        text_files: the tokenizer's and other small files.
        backend: what runs the steps.
        options: what `load` was given.
        split: what everything gets of the memory; None where there is plenty, and of MNN.
        sizes: the KV cache and the steps.
        tokenizer: raises TokenizerError at first use when the model has none.
        draft: the smaller model that guesses tokens ahead, where `options` names one.
    """

    def __init__(
        self,
        artifact: Artifact | MnnFolder,
        text_files: TextFiles,
        backend: Backend,
        options: LoadOptions,
        split: Split | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.artifact = artifact
        self.path: Path = text_files.directory
        self.text_files = text_files
        self.backend = backend
        self.options = options
        self.split = split
        self.config: dict[str, Any] = dict(artifact.config)
        self.context_length = read_config(self.config).context_length
        self.generation_config = GenerationConfig.read(text_files, self.config)
        self.draft: LLM | None = None
        self._driver: Driver | None = None
        self._tokenizer = tokenizer
        self._ends: frozenset[int] | None = None
        self._grammars: Grammars | None = None
        self._parameters: int | None = None
        self.sizes = split.sizes if split else self._usual_sizes()

    def __repr__(self) -> str:
        """The model and what runs it, on one line."""
        manifest, core = self.artifact.manifest, getattr(self.backend, "model", None)
        backend = type(self.backend).__name__.removesuffix("Backend").lower()
        facts = [
            f"{self.artifact.path.name!r}",
            f"model_type={manifest['model_type']!r}",
            *([] if self.is_streamed else [f"parameters={_count(self.parameters)}"]),
            f"recipe={manifest['quant']!r}",
            f"backend={backend!r}",
            *([] if core is None else [f"isa={core.isa!r}", f"threads={core.threads}"]),
            f"context_length={self.context_length}",
        ]
        if self.split is not None and self.is_streamed:
            facts.append(f"memory={self.split.line().removeprefix('memory ')!r}")
        return f"LLM({', '.join(facts)})"

    @property
    def is_streamed(self) -> bool:
        """Whether weights are read from the disk while the model runs."""
        return self.split is not None and self.split.is_streamed

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self.backend.vocab_size

    @property
    def parameters(self) -> int:
        """How many numbers the weights are, without those of multi-token prediction."""
        if self._parameters is None:
            weights = build(self.config).weights.values()
            self._parameters = sum(math.prod(weight.shape) for weight in weights)
        return self._parameters

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of a token that the KV cache keeps; int8: where widths are whole groups of 64."""
        return math.ceil(kept_width(self.backend.caches) * KV_DTYPES[self.sizes.kv_dtype])

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
    def end_ids(self) -> frozenset[int]:
        """The tokens that end an answer, by the tokenizer's files, too."""
        if self._ends is None:
            with making:
                self._ends = self._ends or end_ids(self.tokenizer, self.generation_config)
        return self._ends

    @property
    def grammars(self) -> Grammars:
        """What answers may be held to. Raises MissingDependencyError without llguidance."""
        if self._grammars is None:
            with making:
                self._grammars = self._grammars or Grammars(
                    self.tokenizer, self.vocab_size, self.end_ids
                )
        return self._grammars

    @property
    def driver(self) -> Driver:
        """Runs the requests: its thread owns the engine. The KV cache is allocated at first use."""
        if self._driver is None:
            with making:
                if self._driver is None:
                    self._driver = Driver(self._guessing_engine())
        return self._driver

    @property
    def engine(self) -> Engine:
        """The scheduler and the KV cache, to look at: what this thread has closed is gone by then.

        Only the driver's thread may change it (`driver.run`).
        """
        return self.driver.run(lambda engine: engine)

    def new_engine(self) -> Engine:
        """An engine of its own on the model's backend, for one thread: `driver` has another."""
        sizes, together = self.sizes, self.options.max_sequences
        return Engine(
            self.backend,
            sizes.cache_tokens,
            self.context_length,
            kv_dtype=sizes.kv_dtype,
            eos_ids=self.generation_config.eos_ids,
            max_batch_tokens=sizes.max_batch_tokens,
            max_sequences=together,
            max_rows=min(together, sizes.max_batch_tokens) if self.split else None,
            kv_disk=self.options.kv_disk_nbytes,
            kv_directory=self.options.kv_place,
        )

    def _guessing_engine(self) -> Engine:
        engine = self.new_engine()
        guess_ahead(engine, self.options, self.draft)
        return engine

    def _usual_sizes(self) -> Sizes:
        width = kept_width(self.backend.caches)
        rows = {dtype: math.ceil(width * each) for dtype, each in KV_DTYPES.items()}
        return Sizes.usual(self.options, self.context_length, rows)

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

        A prompt is text, a conversation (a list of {"role", "content"}, or a `Chat`) or token ids:
        a list, an array or a tensor of them, or what a Hugging Face tokenizer returns. A list of
        prompts, or a matrix, runs as one batch.

        params is for all prompts, or a list with one for each; None is what generation_config.json
        recommends. Where its n is above 1, a list of n Completions stands in place of the one, of
        which the types above speak.

        Raises RequestError, ContextLengthError or TokenizerError before any work is done.
        """
        single, asked = ask(self, prompts, params)
        answers = [[Completion() for _ in range(each.params.n)] for each in asked]
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
        return self._run(ask(self, prompts, params)[1], whole)

    def encode(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt, however long it is."""
        single, prompts = read_prompts(prompt)
        if not single:
            raise RequestError(f"there are {len(prompts)} prompts", "one")
        return list(encode(self, prompts[0]))

    def request(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        deliver: Callable[[Event], object],
        index: int = 0,
    ) -> list[Request]:
        """One request for each of the n answers to a prompt, checked, for `driver.submit`.

        For whoever cannot wait for chunks on a thread, such as a server: deliver is told of each
        event by the engine's thread (`Request`); index is that of the chunks. Raises as generate
        does.
        """
        single, asked = ask(self, prompt, params)
        if not single:
            raise RequestError(f"there are {len(asked)} prompts", "one")
        return list(requests(self, asked[0], deliver, index))

    def _run(self, asked: list[Asked], whole: bool) -> Iterator[Chunk]:
        driver = self.driver
        events: SimpleQueue[Event] = SimpleQueue()
        submitted = [
            request
            for index, each in enumerate(asked)
            for request in requests(self, each, events.put, index, whole=whole)
        ]
        unfinished = len(submitted)
        try:
            driver.submit(submitted)
            while unfinished:
                chunk = result_of(events.get())
                unfinished -= chunk.finish_reason is not None
                yield chunk
        finally:
            for request in submitted:
                driver.cancel(request)


def _count(number: float) -> str:
    """A parameter count for people: "15.7B"."""
    scale, unit = (1e9, "B") if number >= 1e9 else (1e6, "M")
    return f"{number / scale:.3g}{unit}"
