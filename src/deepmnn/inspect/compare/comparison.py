"""Two models compared: everything that is measured, and what it means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from deepmnn import models
from deepmnn.artifact.restored import RestoredSource
from deepmnn.backends.base import I32
from deepmnn.conversion.naive import untied
from deepmnn.errors import RequestError
from deepmnn.formats import FORMATS, named
from deepmnn.graph.ir import Graph
from deepmnn.graph.levels import PassResult, optimize
from deepmnn.graph.signatures import read_weights
from deepmnn.graph.tensors import tensors
from deepmnn.inspect.compare.attributes import attribute_differences
from deepmnn.inspect.compare.compare import (
    Compared,
    Inside,
    Values,
    compare_values,
    layers_of,
)
from deepmnn.inspect.compare.effects import Calm, Effect, Effects
from deepmnn.inspect.compare.findings import (
    NEAREST_RATIO,
    ROWS_RATIO,
    Finding,
    attribute_findings,
    bound_of,
    folder_bound,
    program_findings,
    value_bounds,
    value_findings,
    weight_findings,
)
from deepmnn.inspect.compare.origin import origins
from deepmnn.inspect.compare.weights import TensorDifference, compare_weights
from deepmnn.inspect.sides.graphs import as_written, truth
from deepmnn.inspect.sides.staged import StagedSide
from deepmnn.inspect.sides.subject import Subject
from deepmnn.measure.reference import check_comparable
from deepmnn.quant.divergence import Divergence

Progress = Callable[[int, int, str], None]
"""Called with (done, in all, what)."""

SUSPICIOUS = 0.5
"""An error of a tensor from which on it may be another one."""

_ACTIVATIONS = next(f.name for f in FORMATS.values() if f.is_quantized and f.bits == 8)
"""The format of weights that is as coarse as activations are where weights have codes."""

CACHE_BOUNDS = {"f32": 0.0, "bf16": 2.0**-6, "int8": 0.05}
"""What rounding keys and values explains of an attention's error."""


@dataclass(frozen=True)
class Comparison:
    """What comparing a model with a reference gives.

    Attributes:
        model, reference: what they are, in a few words.
        layers: decoder layers.
        tokens, samples: that were compared.
        values: that both tell, in the order of the level-0 graph.
        inside: values of fused nodes, as the model's numbers give them in the level-0 graph on the
            reference's inputs (`Values.inside`).
        vanished: pass → values of the level-0 graph that it leaves out of the model's.
        hidden: other values that one of the two does not tell.
        divergence: of the predictions; None where one of them tells none.
        effects: of each layer on the predictions; empty where they were not asked for, or cannot be
            measured.
        calm: their sum, and the whole, of most tokens; None where there are no effects.
        weights: tensor by tensor; empty where one model's are not read.
        findings: what rounding does not explain, the first in the model's order first.
    """

    model: str
    reference: str
    layers: int
    tokens: int
    samples: int
    values: tuple[Compared, ...]
    inside: tuple[Compared, ...]
    vanished: dict[str, tuple[str, ...]]
    hidden: tuple[str, ...]
    divergence: Divergence | None
    effects: tuple[Effect, ...]
    calm: Calm | None
    weights: tuple[TensorDifference, ...]
    findings: tuple[Finding, ...]


def compare(
    model: Subject,
    reference: Subject,
    samples: Sequence[I32],
    *,
    weights: bool = True,
    effects: bool = True,
    sketches: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Compares two opened models of one architecture and size.

    Args:
        samples: token ids, each a sequence of its own.
        weights: compares their tensors, too.
        effects: measures what each layer does to the predictions. It takes about as many runs of
            the model as that has layers.
        sketches: keeps how the numbers of each value are distributed.
        progress: called after each layer and tensor.

    Raises RequestError: two vocabularies, or two architectures or sizes, or ids outside the
    vocabulary; and what the models raise while they run.
    """
    naive = check_pair(model, reference)
    bounds = _bounds(model, reference, naive)
    inner = as_written(model)
    watch = _effects(model, reference, samples, progress) if effects else None
    found = compare_values(
        model.side,
        reference.side,
        naive,
        samples,
        progress,
        watch.watch if watch is not None else None,
        None if inner is None else Inside(inner, bounds),
        sketches,
    )
    for values in (found.compared, found.inside):
        known = origins(naive, [each.name for each in values], model.formats_told, bounds)
        for each in values:
            each.origin = known[each.name]
    tensors = _weights(model, reference, progress) if weights else []
    optimized, vanished = _optimized(model)
    gone = {name for names in vanished.values() for name in names}
    return Comparison(
        model=model.side.label,
        reference=reference.side.label,
        layers=max(layers_of(naive).values()),
        tokens=sum(map(len, samples)),
        samples=len(samples),
        values=tuple(found.compared),
        inside=tuple(found.inside),
        vanished=vanished,
        hidden=tuple(name for name in found.missing if name not in gone),
        divergence=found.divergence,
        effects=tuple(watch.found) if watch is not None else (),
        calm=watch.calm if watch is not None else None,
        weights=tuple(tensors),
        findings=tuple(
            _findings(model, reference, naive, found, tensors, bounds, optimized, vanished)
        ),
    )


def check_pair(model: Subject, reference: Subject) -> Graph:
    """The level-0 graph of two models that can be compared. Raises RequestError."""
    check_comparable(model, reference)
    ours, theirs = (_naive(subject) for subject in (model, reference))
    here, there = (max(layers_of(graph).values()) for graph in (ours, theirs))
    if here != there:
        raise _other(f"{here} layers", f"{there}")
    for name in ours.values.keys() & theirs.values.keys():
        mine, other = ours.values[name].width, theirs.values[name].width
        if mine != other:
            raise _other(f"{name} of {mine} numbers", f"{other}")
    here_only, there_only = (
        sorted(read_weights(one) - read_weights(other))
        for one, other in ((ours, theirs), (theirs, ours))
    )
    if here_only or there_only:
        found, wanted = (names[0] if names else "none besides" for names in (here_only, there_only))
        raise _other(f"the weight {found} ({ours.name})", f"{wanted} ({theirs.name})")
    return theirs


def _other(found: str, wanted: str) -> RequestError:
    return RequestError(
        f"the model has {found}, the reference {wanted}",
        "two models of one architecture and size",
        "Compare a model with the checkpoint that it was made of.",
    )


def _naive(subject: Subject) -> Graph:
    config = subject.config if subject.tensors is None else untied(subject.tensors)
    return models.build(config)


def _effects(
    model: Subject, reference: Subject, samples: Sequence[I32], progress: Progress | None
) -> Effects | None:
    known = truth(reference, model)
    if known is None or not isinstance(model.side, StagedSide):
        return None
    return Effects(model.side, known, samples, progress)


def _optimized(model: Subject) -> tuple[Graph | None, dict[str, tuple[str, ...]]]:
    """The graph that the passes of this version make for a model, and pass → the values that are
    gone after it; None and nothing of a model without a graph of ours.
    """
    if model.level is None:
        return None, {}
    naive = _naive(model)
    left, vanished = list(naive.values), dict[str, tuple[str, ...]]()

    def note(graph: Graph, result: PassResult) -> None:
        gone = tuple(name for name in left if name not in graph.values)
        if gone:
            vanished[result.name] = gone
            left[:] = [name for name in left if name in graph.values]

    graph, _ = optimize(naive, model.level, disabled=model.options.disabled, on_pass=note)
    return graph, vanished


def _weights(
    model: Subject, reference: Subject, progress: Progress | None
) -> list[TensorDifference]:
    """Of all tensors; none where both have the same ones, or one model's cannot be read."""
    ours, theirs = model.tensors, reference.tensors
    if ours is None or theirs is None or _same_numbers(model, reference):
        return []
    return list(compare_weights(ours, theirs, SUSPICIOUS, progress))


def _same_numbers(model: Subject, reference: Subject) -> bool:
    """Whether both run the very same files, whose roundings are no difference of theirs."""
    ours, theirs = model.tensors, reference.tensors
    if not isinstance(ours, RestoredSource) or not isinstance(theirs, RestoredSource):
        return False
    return ours.paths == theirs.paths


def _as_activations(graph: Graph) -> Graph:
    """Weights of codes as coarse as activations: all that rounds where the codes are the same."""
    made = graph.copy()
    for weight in made.weights.values():
        if named(weight.format).levels:
            weight.format = _ACTIVATIONS
    return made


def _bounds(model: Subject, reference: Subject, naive: Graph) -> dict[str, float]:
    """The error of its own that roundings explain, of every value."""
    graphs = [(_stored_as(naive, (model, reference)), 0.0)]
    for subject in (model, reference):
        if isinstance(subject.side, StagedSide):
            graphs.append((subject.side.graph, CACHE_BOUNDS[subject.options.kv_dtype]))
    if _same_numbers(model, reference):
        graphs = [(_as_activations(graph), rest) for graph, rest in graphs]
    least = max((folder_bound(s.quant) for s in (model, reference) if s.quant), default=0.0)
    return {name: max(bound, least) for name, bound in value_bounds(graphs, naive).items()}


def _stored_as(naive: Graph, subjects: Sequence[Subject]) -> Graph:
    """The level-0 graph, each weight in the coarsest format that one of the models stores it in."""
    graph = naive.copy()
    for weight in graph.weights.values():
        formats = {
            format
            for tensor in tensors(weight.expr)
            for subject in subjects
            for format in subject.formats(tensor.name)
        }
        weight.format = max(formats, key=bound_of)
    return graph


def _findings(
    model: Subject,
    reference: Subject,
    naive: Graph,
    found: Values,
    weights: Sequence[TensorDifference],
    bounds: Mapping[str, float],
    optimized: Graph | None,
    vanished: Mapping[str, Sequence[str]],
) -> list[Finding]:
    made: list[Finding] = []
    if model.program is not None:
        made += program_findings(model.program)
    if model.options.as_it_is and isinstance(model.side, StagedSide) and optimized is not None:
        made += attribute_findings(attribute_differences(model.side.graph, optimized))
    ratio = NEAREST_RATIO if model.is_nearest else ROWS_RATIO
    made += weight_findings(
        weights, lambda name: model.formats(name) | reference.formats(name), ratio
    )
    inside = list(value_findings(found.inside, bounds, naive, {}))
    values = [*inside, *value_findings(found.compared, bounds, naive, vanished, inside)]
    order = {name: at for at, name in enumerate(naive.values)}
    return [*made, *sorted(values, key=lambda finding: order[finding.place])]
