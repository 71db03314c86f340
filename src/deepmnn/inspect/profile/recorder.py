"""Counts what runs: on every clock there is, at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, ParamSpec, Self, TypeVar

from deepmnn import _core
from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.backends.cpu.counts import Counts
from deepmnn.backends.cpu.reads import Reads
from deepmnn.backends.mnn.backend import MnnBackend
from deepmnn.inspect.profile.costs import Costs
from deepmnn.inspect.profile.engine import BINDING, LOOP, TimedEngine
from deepmnn.inspect.profile.load import Load, Step
from deepmnn.inspect.profile.memory import owners
from deepmnn.inspect.profile.result import Owner, Part, Phase, System
from deepmnn.inspect.profile.streaming import KEPT, Streaming
from deepmnn.inspect.profile.system import forget_peak, resident, since, system, total

if TYPE_CHECKING:
    from deepmnn.api.llm import LLM

P = ParamSpec("P")
T = TypeVar("T")

REST = "between the parts"
"""What no clock has seen."""

SAMPLING = "sampling"
"""Of `_core.PARTS`: it is inside the sampler's part."""


class Recorder:
    """Counts one phase after another; while it is open the core counts too."""

    def __init__(self, model: LLM, engine: TimedEngine, costs: Costs) -> None:
        self._model, self._engine, self._costs = model, engine, costs
        self._core = model.backend.model if isinstance(model.backend, CpuBackend) else None
        self.threads = int(getattr(self._core or model.backend, "threads", 1))
        self._name = ""
        self._seconds = 0.0
        self._python: dict[str, float] = defaultdict(float)
        self._counts: list[Counts] = []
        self._systems: list[System] = []
        self._steps: list[Step] = []
        self._streamed: dict[str, float] = defaultdict(float)
        self._reads: list[Reads] = []
        self._held: dict[str, tuple[int, int, int]] = {}
        self._peak_rss = 0

    def __enter__(self) -> Self:
        if self._core is not None:
            self._core.start_profile(reads=KEPT if self._core.streaming else 0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._core is not None:
            self._core.stop_profile()

    def begin(self, name: str) -> None:
        """A phase."""
        self._name, self._seconds = name, 0.0
        self._python = defaultdict(float)
        self._counts, self._systems, self._steps = [], [], []
        self._held, self._peak_rss = {}, 0
        self._streamed, self._reads = defaultdict(float), []

    def count(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Work's result; it belongs to the phase, what happens between two calls does not."""
        self._engine.clear()
        if self._core is not None:
            self._core.profile(reset=True)
            self._core.memory(reset=True)
        forget_peak()
        streamed = self._core.streaming if self._core is not None else {}
        inside = self._core.step_seconds if self._core is not None else 0.0
        before, begin = system(), perf_counter()
        result = work(*args, **kwargs)
        seconds = perf_counter() - begin
        self._systems.append(since(before, system()))
        self._seconds += seconds
        self._add(seconds)
        self._steps += self._engine.ran()
        if self._core is not None:
            self._python[BINDING] -= self._core.step_seconds - inside
            self._add_reads(self._core, streamed)
            self._counts.append(Counts.take(self._core))
            for name, (held, pages, peak) in self._core.memory().items():
                before_it = self._held.get(name, (0, 0, 0))
                self._held[name] = (held, pages, max(peak, before_it[2]))
        self._peak_rss = max(self._peak_rss, resident()[1])
        return result

    def _add(self, seconds: float) -> None:
        """The parts of some steps, which took so long with what asked for them."""
        inside = 0
        for laps in self._engine.laps():
            inside += laps.ended - laps.begun
            for part, begin, end in laps.parts():
                self._python[part] += (end - begin) / 1e9
        self._python[LOOP] += seconds - inside / 1e9

    def _add_reads(self, core: _core.Model, before: Mapping[str, float]) -> None:
        """What was read since then, where weights are streamed."""
        for name, value in core.streaming.items():
            self._streamed[name] += value - before[name]
        if (taken := Reads.take(core)) is not None:
            self._reads.append(taken)

    def end(self, runs: int, asked: int) -> Phase:
        """What the phase took. runs: how often it was repeated, asked: how often it was to be."""
        load, costs, seconds = Load(self._steps), self._costs, self._seconds
        rss, _ = resident()
        counts = Counts.total(self._counts) if self._counts else None
        nodes = costs.nodes(counts, load, seconds) if counts is not None else ()
        return Phase(
            self._name,
            runs,
            asked,
            load.steps,
            load.tokens,
            load.contexts,
            seconds,
            nodes,
            kinds=costs.kinds(nodes),
            layers=costs.layers(nodes),
            whole=costs.whole(nodes, load, seconds),
            parts=self._parts(counts),
            threads=tuple(map(tuple, counts.threads.tolist())) if counts is not None else (),
            memory=self._owners(load),
            rss=rss,
            peak_rss=max(self._peak_rss, rss),
            system=total(self._systems),
            streaming=self._streaming(load.steps, seconds),
        )

    def _streaming(self, steps: int, seconds: float) -> Streaming | None:
        if not self._streamed:
            return None
        return Streaming.of(self._streamed, self._reads, steps, seconds)

    def _owners(self, load: Load) -> tuple[Owner, ...]:
        cached = load.most_context * self._model.kv_bytes_per_token
        backend, cache = self._model.backend, self._engine.cache
        return owners(backend, cache, cached, self._held, self._model.artifact.path)

    def _parts(self, counts: Counts | None) -> tuple[Part, ...]:
        """Everything but the ops, the largest first; what no clock has seen is the last."""
        found: list[Part] = []
        inside = 0.0
        if counts is not None:
            ops = len(counts.calls) - len(_core.PARTS)
            inside = float(counts.seconds[:ops].sum())
            for number, name in enumerate(_core.PARTS):
                if name != SAMPLING:
                    spent = float(counts.seconds[ops + number])
                    found.append(self._part(name, "core", int(counts.calls[ops + number]), spent))
        for name, spent in self._python.items():
            where = "python"
            if name == BINDING and self._core is None:
                name = "MNN" if isinstance(self._model.backend, MnnBackend) else "numpy"
                where = name
            found.append(self._part(name, where, len(self._steps), spent))
        found.sort(key=lambda part: -part.seconds)
        known = inside + sum(part.seconds for part in found)
        return (*found, self._part(REST, "", 0, self._seconds - known))

    def _part(self, name: str, where: str, calls: int, seconds: float) -> Part:
        return Part(name, where, calls, seconds, seconds / self._seconds)
