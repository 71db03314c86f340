"""Runs a model and counts: `profile`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle, islice
from time import perf_counter, perf_counter_ns
from typing import TYPE_CHECKING

import numpy as np

from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.backends.mnn.backend import MnnBackend
from deepmnn.engine.sequence import Sequence as Answer
from deepmnn.errors import ContextLengthError, RequestError, Words, argument
from deepmnn.inspect.profile.costs import Costs
from deepmnn.inspect.profile.engine import Mark, TimedEngine
from deepmnn.inspect.profile.recorder import Recorder
from deepmnn.inspect.profile.result import Phase, Profile, System
from deepmnn.inspect.profile.system import since, system
from deepmnn.inspect.profile.trace import Trace, traced
from deepmnn.measure.benchmark import measure_machine
from deepmnn.text.stream import TextStream

if TYPE_CHECKING:
    from deepmnn.api.llm import LLM

Progress = Callable[[int, int, str], None]

PROMPT = 128
"""Tokens of a random prompt, where the context holds as many."""

REPEAT = 100
"""Prompts that are prefilled, and steps of decode."""

SECONDS = 15.0
"""After which a phase ends, though it was not repeated as often as it was to be."""

MOST_STEPS = 4096
"""Of decode, after which their marks are added up."""

WARM_STEPS = 3
TRACE_STEPS = 8
"""Of decode."""

TRACE_SPANS = 1 << 16
"""That each thread remembers for a trace; and as many reads."""

MNN_NOTES = (
    "MNN runs a step as one call, and its wheel tells of no op in it: it calls back before and "
    "after each op only in sessions of MNN.Interpreter, and refuses to make one for a network "
    "whose shapes depend on what its inputs hold, as a language model's do",
    "the times that MNN's runtime keeps by itself (prefill_us, decode_us) are those of its own "
    "loop, which deepmnn does not use: these are wall times of its forward pass",
    "MNN does not tell what its threads do, nor who holds its memory",
)


def profile(
    model: LLM,
    ids: Sequence[int] | None = None,
    *,
    repeat: int = REPEAT,
    batch: int = 1,
    context: int | None = None,
    trace: bool = False,
    progress: Progress | None = None,
) -> Profile:
    """What a model's time and memory go to, in prefill and in decode.

    Args:
        model: on any backend; nothing else may ask it meanwhile.
        ids: the prompt, the same for all sequences; None: random ids, others each time.
        repeat: how many prompts to prefill, and how many steps to decode; each phase ends after
            SECONDS all the same.
        batch: sequences that run together.
        context: rows that each of them has in the cache when decoding begins; None: the prompt's.
        trace: whether to run a prompt and TRACE_STEPS more, and to keep what each thread did.
        progress: called with (done, in all, what is being done).

    Raises RequestError for impossible counts or ids, ContextLengthError for more than the model's
    context holds, and whatever the model raises.
    """
    for name, value in {"repeat": repeat, "batch": batch, "context": context or 1}.items():
        if value < 1:
            raise RequestError(argument(name, f" is {value}"), "at least 1")
    most = model.backend.max_sequences
    if most is not None and batch > most:
        raise RequestError(
            argument("batch", f" is {batch}"), f"at most {most}: this backend has no batching"
        )
    tell = progress or (lambda done, total, label: None)
    runs = _Runs(model, ids, repeat, batch, context)
    tell(0, 0, "the machine's limits")
    machine = measure_machine(model)
    tell(0, 0, "warming up")
    warm_up = runs.warm_up()
    costs = Costs.of(model, machine)
    counted = Recorder(model, runs.engine, costs)
    with counted:
        prefill = runs.prefill(counted, tell)
        decode = runs.decode(counted, tell)
    tell(0, 0, "tracing" if trace else "done")
    return Profile(
        model=model.artifact.path.name,
        model_type=str(model.artifact.manifest["model_type"]),
        recipe=str(model.artifact.manifest["quant"]),
        parameters=model.parameters,
        backend=type(model.backend).__name__.removesuffix("Backend").lower(),
        threads=counted.threads,
        kv_dtype=model.sizes.kv_dtype,
        machine=machine,
        batch=batch,
        prompt_tokens=runs.prompt_tokens,
        prefill=prefill,
        decode=decode,
        warm_up=warm_up,
        notes=MNN_NOTES if isinstance(model.backend, MnnBackend) else (),
        trace=runs.trace() if trace else None,
    )


class _Runs:
    """Prompts and answers, on an engine of its own over the model's backend."""

    def __init__(
        self,
        model: LLM,
        ids: Sequence[int] | None,
        repeat: int,
        batch: int,
        context: int | None,
    ) -> None:
        self._model, self._repeat, self._batch = model, repeat, batch
        most = model.context_length
        self.prompt_tokens = min(PROMPT, max(1, most // 2)) if ids is None else len(ids)
        self._context = self.prompt_tokens if context is None else context
        per_step = model.sizes.max_batch_tokens
        # Sequences that are prefilled early decode until the last one is.
        self._ahead = -(-batch * self._context // max(1, per_step - batch)) + 1
        longest = max(self.prompt_tokens, self._context)
        room = most - longest - self._ahead - 1
        if room < WARM_STEPS + 1:
            raise ContextLengthError(
                f"{longest} tokens and the steps after them",
                f"at most {most}, the model's context",
                Words(
                    "Choose a smaller context.", "Choose a smaller --context, or a shorter input."
                ),
            )
        self._round = min(max(repeat, TRACE_STEPS, WARM_STEPS), room, self._affordable(longest))
        rows = -(-(longest + self._ahead + self._round + 1) // 32) * 32 + 32
        self.engine = TimedEngine(
            model.backend,
            batch * rows,
            most,
            max_batch_tokens=max(per_step, batch),
            max_sequences=batch,
            kv_dtype=model.sizes.kv_dtype,
        )
        self._ids = None if ids is None else self.engine.check_ids(list(ids))
        self._random = np.random.default_rng(0)
        self._params = replace(model.generation_config.params, ignore_eos=True, logprobs=None, n=1)

    def _affordable(self, longest: int) -> int:
        """Steps of decode after so many tokens for which a memory budget has rows in the cache.

        Raises RequestError where it has too few of them, or not for that many sequences.
        """
        model, batch = self._model, self._batch
        if model.split is None:
            return self._repeat + TRACE_STEPS
        sizes = model.split.sizes
        together = min(model.options.max_sequences, sizes.max_batch_tokens)
        rows = sizes.cache_tokens // batch // 32 * 32 - 32
        steps = rows - longest - self._ahead - 1
        if batch > together or steps < WARM_STEPS + 1:
            raise RequestError(
                f"{batch} × {longest} tokens, and those of the steps after them, in a cache of "
                f"{sizes.cache_tokens:,} tokens and steps of {together} sequences",
                "as many as the memory budget has room for",
                Words(
                    "Choose a smaller context or batch, or load the model with more memory.",
                    "Choose a smaller --context or --batch, a shorter input, or more --memory.",
                ),
            )
        return steps

    def warm_up(self) -> System:
        """A prompt and a few tokens; what the operating system counted for them."""
        before = system()
        self._run(self._answers(self.prompt_tokens, 1))
        self._end(self._decoding(WARM_STEPS))
        return since(before, system())

    def prefill(self, recorder: Recorder, tell: Progress) -> Phase:
        """Prompts, each until its first token is drawn."""
        recorder.begin("prefill")
        runs, end = 0, perf_counter() + SECONDS
        while runs < self._repeat and (runs == 0 or perf_counter() < end):
            tell(runs, self._repeat, "prefill")
            recorder.count(self._run, self._answers(self.prompt_tokens, 1))
            runs += 1
        return recorder.end(runs, self._repeat)

    def decode(self, recorder: Recorder, tell: Progress) -> Phase:
        """Steps in which every sequence gets a token; in rounds, where the context is too short."""
        recorder.begin("decode")
        runs, end = 0, 0.0
        while runs < self._repeat and (runs == 0 or perf_counter() < end):
            tell(runs, self._repeat, f"decode after {self._context} tokens")
            answers = self._decoding(0)
            end = end or perf_counter() + SECONDS  # the first context may take longer than that
            left = self._round
            while left > 0 and runs < self._repeat and (runs == 0 or perf_counter() < end):
                done = recorder.count(self._steps, min(self._repeat - runs, left, MOST_STEPS), end)
                runs, left = runs + done, left - done
            self._check(answers)
            self._end(answers)
        return recorder.end(runs, self._repeat)

    def trace(self) -> Trace:
        """One more prompt and a few steps, with all that happens in them."""
        core = self._model.backend.model if isinstance(self._model.backend, CpuBackend) else None
        answers = self._answers(self._context, self._round)
        self.engine.clear()
        if core is not None:
            core.start_profile(TRACE_SPANS, reads=TRACE_SPANS)
        try:
            begin = perf_counter_ns()
            self._prefill(answers)
            middle = perf_counter_ns()
            for _ in range(min(TRACE_STEPS, self._round)):
                self.engine.step()
            phases = Mark("prefill", begin, middle), Mark("decode", middle, perf_counter_ns())
            self._end(answers)
            return traced(core, phases, self.engine.laps())
        finally:
            if core is not None:
                core.stop_profile()

    def _answers(self, prompt_tokens: int, new_tokens: int) -> list[Answer]:
        return [self._answer(prompt_tokens, new_tokens) for _ in range(self._batch)]

    def _answer(self, prompt_tokens: int, new_tokens: int) -> Answer:
        """A sequence with a prompt of so many tokens; a given one begins again at its end."""
        if self._ids is None:
            prompt = self._random.integers(0, self._model.vocab_size, prompt_tokens).tolist()
        else:
            prompt = list(islice(cycle(self._ids), prompt_tokens))
        tokenizer = self._model.tokenizer if self._model.has_tokenizer else None
        return Answer(
            prompt,
            params=self._params,
            limit=prompt_tokens + new_tokens,
            output=None if tokenizer is None else TextStream(tokenizer, (), False),
        )

    def _decoding(self, steps: int) -> list[Answer]:
        """Sequences that have their context in the cache, and have made some steps more."""
        answers = self._answers(self._context, self._ahead + self._round + 1)
        self._prefill(answers)
        for _ in range(steps):
            self.engine.step()
        return answers

    def _prefill(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            self.engine.scheduler.add(answer)
        while any(answer.pending != 1 or not answer.completion_tokens for answer in answers):
            self.engine.step()
            self._check(answers)

    def _run(self, answers: Sequence[Answer]) -> None:
        """To their ends."""
        for answer in answers:
            self.engine.scheduler.add(answer)
        while self.engine.scheduler.busy:
            self.engine.step()
        self._check(answers)

    def _steps(self, most: int, end: float) -> int:
        """How many there was time for, at least one."""
        done = 0
        while done < most and (done == 0 or perf_counter() < end):
            self.engine.step()
            done += 1
        return done

    def _end(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            self.engine.cancel(answer)

    def _check(self, answers: Sequence[Answer]) -> None:
        """Raises what has ended one of them."""
        for answer in answers:
            if answer.error is not None:
                raise answer.error
