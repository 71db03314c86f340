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
"""Activation memory is given for a prefill of this many tokens, one of whose logits are wanted."""


@dataclass(frozen=True)
class LevelReport:
    """One optimisation level.

    nodes: how many, in total. by_op: op → how many, most frequent first.
    activation_nbytes: bytes for REPORT_TOKENS tokens when every value has its own place;
    planned_nbytes: when values that are no longer needed make room (level 3 runs like this).
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
    """The share of level 0's nodes that the last level does without, 0 to 1."""
    return 1 - levels[-1].nodes / levels[0].nodes
