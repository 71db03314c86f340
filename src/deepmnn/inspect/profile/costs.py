"""What was counted of a phase, and what its nodes take, as costs: by node, by op and by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from deepmnn.backends.cpu.counts import Counts
from deepmnn.conversion.report.facts import layer_of
from deepmnn.graph.caches import kept_width
from deepmnn.graph.ir import Graph
from deepmnn.graph.workload import Workload
from deepmnn.inspect.profile.load import Load
from deepmnn.inspect.profile.result import Cost
from deepmnn.measure.benchmark import Machine, workload_of

if TYPE_CHECKING:
    from deepmnn.api.llm import LLM

Key = TypeVar("Key")

OUTSIDE = "outside the layers"


@dataclass(frozen=True)
class Costs:
    """Of one model on one machine.

    Attributes:
        graph: what the engine runs; None where the backend does not tell what its ops take.
        workload: what a token costs; for a backend without ops.
    """

    graph: Graph | None
    workload: Workload | None
    machine: Machine | None
    kv_element_nbytes: float
    kv_dtype: str
    mla_form: str
    in_int8: bool

    @staticmethod
    def of(model: LLM, machine: Machine | None) -> Costs:
        """Of a model that is loaded."""
        from deepmnn.artifact.reader import Artifact
        from deepmnn.backends.cpu.backend import CpuBackend

        has_ops = isinstance(model.backend, CpuBackend) and isinstance(model.artifact, Artifact)
        graph = model.artifact.graph() if has_ops and isinstance(model.artifact, Artifact) else None
        return Costs(
            graph,
            None if has_ops else workload_of(model),
            machine,
            model.kv_bytes_per_token / max(1, kept_width(model.backend.caches)),
            model.sizes.kv_dtype,
            model.options.mla_form,
            in_int8=str(model.artifact.manifest["quant"]) not in ("fp32", "bf16", "fp16"),
        )

    def nodes(self, counts: Counts, load: Load, seconds: float) -> tuple[Cost, ...]:
        """One for each node, in order. seconds: of the phase."""
        if self.graph is None:
            return ()
        made = []
        for zone, node in enumerate(self.graph.nodes):
            work = load.work_of(
                self.graph, node, self.kv_element_nbytes, self.kv_dtype, self.mla_form
            )
            cost = Cost(
                node.name,
                node.op,
                layer_of(node.name),
                calls=int(counts.calls[zone]),
                seconds=float(counts.seconds[zone]),
                share=float(counts.seconds[zone]) / seconds,
                nbytes=work.nbytes,
                int8_macs=work.int8_macs,
                f32_macs=work.f32_macs,
                busy=float(counts.busy[zone]),
                stealing=float(counts.stealing[zone]),
                waiting=float(counts.waiting[zone]),
                pieces=int(counts.pieces[zone]),
                stolen=int(counts.stolen[zone]),
            )
            made.append(cost.beside(self.machine))
        return tuple(made)

    def kinds(self, nodes: Sequence[Cost]) -> tuple[Cost, ...]:
        """By op, the most costly first."""
        groups = _grouped(nodes, lambda node: node.op)
        kinds = (Cost.total(op, costs, self.machine, op) for op, costs in groups.items())
        return tuple(sorted(kinds, key=lambda cost: -cost.seconds))

    def layers(self, nodes: Sequence[Cost]) -> tuple[Cost, ...]:
        """By layer, in order; what is outside of them comes last."""
        groups = _grouped(nodes, lambda node: node.layer)
        outside = groups.pop(None, [])
        made = [
            Cost.total(f"layer {layer}", costs, self.machine, layer=layer)
            for layer, costs in sorted(groups.items(), key=lambda group: group[0] or 0)
        ]
        return (*made, *([Cost.total(OUTSIDE, outside, self.machine)] if outside else []))

    def whole(self, nodes: Sequence[Cost], load: Load, seconds: float) -> Cost:
        """Of all nodes; without nodes, what the phase takes in all."""
        if nodes or self.workload is None:
            return Cost.total("all ops", nodes, self.machine)
        work, steps, tokens = self.workload, max(1, load.steps), load.tokens
        nbytes = float(work.dense_nbytes * steps + work.embedding_nbytes * tokens)
        nbytes += steps * sum(e.touched(round(tokens / steps)) * e.nbytes for e in work.experts)
        nbytes += load.context * work.cache_width * self.kv_element_nbytes
        macs = work.macs(tokens, load.pairs / max(1, tokens), load.rows)
        int8 = macs if self.in_int8 else 0.0
        return Cost(
            "all", "", None, steps, seconds, 1.0, nbytes, int8, macs - int8, 0.0, 0.0, 0.0, 0, 0
        ).beside(self.machine)


def _grouped(nodes: Iterable[Cost], key: Callable[[Cost], Key]) -> dict[Key, list[Cost]]:
    groups: dict[Key, list[Cost]] = {}
    for node in nodes:
        groups.setdefault(key(node), []).append(node)
    return groups
