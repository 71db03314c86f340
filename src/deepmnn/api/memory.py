"""How a budget of memory is split between everything that a model needs (docs/memory.md).

    budget = the process as it is + what it grows by + KV cache + a step + weights

The first four are counted here, each by a bound that is never too small; what is left is the
weights' (`_core.plan_weights`), which are read from the disk where they do not fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from deepmnn import _core
from deepmnn.api.options import (
    DEFAULT_BATCH_TOKENS,
    DEFAULT_CACHE_BYTES,
    DEFAULT_KV_DTYPE,
    LoadOptions,
)
from deepmnn.backends.cpu.footprint import Footprint, StepShape
from deepmnn.backends.cpu.program import Program, read_program
from deepmnn.engine.recent_rows import places
from deepmnn.errors import RequestError, Words, argument
from deepmnn.graph.caches import CacheEntry, block_nbytes, block_size
from deepmnn.source.sizes import file_size

GROWTH_NBYTES = 24 << 20
"""What Python, the allocator, the tokenizer and pages of libraries take more while requests run.

Measured over 200 requests (short and long prompts, batches, streams, chat templates, JSON schemas),
the grammar's part below left out: a server of a model with a vocabulary of 129,280 grew by 9 MB,
its steps and cache among them, and by 8 MB of libraries' pages; `LLM` with tiny-r1 by about 22 MB,
reckoned from 57 MB less its engine and a whole cache.
"""

GRAMMAR_NBYTES = 1280
"""Of what holds answers to a grammar (llguidance), for each token of the vocabulary, from the first
JSON schema or tool call on (measured: 155 MB for 129,280 tokens)."""

THREAD_NBYTES = 256 << 10
"""Of a worker's stack and its counters."""

TABLES = 4
"""The engine's tables of a program take so many times the bytes of its file, at most."""

TEMPLATE_NBYTES = 32 << 20
"""Of the process that renders chat templates (text/limited_process.py)."""

KV_SHARE = 8
"""The KV cache takes at most one part in so many of a budget that weights have to share; twice that
where its rows are given, before it is stored in fewer bits."""

ENOUGH_ROWS = 4096
"""Rows of the KV cache that are made unasked where weights are streamed, at most: a long chat. Each
more is taken from the experts that are cached, whether it is used or not."""

LEAST_ROWS = 2048
"""Rows of the KV cache below which it is rather stored in fewer bits."""

FEWEST_ROWS = 512
"""Rows below which no cache is made that nobody asked for."""

VARIES_NBYTES = 4 << 20
"""By which one process differs from another that does the same: added to a budget that is named."""

KV_DTYPES = ("f32", "bf16", "int8")
"""From the exact one to the smallest."""

BATCH_TOKENS = (512, 256, 128, 64, 32)


@dataclass(frozen=True)
class Sizes:
    """What memory decides: how the KV cache is stored, its rows, and the tokens of a step."""

    kv_dtype: str
    cache_tokens: int
    max_batch_tokens: int

    @staticmethod
    def usual(options: LoadOptions, context_length: int, row_nbytes: Mapping[str, int]) -> Sizes:
        """Where memory is no matter. row_nbytes: of a token in the KV cache, by dtype."""
        dtype = options.kv_dtype or DEFAULT_KV_DTYPE
        affordable = DEFAULT_CACHE_BYTES // max(1, row_nbytes[dtype])
        rows = options.cache_tokens or max(1, min(4 * context_length, affordable))
        return Sizes(dtype, rows, options.max_batch_tokens or DEFAULT_BATCH_TOKENS)


def row_nbytes(caches: Mapping[str, CacheEntry]) -> dict[str, int]:
    """dtype → bytes that are kept of a token in the KV cache, rounded up."""
    size = block_size(caches)
    return {dtype: -(-block_nbytes(caches, size, dtype)[0] // size) for dtype in KV_DTYPES}


@dataclass(frozen=True)
class Demand:
    """What a model asks for, before a byte of its weights is read.

    Attributes:
        data: program.bin.
        context_length: the longest sequence that the model takes.
        threads: workers of the engine.
        process: bytes that the process holds already: Python, libraries, tokenizer, server.
        templates: whether chat templates are rendered.
        grammars: whether answers may be held to a grammar.
        draft: whether the draft part runs of a model that has one (graph/draft.py).
    """

    data: bytes
    context_length: int
    threads: int
    process: int
    templates: bool = False
    grammars: bool = False
    draft: bool = False

    @cached_property
    def program(self) -> Program:
        """The program, read: what runs of it."""
        found = read_program(self.data)
        return found if self.draft else found.without_draft()

    @cached_property
    def row_nbytes(self) -> dict[str, int]:
        """dtype → bytes of a token in the KV cache."""
        return row_nbytes(self.program.caches)

    @cached_property
    def weights(self) -> _core.WeightPlan:
        """Of the weights when they have all the memory that they want."""
        return _core.plan_weights(self.data, draft=self.draft)

    @property
    def vocab_size(self) -> int:
        """The width of the logits; 0 for a program without."""
        given = [self.program.buffers[index] for index in self.program.outputs]
        return max((each.shape[-1] for each in given if each.name == "logits"), default=0)

    @property
    def base(self) -> int:
        """The process, and what it grows by whatever is run."""
        grown = GROWTH_NBYTES + self.threads * THREAD_NBYTES + TABLES * len(self.data)
        grown += TEMPLATE_NBYTES if self.templates else 0
        return self.process + grown + (GRAMMAR_NBYTES * self.vocab_size if self.grammars else 0)

    @cached_property
    def block_size(self) -> int:
        """Tokens of a block of the KV cache."""
        return block_size(self.program.caches)

    def kv(self, sizes: Sizes, options: LoadOptions) -> int:
        """Bytes of the KV cache, in whole blocks, with the engine's record of each."""
        caches, dtype = self.program.caches, sizes.kv_dtype
        blocks = -(-sizes.cache_tokens // self.block_size)
        steps = sizes.max_batch_tokens, min(options.max_sequences, sizes.max_batch_tokens)
        kept, recent = block_nbytes(caches, self.block_size, dtype)
        return blocks * (kept + 512) + places(caches, blocks, dtype, *steps) * recent

    def step(self, sizes: Sizes, options: LoadOptions) -> Footprint:
        """The most that a step needs besides weights and cache."""
        sequences = min(options.max_sequences, sizes.max_batch_tokens)
        context = min(self.context_length, sizes.cache_tokens + self.block_size)
        shape = StepShape(
            tokens=sizes.max_batch_tokens,
            sequences=sequences,
            rows=sizes.max_batch_tokens if self.draft else sequences,
            context=context,
            all_context=sequences * context,  # they may share rows
            threads=self.threads,
            mla_form=options.mla_form,
        )
        return Footprint.of(self.program, shape)


@dataclass(frozen=True)
class Split:
    """A budget, and what everything gets of it; all in bytes.

    Attributes:
        budget: in force: what was given, but not more than the machine has.
        base: the process, and what it grows by.
        sizes: what runs.
        kv: of the KV cache.
        step: of a step.
        weights: how the weights are kept in what is left.
        draft: whether there is room for the draft part, where it is asked for.
        changes: what is smaller than usual, in words.
    """

    budget: int
    base: int
    sizes: Sizes
    kv: int
    step: Footprint
    weights: _core.WeightPlan
    draft: bool = False
    changes: tuple[str, ...] = field(default=())

    @property
    def room(self) -> int:
        """What is left for weights."""
        return self.budget - self.base - self.kv - self.step.nbytes

    @property
    def is_streamed(self) -> bool:
        """Whether weights are read from the disk while the model runs."""
        return not self.weights.mapped

    @property
    def least(self) -> int:
        """The smallest budget in which this runs."""
        return self.base + self.kv + self.step.nbytes + self.weights.least_nbytes

    @property
    def whole(self) -> int:
        """The budget from which on nothing is read again."""
        return self.base + self.kv + self.step.nbytes + self.weights.total_nbytes

    def line(self) -> str:
        """The budget and its split, on one line."""
        kv = f"KV cache {file_size(self.kv)} ({self.sizes.cache_tokens:,} tokens, "
        kv += f"{self.sizes.kv_dtype})"
        parts = [*_weights_said(self.weights), kv, f"a step {file_size(self.step.nbytes)}"]
        parts.append(f"Python and the rest {file_size(self.base)}")
        return f"memory {file_size(self.budget)}: {', '.join(parts)}"


def _weights_said(weights: _core.WeightPlan) -> list[str]:
    if weights.mapped:
        return [f"weights {file_size(weights.total_nbytes)}, all of them"]
    said = [f"{file_size(weights.resident_nbytes)} of weights stay"]
    if weights.expert_nbytes:
        cached, every = file_size(weights.cache_nbytes), file_size(weights.expert_nbytes)
        said.append(f"experts {cached} of {every}")
    if weights.streamed_nbytes:
        said.append(f"{file_size(weights.streamed_nbytes)} read again in each step")
    return said


def split(demand: Demand, options: LoadOptions, budget: int) -> Split:
    """Splits a budget; what `options` says stays, what it leaves open is chosen to fit. Before
    anything makes room for a draft part, it is left out.

    Raises RequestError, with the smallest budget that would do, when nothing fits.
    """
    usual = Sizes.usual(options, demand.context_length, demand.row_nbytes)
    whole = demand.weights.total_nbytes
    if _room(demand, options, budget, usual) >= whole:
        return _made(demand, options, budget, usual, usual)
    if demand.draft:
        return split(replace(demand, draft=False), options, budget)
    least = demand.weights.least_nbytes
    for sizes in _candidates(demand, options, budget):
        if _room(demand, options, budget, sizes) >= least:
            return _made(demand, options, budget, sizes, usual)
    raise too_small(demand, options, budget)


def too_small(demand: Demand, options: LoadOptions, budget: int) -> RequestError:
    """The error for a budget in which nothing runs."""
    needed = least_budget(demand, options) + VARIES_NBYTES
    given = {name for name in ("cache_tokens", "kv_dtype", "max_batch_tokens")
             if getattr(options, name) is not None}  # fmt: skip
    smaller = "Give it more, or convert the model with fewer bits."
    flags = " or ".join(sorted(given))
    hint: str | Words = smaller
    if given:
        shell = " or ".join("--" + name.replace("_", "-") for name in sorted(given))
        hint = Words(f"{smaller} Or leave out {flags}.", f"{smaller} Or leave out {shell}.")
    return RequestError(
        argument("memory", f" is {file_size(budget)}, and this model does not run in it"),
        f"at least {megabytes(needed)}",
        hint,
    )


def megabytes(nbytes: int) -> str:
    """Rounded up, as the flag takes it."""
    return f"{math.ceil(nbytes / 1e6)}MB"


def least_budget(demand: Demand, options: LoadOptions) -> int:
    """The smallest budget in which the model runs, with what `options` says; without drafts."""
    demand = replace(demand, draft=False)
    *_, last = _candidates(demand, options, 0)
    spent = demand.base + demand.kv(last, options) + demand.step(last, options).nbytes
    return spent + demand.weights.least_nbytes


def _room(demand: Demand, options: LoadOptions, budget: int, sizes: Sizes) -> int:
    return budget - demand.base - demand.kv(sizes, options) - demand.step(sizes, options).nbytes


def _made(demand: Demand, options: LoadOptions, budget: int, sizes: Sizes, usual: Sizes) -> Split:
    room = _room(demand, options, budget, sizes)
    return Split(
        budget=budget,
        base=demand.base,
        sizes=sizes,
        kv=demand.kv(sizes, options),
        step=demand.step(sizes, options),
        weights=_core.plan_weights(demand.data, room, demand.draft),
        draft=demand.draft,
        changes=tuple(_changes(sizes, usual)),
    )


def _candidates(demand: Demand, options: LoadOptions, budget: int) -> Iterator[Sizes]:
    """From the best to the smallest, whatever fits: first within the cache's share of the budget,
    exact keys and values before long contexts; then whatever leaves the weights the least they
    need, the tokens of a step last.
    """
    dtypes = KV_DTYPES if options.kv_dtype is None else (options.kv_dtype,)
    batches = BATCH_TOKENS if options.max_batch_tokens is None else (options.max_batch_tokens,)
    one, part = demand.context_length, KV_SHARE // 2 if options.cache_tokens else KV_SHARE
    enough = min(one, ENOUGH_ROWS)
    for dtype in dtypes:
        share = budget // part // _row_cost(demand, options, dtype, batches[0])
        rows = options.cache_tokens or min(enough, share)
        if rows <= share and rows >= min(one, options.cache_tokens or LEAST_ROWS):
            yield Sizes(dtype, rows, batches[0])
    fewest = min(one, FEWEST_ROWS)
    wanted = (min(one, LEAST_ROWS), min(one, LEAST_ROWS // 2), fewest)
    for batch in batches:
        if options.cache_tokens:  # more than their share, in any format
            yield Sizes(dtypes[-1], options.cache_tokens, batch)
            continue
        for rows in wanted:
            for dtype in dtypes:
                yield Sizes(dtype, rows, batch)


def _row_cost(demand: Demand, options: LoadOptions, dtype: str, batch: int) -> int:
    """Bytes of one more row of the cache: its own, and what a step takes to read it."""
    some, more = (Sizes(dtype, rows, batch) for rows in (LEAST_ROWS, 2 * LEAST_ROWS))
    step = demand.step(more, options).nbytes - demand.step(some, options).nbytes
    return demand.row_nbytes[dtype] + step // LEAST_ROWS


def _changes(sizes: Sizes, usual: Sizes) -> Iterator[str]:
    if sizes.kv_dtype != usual.kv_dtype:
        yield f"keys and values in {sizes.kv_dtype}, not {usual.kv_dtype}"
    if sizes.cache_tokens < usual.cache_tokens:
        yield f"a KV cache of {sizes.cache_tokens:,} tokens, not {usual.cache_tokens:,}"
    if sizes.max_batch_tokens < usual.max_batch_tokens:
        yield f"steps of {sizes.max_batch_tokens} tokens, not {usual.max_batch_tokens}"
