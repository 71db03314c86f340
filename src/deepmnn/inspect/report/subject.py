"""The model that a page is about, whatever form it is in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from deepmnn import models
from deepmnn.artifact.reader import Artifact
from deepmnn.artifact.restored import RestoredSource
from deepmnn.conversion.convert import plan_conversion
from deepmnn.conversion.plan import MEMORY_REUSE_LEVEL, Plan, weight_order
from deepmnn.conversion.report.facts import WeightFacts
from deepmnn.conversion.report.stored import origin
from deepmnn.exporters.mnn.folder import MnnFolder, is_exported
from deepmnn.graph.caches import kept_width
from deepmnn.graph.ir import Graph, Weight
from deepmnn.graph.levels import optimize
from deepmnn.graph.passes.memory_plan import MemoryPlan, plan_memory
from deepmnn.graph.tensors import tensor_shapes
from deepmnn.graph.workload import Workload
from deepmnn.inspect.report.blocks import places_named
from deepmnn.inspect.report.trace import Snapshot, Step, Trace
from deepmnn.models import read_config
from deepmnn.quant.recipe import Recipe
from deepmnn.source.open import has_weights, is_converted
from deepmnn.source.source import Source


@dataclass(frozen=True)
class Subject:
    """A model.

    Attributes:
        form: what it is, in a sentence: "As it would be converted.".
        config: config.json.
        quant: the name of its recipe.
        recipe: as JSON has it; None where it is not known.
        optimize_level: 0 to 3.
        begin: the graph at level 0.
        steps: the passes that run.
        graph: the optimised graph.
        weights: how they are stored; none where that is not known.
        nbytes: of all weights, stored.
        source_nbytes: of the checkpoint's tensors; 0 where it is not known.
        cache_width: elements of the KV cache for each token.
        files: name → bytes, of a model whose weights are not known one by one.
        draft_parameters: numbers in tensors that its draft part alone reads (graph/draft.py).
        kv_dtypes: how its KV cache may be stored; None: in every way.
    """

    form: str
    config: Mapping[str, Any]
    quant: str
    recipe: Mapping[str, Any] | None
    optimize_level: int
    begin: Snapshot
    steps: Sequence[Step]
    graph: Graph
    weights: tuple[WeightFacts, ...]
    nbytes: int
    source_nbytes: int
    cache_width: int
    files: Mapping[str, int]
    draft_parameters: int = 0
    kv_dtypes: tuple[str, ...] | None = None

    @property
    def model_type(self) -> str:
        """As config.json has it."""
        return str(self.config["model_type"])

    @property
    def context_length(self) -> int:
        """The longest sequence that the model is made for, in tokens."""
        return read_config(self.config).context_length

    @cached_property
    def parameters(self) -> int:
        """Numbers in all tensors that the model reads, those of a draft part too."""
        main = sum(map(math.prod, tensor_shapes(self.begin.graph).values()))
        return main + self.draft_parameters

    @cached_property
    def active(self) -> int:
        """Numbers of matrices that a token is multiplied by: of routed experts, the chosen ones."""
        return round(Workload.of(self.begin.graph).macs(1, 0, 1))

    @property
    def draft_layers(self) -> str:
        """Layers of the draft part: "layer 61"; "" for none."""
        own = {weight.layer for weight in self.weights if weight.name not in self.graph.weights}
        found = [layer for layer in own if layer is not None]
        return places_named(found) if found else ""

    @cached_property
    def memory(self) -> MemoryPlan | None:
        """Where activations live; None where another program plans that."""
        if self.files:
            return None
        return plan_memory(self.graph, reuse=self.optimize_level >= MEMORY_REUSE_LEVEL)


@dataclass(frozen=True)
class Opened:
    """A subject, and of a converted model the files and the checkpoint that it was made of."""

    subject: Subject
    artifact: Artifact | None = None
    restored: RestoredSource | None = None


def opened(model: Path | Artifact | MnnFolder) -> Opened | None:
    """A model that is converted, or exported for MNN; None for a path that is neither.

    Raises ArtifactError for one that is damaged, or whose graph other passes made.
    """
    if isinstance(model, Path):
        if is_exported(model):
            model = MnnFolder.open(model)
        elif is_converted(model):
            model = Artifact.open(model)
        else:
            return None
    if isinstance(model, MnnFolder):
        return Opened(_of_folder(model))
    trace = Trace()
    restored = RestoredSource(model, trace.add)
    return Opened(_of_artifact(model, restored, trace), model, restored)


def planned(path: Path, quant: str | Recipe) -> Opened:
    """A checkpoint, or config.json alone, as it would be converted; raises as `convert`."""
    trace = Trace()
    drawn = not has_weights(path)
    plan = plan_conversion(path, quant, random_weights=drawn, on_pass=trace.add)
    return Opened(_of_plan(plan, trace))


def _of_artifact(artifact: Artifact, restored: RestoredSource, trace: Trace) -> Subject:
    """trace: what happened to the graph when the checkpoint was restored."""
    parts, manifest = artifact.parts(), artifact.manifest
    graph, main = parts.main, set(tensor_shapes(restored.naive))
    begin = trace.begin(restored.naive)
    return Subject(
        "A converted model.",
        restored.config,
        manifest["quant"],
        manifest["recipe"],
        manifest["optimize_level"],
        begin,
        trace.steps(begin),
        graph,
        _facts(weight_order(parts)),
        sum(weight.nbytes for weight in parts.weights.values()),
        0,
        kept_width(graph.caches),
        {},
        sum(math.prod(restored.shape(name)) for name in set(restored.names()) - main),
    )


def _of_plan(plan: Plan, trace: Trace) -> Subject:
    """trace: what happened to the graph when it was planned."""
    begin = trace.begin(plan.naive)
    return Subject(
        f"A checkpoint, as a conversion to {plan.recipe.name} would store it."
        if plan.source.nbytes()
        else f"config.json alone, as a conversion to {plan.recipe.name} would store its weights.",
        plan.source.config,
        plan.recipe.name,
        plan.recipe.to_json(),
        plan.optimize_level,
        begin,
        trace.steps(begin),
        plan.graph,
        _facts(plan.weights, plan.source),
        plan.nbytes,
        plan.source.nbytes(),
        kept_width(plan.graph.caches),
        {},
        plan.parameters - sum(map(math.prod, tensor_shapes(plan.naive).values())),
    )


def _of_folder(folder: MnnFolder) -> Subject:
    """The graph is what the level makes of config.json: MNN's network says it in other ops."""
    level, trace = int(folder.manifest["optimize_level"]), Trace()
    naive = models.build(folder.config)
    graph, _ = optimize(naive, level, on_pass=trace.add)
    begin = trace.begin(naive)
    files = {name: int(record["nbytes"]) for name, record in folder.manifest["files"].items()}
    weights = {name: size for name, size in files.items() if _holds_weights(name)}
    return Subject(
        "A folder exported for MNN.",
        folder.config,
        str(folder.manifest["quant"]),
        None,
        level,
        begin,
        trace.steps(begin),
        graph,
        (),
        sum(weights.values()),
        0,
        folder.cache_width,
        files,
        kv_dtypes=("f32",),
    )


def _holds_weights(name: str) -> bool:
    return name.endswith((".weight", ".bin"))


def _facts(weights: Iterable[Weight], source: Source | None = None) -> tuple[WeightFacts, ...]:
    return tuple(WeightFacts.of(weight, origin(weight, source)) for weight in weights)
