"""What a profile says. Times are seconds, sizes bytes, shares 0 to 1."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from deepmnn.inspect.profile.streaming import Streaming
from deepmnn.inspect.profile.trace import Trace
from deepmnn.measure.benchmark import Machine

NEITHER = 0.1
"""Of a limit."""


@dataclass(frozen=True)
class Limits:
    """How near the machine's limits something comes.

    Attributes:
        memory: of the read bandwidth, that its bytes take; above 1 where caches hold them.
        compute: of the peak in multiply-accumulates, int8 and float32 each by its own.
        binds: the larger one, "memory" or "compute"; "neither" below NEITHER: the time goes to
            something else; "" where nothing is read or multiplied.
    """

    memory: float = 0.0
    compute: float = 0.0
    binds: str = ""

    @staticmethod
    def of(cost: Cost, machine: Machine) -> Limits:
        """Of what took cost.seconds."""
        if not cost.seconds:
            return Limits()
        memory = cost.nbytes / machine.read_bandwidth / cost.seconds
        least = cost.int8_macs / machine.int8_macs + cost.f32_macs / machine.f32_macs
        compute = least / cost.seconds
        binds = "memory" if memory >= compute else "compute"
        if max(memory, compute) < NEITHER:
            binds = "neither" if memory or compute else ""
        return Limits(memory, compute, binds)


@dataclass(frozen=True)
class Cost:
    """What a node, all nodes of a kind, or a layer cost in a phase.

    Attributes:
        name: of the node, the op, or the layer.
        op: the node's; "" for a layer.
        layer: None outside the decoder layers, and for a kind.
        calls: how often nodes ran.
        share: of the phase's wall time.
        nbytes: weights and cached rows read, each once a step; experts as if tokens chose evenly.
        int8_macs, f32_macs: multiply-accumulates, by what they are done in.
        busy, stealing, waiting: seconds of all threads: in work of their own, in pieces of another
            thread's part (and looking for them), in neither.
        pieces, stolen: pieces of work, and those of them that were stolen.
        limits: None where the machine's are not known.
    """

    name: str
    op: str
    layer: int | None
    calls: int
    seconds: float
    share: float
    nbytes: float
    int8_macs: float
    f32_macs: float
    busy: float
    stealing: float
    waiting: float
    pieces: int
    stolen: int
    limits: Limits | None = None

    @property
    def macs(self) -> float:
        """Of both kinds."""
        return self.int8_macs + self.f32_macs

    @staticmethod
    def total(
        name: str,
        costs: Sequence[Cost],
        machine: Machine | None,
        op: str = "",
        layer: int | None = None,
    ) -> Cost:
        """Of several."""

        def sum_of(values: Iterable[float]) -> float:
            return float(sum(values))

        made = Cost(
            name,
            op,
            layer,
            calls=sum(cost.calls for cost in costs),
            seconds=sum_of(cost.seconds for cost in costs),
            share=sum_of(cost.share for cost in costs),
            nbytes=sum_of(cost.nbytes for cost in costs),
            int8_macs=sum_of(cost.int8_macs for cost in costs),
            f32_macs=sum_of(cost.f32_macs for cost in costs),
            busy=sum_of(cost.busy for cost in costs),
            stealing=sum_of(cost.stealing for cost in costs),
            waiting=sum_of(cost.waiting for cost in costs),
            pieces=sum(cost.pieces for cost in costs),
            stolen=sum(cost.stolen for cost in costs),
        )
        return made.beside(machine)

    def beside(self, machine: Machine | None) -> Cost:
        """The same with its limits."""
        return replace(self, limits=Limits.of(self, machine)) if machine else self


@dataclass(frozen=True)
class Part:
    """What a step does besides its ops.

    Attributes:
        where: "core", "python", "MNN" or "numpy"; "" for what no clock has seen.
        calls: how often; 0 where that has no meaning.
    """

    name: str
    where: str
    calls: int
    seconds: float
    share: float


@dataclass(frozen=True)
class Owner:
    """Who holds memory.

    Attributes:
        nbytes: held; None where that is not known.
        resident: of these, in memory.
        peak: the most that was needed at once in this phase; None where that is not known.
    """

    name: str
    nbytes: int | None
    resident: int
    peak: int | None = None


@dataclass(frozen=True)
class System:
    """What the operating system counted for this process during a phase.

    Attributes:
        minor_faults, major_faults: pages that came from memory, and from disk.
        voluntary, involuntary: context switches of all threads: to wait, and because another
            thread's turn had come.
        user, system: seconds of all threads in the program, and in the operating system.
    """

    minor_faults: int = 0
    major_faults: int = 0
    voluntary: int = 0
    involuntary: int = 0
    user: float = 0.0
    system: float = 0.0


@dataclass(frozen=True)
class Phase:
    """Prefill or decode.

    Attributes:
        runs: how often it was repeated: prompts, or steps of decode; asked: how often it was to be.
        steps: of the engine.
        tokens: that were run, of all sequences.
        context: the least and the most rows that a step's last token saw.
        seconds: wall time; ops and parts add up to it.
        nodes: one for each node, in order; empty where the backend does not tell.
        kinds, layers: the same, by op (the most costly first) and by layer.
        whole: of all nodes; where the backend tells of none, of the phase.
        threads: busy, stealing and waiting seconds of each.
        rss, peak_rss: of the process, at the end and at most; 0 where they are not known.
        streaming: what was read from the disk; None where all weights are in memory.
    """

    name: str
    runs: int
    asked: int
    steps: int
    tokens: int
    context: tuple[int, int]
    seconds: float
    nodes: tuple[Cost, ...]
    kinds: tuple[Cost, ...]
    layers: tuple[Cost, ...]
    whole: Cost
    parts: tuple[Part, ...]
    threads: tuple[tuple[float, float, float], ...]
    memory: tuple[Owner, ...]
    rss: int
    peak_rss: int
    system: System
    streaming: Streaming | None = None

    @property
    def tokens_per_second(self) -> float:
        """Of all sequences together."""
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Profile:
    """A model, and what it costs.

    Attributes:
        backend: "cpu", "mnn" or "reference".
        machine: its limits; None for the reference backend.
        batch: sequences that run together.
        prompt_tokens: of each.
        warm_up: what the operating system counted for the first run, which no figure contains.
        notes: what is not told, and why.
        trace: of one prefill and a few steps of decode, where it was asked for.
    """

    model: str
    model_type: str
    recipe: str
    parameters: int
    backend: str
    threads: int
    kv_dtype: str
    machine: Machine | None
    batch: int
    prompt_tokens: int
    prefill: Phase
    decode: Phase
    warm_up: System
    notes: tuple[str, ...] = ()
    trace: Trace | None = field(default=None, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the fields, but for the trace, and the speed of each phase and of its reads."""
        made = asdict(replace(self, trace=None))
        del made["trace"]
        for phase in self.phases:
            made[phase.name]["tokens_per_second"] = phase.tokens_per_second
            if phase.streaming is not None:
                made[phase.name]["streaming"] |= phase.streaming.figures()
        return made

    @property
    def phases(self) -> tuple[Phase, Phase]:
        """Both."""
        return self.prefill, self.decode
