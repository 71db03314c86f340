"""Graphs of ours as sides: a checkpoint's numbers in any graph, on the engine or by numpy."""

from __future__ import annotations

from collections.abc import Callable

from deepmnn import _core
from deepmnn.conversion.naive import naive_parts
from deepmnn.conversion.plan import choose_formats
from deepmnn.conversion.stage import Stored, stored_from
from deepmnn.formats import F32, named
from deepmnn.graph.ir import Graph, Weight
from deepmnn.graph.levels import optimize
from deepmnn.inspect.sides.options import SideOptions
from deepmnn.inspect.sides.staged import StagedSide, by_engine, by_numpy
from deepmnn.inspect.sides.subject import Subject
from deepmnn.measure.reference import EXACT
from deepmnn.quant.recipe import DEFAULT, recipe_of
from deepmnn.quant.store import stored_values
from deepmnn.source.source import Source


def truth(reference: Subject, like: Subject) -> StagedSide | None:
    """The reference in a graph whose layers hand on what those of another model do: as it runs
    where it has such a graph; one of exact numbers on the engine in float32. None: neither is so.
    """
    ours = like.side
    if not isinstance(ours, StagedSide) or like.level is None or reference.tensors is None:
        return None
    if isinstance(reference.side, StagedSide):
        if [set(part.inputs) for part in reference.side.parts] == [
            set(part.inputs) for part in ours.parts
        ]:
            return reference.side
        kinds = {named(w.format) for w in reference.side.graph.weights.values()}
        if any(kind.levels for kind in kinds) or reference.options.kv_dtype != "f32":
            return None
    disabled = like.options.disabled
    options = SideOptions(backend="cpu", quant=EXACT, optimize_level=like.level, disabled=disabled)
    return source_side(reference.tensors, options)


def as_written(subject: Subject) -> StagedSide | None:
    """A model's numbers in the level-0 graph, in float32 by numpy; None: they cannot be read."""
    if subject.tensors is None:
        return None
    return source_side(
        subject.tensors, SideOptions(backend="reference", quant=EXACT, optimize_level=0)
    )


def source_side(source: Source, options: SideOptions, words: str = "") -> StagedSide:
    """A checkpoint's numbers in the graph that the options ask for."""
    by_reference = options.backend == "reference"
    recipe = recipe_of(options.quant or (EXACT if by_reference else DEFAULT))
    level = options.level
    naive, _ = naive_parts(source)
    keep = None if recipe.name == EXACT else source
    graph, _ = optimize(
        naive.main,
        level,
        source,
        options.disabled,
        lambda graph: choose_formats(graph, recipe, keep),
    )

    def numbers(weight: Weight) -> F32:
        if recipe.name == EXACT:
            return weight.expr.read(source)
        return stored_values(weight, stored_from(source)(weight))

    without = f" without {', '.join(sorted(options.disabled))}" if options.disabled else ""
    words = f"{words or recipe.name}, level {level}{without}"
    return staged_side(graph, stored_from(source), numbers, options, words)


def staged_side(
    graph: Graph,
    stored: Stored,
    numbers: Callable[[Weight], F32],
    options: SideOptions,
    words: str,
) -> StagedSide:
    """A graph on the engine, or on the reference.

    Args:
        stored: a weight's bytes, for the engine.
        numbers: a weight's numbers, for the reference.
        words: of the label.
    """
    if options.kv_dtype != "f32":
        words += f", {options.kv_dtype} cache"
    if options.backend == "reference":
        form = "absorbed" if options.mla_form == "absorbed" else "expanded"
        return StagedSide(f"numpy, {words}", graph, by_numpy(numbers, form, options.kv_dtype))
    isa = options.isa or _core.isas()[0]
    threads = options.threads or 0
    how = by_engine(stored, threads, isa, options.mla_form, options.kv_dtype)
    return StagedSide(f"engine {isa}, {words}", graph, how)
