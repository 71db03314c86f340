"""Node counts and activation memory of a model at every optimisation level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepmnn.graph.ir import Graph
from deepmnn.graph.levels import MAX_LEVEL, optimize
from deepmnn.graph.passes.memory_plan import plan_memory
from deepmnn.models import build

REPORT_TOKENS = 512
"""Activation memory is that of a prefill of this many tokens with the logits of one."""


@dataclass(frozen=True)
class LevelReport:
    """One optimisation level.

    nodes: how many, in total. by_op: op → how many, most frequent first.
    activation_nbytes: bytes for REPORT_TOKENS tokens when every value has memory of its own;
    planned_nbytes: when the memory of values that are no longer needed is reused, as at level 3.
    """

    level: int
    nodes: int
    by_op: dict[str, int]
    activation_nbytes: int
    planned_nbytes: int


def node_report(config: Mapping[str, Any]) -> list[LevelReport]:
    """The model of a config.json at levels 0 to 3. Raises ConfigError."""
    graph = build(config)
    return [report_level(optimize(graph, level)[0], level) for level in range(MAX_LEVEL + 1)]


def report_level(graph: Graph, level: int) -> LevelReport:
    """Counts an optimised graph and plans its memory both ways."""
    counts = graph.op_counts()
    separate, shared = (
        plan_memory(graph, reuse).peak_nbytes(REPORT_TOKENS, REPORT_TOKENS, 1)
        for reuse in (False, True)
    )
    return LevelReport(level, counts.total(), dict(counts.most_common()), separate, shared)


def nodes_saved(levels: list[LevelReport]) -> float:
    """The share of level 0's nodes that the last level saves, 0 to 1."""
    return 1 - levels[-1].nodes / levels[0].nodes
