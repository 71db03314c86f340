"""Optimisation levels: which passes run, in order.

0  nothing: the model as its file writes it
1  clean-ups and weight sharing
2  + operator fusion, and no rows whose logits nobody wants
3  + latent attention over the latents themselves (and memory reuse, see plan_memory)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

from deepmnn.errors import RequestError
from deepmnn.graph.ir import Graph
from deepmnn.graph.passes import (
    absorb_mla,
    absorb_sparse_mla,
    drop_identities,
    fuse_add_norm,
    fuse_compressed_attention,
    fuse_gqa_attention,
    fuse_hyper_connections,
    fuse_linears,
    fuse_moe,
    fuse_route,
    fuse_swiglu,
    select_rows_early,
    share_weights,
)
from deepmnn.graph.verify import verify
from deepmnn.graph.weights import TensorSource

MAX_LEVEL = 3
_CLEAN_UPS = 1
"""The level whose passes do not look at formats."""

_PASSES: tuple[tuple[int, ModuleType], ...] = (
    (1, drop_identities),
    (1, share_weights),
    (2, fuse_compressed_attention),  # these two see whole layers: before rows are left out
    (2, fuse_hyper_connections),
    (2, select_rows_early),  # before fuse_add_norm: the final norm follows its sum
    (2, fuse_swiglu),  # before fuse_linears: gate and up read the same value too
    (2, fuse_linears),
    (2, fuse_gqa_attention),
    (2, fuse_route),
    (2, fuse_moe),
    (2, fuse_add_norm),
    (3, absorb_mla),
    (3, absorb_sparse_mla),
)


@dataclass(frozen=True)
class PassResult:
    """What one pass did."""

    name: str
    rewrites: int
    nodes_before: int
    nodes_after: int


OnPass = Callable[[Graph, PassResult], object]
"""Is given the graph as a pass leaves it, which the next one rewrites, and what the pass did."""


def pass_names(level: int = MAX_LEVEL) -> tuple[str, ...]:
    """The passes of a level, in the order they run. Raises RequestError for an unknown level."""
    return tuple(_name(module) for module in _modules(level))


def optimize(
    graph: Graph,
    level: int,
    source: TensorSource | None = None,
    disabled: frozenset[str] = frozenset(),
    choose_formats: Callable[[Graph], object] | None = None,
    on_pass: OnPass | None = None,
) -> tuple[Graph, list[PassResult]]:
    """The graph at an optimisation level, and what each pass did; `graph` is not touched.

    Args:
        graph: level 0, as a model file builds it.
        level: 0 to 3.
        source: finds weights of equal content too, when given.
        disabled: names of passes to leave out.
        choose_formats: gives the weights their formats, in place: when equal ones have become one,
            and before fusion, which joins only weights of one format.
        on_pass: called after every pass that runs.

    Raises RequestError for an unknown level or pass name, CheckpointError when `source` and the
    graph disagree.
    """
    unknown = sorted(disabled.difference(pass_names()))
    if unknown:
        raise RequestError(f"no pass is called {unknown[0]!r}", f"one of {', '.join(pass_names())}")
    optimized = graph.copy()
    verify(optimized)
    clean_ups = _modules(min(level, _CLEAN_UPS))
    fusions = _modules(level)[len(clean_ups) :]
    results: list[PassResult] = []

    def run(modules: Sequence[ModuleType]) -> None:
        for module in modules:
            if _name(module) not in disabled:
                results.append(_run(optimized, module, source))
                if on_pass is not None:
                    on_pass(optimized, results[-1])

    run(clean_ups)
    if choose_formats is not None:
        choose_formats(optimized)
    run(fusions)
    return optimized, results


def _run(graph: Graph, module: ModuleType, source: TensorSource | None) -> PassResult:
    """Runs a pass on a graph, in place."""
    before = len(graph.nodes)
    arguments = (source,) if module is share_weights else ()
    rewrites = module.run(graph, *arguments)
    if rewrites:
        verify(graph)
    return PassResult(_name(module), rewrites, before, len(graph.nodes))


def _modules(level: int) -> list[ModuleType]:
    if level not in range(MAX_LEVEL + 1):
        raise RequestError(f"optimize level {level}", f"a level from 0 to {MAX_LEVEL}")
    return [module for minimum, module in _PASSES if minimum <= level]


def _name(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]
