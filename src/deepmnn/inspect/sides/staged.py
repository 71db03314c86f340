"""A graph run stage by stage, by the engine or by numpy: every value of every layer is seen."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from deepmnn.backends.base import I32
from deepmnn.backends.reference import Evaluator
from deepmnn.conversion.stage import LEAST_BLOCK, Stage, Stored, fresh_batch
from deepmnn.formats import F32
from deepmnn.graph.caches import block_size
from deepmnn.graph.ir import Graph, Weight
from deepmnn.graph.signatures import choices, is_view
from deepmnn.graph.stages import stages
from deepmnn.inspect.side import Layer
from deepmnn.inspect.sides.samples import check_samples

GIVEN = "given:"
"""In front of a value that a stage reads instead of computing it."""


class Runner(Protocol):
    """A stage that is ready to run."""

    def run(self, samples: Sequence[I32], inputs: Mapping[str, F32]) -> dict[str, NDArray[Any]]:
        """Every output of the stage, [tokens of all samples, width] each."""


OpenStage = Callable[[Graph, int, Path], Runner]
"""Takes a stage, the tokens of a step, and a directory for its files."""


def by_engine(stored: Stored, threads: int, isa: str, mla_form: str, kv_dtype: str) -> OpenStage:
    """Runs stages by the C++ engine. Arguments as of `Stage`."""

    def opened(part: Graph, tokens: int, directory: Path) -> Stage:
        return Stage(
            part,
            stored,
            tokens,
            directory,
            threads=threads,
            isa=isa,
            mla_form=mla_form,
            kv_dtype=kv_dtype,
        )

    return opened


def by_numpy(numbers: Callable[[Weight], F32], mla_form: str, kv_dtype: str) -> OpenStage:
    """Runs stages by the reference backend.

    numbers: a weight's, float32 of its shape. mla_form: "expanded" or "absorbed".
    """

    def opened(part: Graph, tokens: int, directory: Path) -> _NumpyStage:
        return _NumpyStage(part, numbers, mla_form, kv_dtype)

    return opened


class _NumpyStage:
    """A stage by the reference backend."""

    def __init__(
        self, part: Graph, numbers: Callable[[Weight], F32], mla_form: str, kv_dtype: str
    ) -> None:
        self._kv_dtype = kv_dtype
        self._evaluator = Evaluator(part, lambda name: numbers(part.weights[name]), mla_form)

    def run(self, samples: Sequence[I32], inputs: Mapping[str, F32]) -> dict[str, NDArray[Any]]:
        """See `Runner`."""
        size = block_size(self._evaluator.graph.caches, LEAST_BLOCK)
        batch, blocks = fresh_batch(samples, size)
        cache = self._evaluator.new_cache(blocks, size, self._kv_dtype)
        values = self._evaluator.values(cache, batch, inputs)
        return {name: values[name] for name in self._evaluator.graph.outputs}


class StagedSide:
    """A graph, whatever its size: memory holds the weights of one layer, and its values.

    Args:
        label: what it is, in a few words.
        graph: any optimisation level; weights have the formats in which they run.
        open_stage: makes a stage ready.
    """

    def __init__(self, label: str, graph: Graph, open_stage: OpenStage) -> None:
        self.label, self.graph = label, graph
        self.vocab_size = graph.values["logits"].width
        views = {output for node in graph.nodes if is_view(node) for output in node.outputs}
        self._seen = [name for node in graph.nodes for name in node.outputs if name not in views]
        self.parts = stages(graph, self._seen)
        self.open_stage = open_stage

    def layers(self, samples: Sequence[I32]) -> Iterator[Layer]:
        """Every value of the graph but views; see `Side`."""
        check_samples(samples, self.vocab_size)
        carried: Layer = {}
        for number, part in enumerate(self.parts):
            found = self._run(part, samples, carried)
            carried |= found
            later = {name for after in self.parts[number + 1 :] for name in after.inputs}
            carried = {name: value for name, value in carried.items() if name in later}
            yield found

    def reads(self, number: int) -> set[str]:
        """The values that enter a layer."""
        part = self.parts[number]
        return {name for name in part.inputs if _is_f32(part, name)}

    def alone(self, number: int, samples: Sequence[I32], known: Layer) -> Layer:
        """What the nodes of a layer compute, each from known values where there are such.

        So an error of its output is its own, not that of a node before it.

        Args:
            number: of the layer.
            samples: as of `layers`.
            known: values of the other model by name; all that the layer reads are among them.
        """
        part = given(self.parts[number], known)
        inputs = {
            name: known[name.removeprefix(GIVEN)] for name in part.inputs if _is_f32(part, name)
        }
        return self._run(part, samples, inputs)

    def from_layer(self, number: int, samples: Sequence[I32], entered: Layer) -> Layer:
        """What a layer computes from the values that enter it."""
        return self._run(self.parts[number], samples, entered)

    @contextmanager
    def ready(self, number: int, tokens: int) -> Iterator[Callable[[Sequence[I32], Layer], Layer]]:
        """A layer that is run several times, as `from_layer` runs it once.

        tokens: of a run, at most.
        """
        with _ready(self.parts[number], tokens, self.open_stage) as run:
            yield run

    def _run(self, part: Graph, samples: Sequence[I32], values: Layer) -> Layer:
        with _ready(part, sum(map(len, samples)), self.open_stage) as run:
            return run(samples, values)


@contextmanager
def _ready(
    part: Graph, tokens: int, open_stage: OpenStage
) -> Iterator[Callable[[Sequence[I32], Layer], Layer]]:
    with tempfile.TemporaryDirectory(prefix="deepmnn-stage-") as folder:
        stage = open_stage(part, tokens, Path(folder))

        def run(samples: Sequence[I32], values: Layer) -> Layer:
            inputs = {name: values[name] for name in part.inputs if _is_f32(part, name)}
            return stage.run(samples, inputs)

        yield run


def _is_f32(graph: Graph, name: str) -> bool:
    return graph.values[name].dtype == "f32"


def given(part: Graph, known: Collection[str]) -> Graph:
    """A stage whose nodes read known values from outside, under `GIVEN` names.

    What lies in the order of a choice of experts is left as it is: another model may have chosen
    the same ones in another order.
    """
    routed = choices(part)
    taken = {
        name for name in known if name in part.values and name not in routed and _is_f32(part, name)
    }
    # A view's data is its input's: what reads it reads that.
    sources = {
        output: node.inputs[0] for node in part.nodes if is_view(node) for output in node.outputs
    }

    def read(name: str) -> str:
        source = name
        while source in sources and source not in taken:
            source = sources[source]
        return f"{GIVEN}{source}" if source in taken else name

    nodes = [replace(node, inputs=tuple(map(read, node.inputs))) for node in part.nodes]
    made = Graph(
        part.name,
        [],
        list(part.outputs),
        nodes,
        dict(part.values),
        part.weights,
        part.caches,
    )
    produced = {name for node in nodes for name in node.outputs}
    wanted = dict.fromkeys(name for node in nodes for name in node.inputs if name not in produced)
    for name in wanted:
        plain = name.removeprefix(GIVEN)
        made.values[name] = replace(part.values[plain], name=name)
        made.inputs.append(name)
    return made
