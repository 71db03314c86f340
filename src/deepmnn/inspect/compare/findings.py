"""What is wrong between two models, and what rounding explains.

Three detectors, each on evidence of its own, and each names a place:

1. a stored graph's attributes against those that this version makes of config.json;
2. every tensor's numbers, and every 16 rows of them, against the reference's;
3. every node alone, on the reference's own inputs: what it gives is off by its own error.

A node without codes computes in float32: its own error is roundings of the last bit. One with codes
is off by about the step of its format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deepmnn.formats import BLOCK_ROWS, named
from deepmnn.graph.ir import Graph
from deepmnn.graph.signatures import caches_written
from deepmnn.inspect.check.line import Line
from deepmnn.inspect.compare.attributes import AttributeDifference
from deepmnn.inspect.compare.compare import Compared
from deepmnn.inspect.compare.difference import Difference, percent
from deepmnn.inspect.compare.origin import between, nearest
from deepmnn.inspect.compare.weights import TensorDifference
from deepmnn.quant.recipe import RECIPES

EXACT_BOUND = 2e-5
"""Of a product with a matrix of floats, relative to the root mean square of what is wanted. Sound
ones have 1e-6: it grows with the columns."""

SHARP_BOUND = 3e-6
"""Of what is computed without matrices. Sound attention has 4e-7, all else 1e-7."""

STEPS = 8.0
"""Steps of a format, of 2^-bits each, that its rounding explains. Sound models take up to 4."""

CHOICE_BOUND = 0.01
"""Of choices of experts: where two scores are equal but for the last bit, either may win."""

MNN_FLOATS = 4e-3
"""Of a model of floats on MNN, whose embedding is float16. Sound ones have 1e-3 to 2e-3."""

GROWTH = 10.0
"""How many times its inputs' error a value's must be, where nodes cannot run alone."""

ROWS_RATIO = 5.0
"""How many times the usual error 16 rows of a matrix must have. Calibration corrects some rows for
what earlier matrices got wrong: sound ones have up to 2.3."""

NEAREST_RATIO = 1.7
"""The same where numbers were rounded to nearest: sound ones have up to 1.2."""

COLUMNS_RATIO = 5.0
"""How many times the usual error 16 columns of a value must have to be told of."""


@dataclass(frozen=True)
class Finding:
    """Something that rounding does not explain.

    Attributes:
        kind: "program", "attribute", "weight" or "value".
        place: the node, tensor or value, by its name.
        error: relative; 0 for an attribute.
        bound: what would be explained.
        text: what was found, for people.
    """

    kind: str
    place: str
    error: float
    bound: float
    text: str


def attribute_findings(found: Iterable[AttributeDifference]) -> list[Finding]:
    """One for each node."""
    by_node: dict[str, list[AttributeDifference]] = {}
    for each in found:
        by_node.setdefault(each.node, []).append(each)
    return [
        Finding("attribute", node, 0.0, 0.0, f"{each[0].op}: {'; '.join(map(str, each))}")
        for node, each in by_node.items()
    ]


def program_findings(program: Line) -> list[Finding]:
    """That program.bin, which the engine runs, is not the graph that is compared."""
    if program.verdict != "wrong":
        return []
    text = f"{program.found}; expected {program.expected}. {program.advice}"
    return [Finding("program", program.name, 0.0, 0.0, text)]


def weight_findings(
    found: Iterable[TensorDifference],
    formats_of: Callable[[str], Iterable[str]],
    ratio: float = ROWS_RATIO,
) -> Iterator[Finding]:
    """Tensors that are further off than their formats explain.

    formats_of: those in which a tensor is stored, in the model and in the reference. ratio: of
    errors of rows that needs an explanation.
    """
    for each in found:
        bound = max(map(bound_of, formats_of(each.name)))
        rows = f"rows {each.rows} to {each.rows + BLOCK_ROWS - 1}"
        worst, usual = percent(each.rows_error), percent(each.usual_error)
        apart = each.rows_error > max(ratio * each.usual_error, EXACT_BOUND)
        if not each.error <= bound:
            text = f"off by {percent(each.error)}, rounding explains {percent(bound)}"
            if each.instead:
                text += f"; it is the reference's {each.instead}"
            elif apart:
                text += f"; {rows} by {worst}, others by {usual}"
            yield Finding("weight", each.name, each.error, bound, text)
        elif apart:
            text = f"{rows} are off by {worst}, others by {usual}"
            yield Finding("weight", each.name, each.rows_error, ratio * each.usual_error, text)


def value_findings(
    compared: Sequence[Compared],
    bounds: Mapping[str, float],
    naive: Graph,
    vanished: Mapping[str, Sequence[str]],
    inside: Sequence[Finding] = (),
) -> Iterator[Finding]:
    """Values with an error of their own that rounding does not explain.

    Args:
        compared: in order.
        bounds: of each (`value_bounds`).
        naive: the level-0 graph.
        vanished: pass → values that it leaves out.
        inside: what was found of these by the level-0 graph.
    """
    ancestors, makers = nearest(naive, [each.name for each in compared]), naive.producers()
    errors = {each.name: each.difference.error for each in compared}
    for each in compared:
        bound = bounds[each.name]
        if each.alone is not None:
            found, error, words = each.alone, each.alone.error, "on the reference's own inputs"
        else:
            before = max((errors[name] for name in ancestors[each.name]), default=0.0)
            found, error = each.difference, each.difference.error
            bound = max(bound, GROWTH * before)
            words = f"what it reads by {percent(before)}"
        if not error <= bound:
            text = _value_text(makers[each.name].op, found, bound, words)
            inner = between(naive, each.name, {other.name for other in compared})
            places = [finding.place for finding in inside if finding.place in inner]
            if places:
                text += f"; {places[0]} is in it"
            elif each.as_written is not None and each.as_written.error <= bound < error:
                passes = [name for name, gone in vanished.items() if inner.intersection(gone)]
                suspects = [*passes, "the kernel"]
                text += f"; the level-0 graph gives the right ones: suspect {' or '.join(suspects)}"
            yield Finding("value", each.name, error, bound, text)


def _value_text(op: str, found: Difference, bound: float, words: str) -> str:
    text = f"{op}: off by {percent(found.error)}, {words}; rounding explains {percent(bound)}"
    if found.expert is not None:
        text += f"; most where expert {found.expert} is chosen"
    if found.onset is not None:
        text += f"; from position {found.onset} on"
    if found.block_ratio > COLUMNS_RATIO:
        last = found.block + BLOCK_ROWS - 1
        text += (
            f"; most in columns {found.block} to {last}, {found.block_ratio:.0f} times the usual"
        )
    elif np.isinf(found.error):
        text += f"; {found.found} at row {found.row}, column {found.column}"
    return text


def value_bounds(graphs: Sequence[tuple[Graph, float]], naive: Graph) -> dict[str, float]:
    """Value → the error of its own that roundings explain.

    graphs: those that compute it, each with what rounding its cache explains.
    """
    known = set.intersection(*(set(graph.values) for graph, _ in graphs))
    tables = [bounds_of(graph, known, rest) for graph, rest in graphs]
    found = {}
    for name, value in naive.values.items():
        least = CHOICE_BOUND if value.dtype == "i32" else SHARP_BOUND
        found[name] = max([least, *(table.get(name, least) for table in tables)])
    return found


def bounds_of(graph: Graph, known: Collection[str], rest: float) -> dict[str, float]:
    """Value → what the formats explain of all nodes between it and the known values before it.

    rest: what else explains errors of whatever reads or writes a cache.
    """
    kept, found = set(known), dict[str, float]()
    for node in graph.nodes:
        formats = [graph.weights[name].format for name in node.weights]
        bound = max(
            (bound_of(format) for format in formats if named(format).is_matrix), default=0.0
        )
        inner = [found[name] for name in node.inputs if name in found and name not in kept]
        cached = rest if caches_written(node) else 0.0
        found.update(dict.fromkeys(node.outputs, max([bound, cached, SHARP_BOUND, *inner])))
    return found


def bound_of(format: str) -> float:
    """Relative error that storing numbers in a format explains."""
    kind = named(format)
    if kind.levels:
        return STEPS * 2.0**-kind.bits
    return EXACT_BOUND if kind.bits == 32 else STEPS * 2.0**-9  # of bf16's 8 bits, and half a step


def folder_bound(quant: str) -> float:
    """Relative error that MNN's way to store a recipe's weights explains: floats as float16, codes
    as blocks of 8 or 4 bits, which it multiplies with activations of 8.
    """
    if quant in RECIPES:
        rules = RECIPES[quant].rules
        bounds = [bound_of(rule.format) for rule in rules]
        return max([MNN_FLOATS, *bounds])
    found = re.fullmatch(r"(\d) bits", quant)
    return STEPS * 2.0 ** -int(found[1]) if found else 1.0
