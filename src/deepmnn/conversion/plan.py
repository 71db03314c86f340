"""What a conversion will write, before anything is read or written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from deepmnn.artifact.shards import Shard, locate, plan_shards
from deepmnn.backends.cpu.lower import lower
from deepmnn.backends.cpu.pieces import Pieces
from deepmnn.conversion.naive import naive_parts
from deepmnn.formats import named
from deepmnn.graph.draft import Parts, optimize_parts
from deepmnn.graph.ir import Graph, Weight
from deepmnn.graph.levels import MAX_LEVEL, OnPass, PassResult
from deepmnn.graph.passes.memory_plan import MemoryPlan, plan_memory
from deepmnn.quant.recipe import Recipe, Rule, apply
from deepmnn.source.entry import FLOATS
from deepmnn.source.source import Source
from deepmnn.source.tensor_names import HEAD

MEMORY_REUSE_LEVEL = 3

_KEPT_ROLES = ("linear", "expert", "lm_head", "embedding")

_LEFTOVERS = re.compile(
    r"\.(rotary_emb\.inv_freq|masked_bias|position_ids)$"
    r"|\.(input|output|[qkv]|kv|activation|prob)_(scale|scale_ub|zero_point)$"
)
"""Tensors that no model needs: buffers that follow from config.json, and scales of activations."""


@dataclass(frozen=True)
class Plan:
    """A conversion that `write` can carry out.

    Attributes:
        source: where the numbers come from.
        recipe: which weight gets which format.
        optimize_level: 0 to 3.
        naive: the graph as the model file builds it.
        graph: the optimised graph, every weight with its format.
        passes: what each pass did.
        draft: the optimised graph of the draft part (graph/draft.py), where there is one.
        weights: the weights of both in the order in which they are stored.
        shards: the weight files.
        locations: weight → where it lies in them, if no bytes of it are stored elsewhere.
        memory: where activations live. draft_memory: those of the draft part.
        parameters: numbers in all tensors that the model reads.
        dropped: weights that config.json promises and the source lacks (of a draft part).
        unused: what the source has and the model does not read: adapters, then tensors of layers
            that it does read (biases, say), then others.
        idle: patterns of the recipe that choose no weight's format; roles are left out.
    """

    source: Source
    recipe: Recipe
    optimize_level: int
    naive: Graph
    graph: Graph
    draft: Graph | None
    passes: tuple[PassResult, ...]
    weights: tuple[Weight, ...]
    shards: tuple[Shard, ...]
    locations: dict[str, Pieces]
    memory: MemoryPlan
    draft_memory: MemoryPlan | None
    parameters: int
    dropped: tuple[str, ...]
    unused: tuple[str, ...]
    idle: tuple[str, ...]

    @property
    def model_type(self) -> str:
        """As config.json has it."""
        return str(self.source.config["model_type"])

    @property
    def nodes_level_0(self) -> int:
        """Nodes of the graph as the model file builds it."""
        return len(self.naive.nodes)

    @property
    def nodes(self) -> int:
        """Nodes of the optimised graph."""
        return len(self.graph.nodes)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights; equal ones, which are stored once, count for each."""
        return sum(weight.nbytes for weight in self.weights)

    @property
    def draft_weights(self) -> tuple[Weight, ...]:
        """Those that the draft part alone reads."""
        return tuple(weight for weight in self.weights if weight.name not in self.graph.weights)

    def program(self, locations: Mapping[str, Pieces]) -> bytes:
        """program.bin, with the weights where they lie in the shards. Raises as `lower`."""
        names = [shard.file for shard in self.shards]
        draft = None
        if self.draft is not None and self.draft_memory is not None:
            draft = self.draft, self.draft_memory
        return lower(self.graph, self.memory, locations, names, draft)


def plan(
    source: Source,
    recipe: Recipe,
    optimize_level: int = MAX_LEVEL,
    keep: bool = True,
    on_pass: OnPass | None = None,
) -> Plan:
    """Plans the conversion of a source.

    Reads no numbers but those of tensors that look equal, to store them once, and of biases that
    the model has no place for. keep: where a recipe
    asks for codes, and the source has codes of no more bits, these stay as they are. on_pass: as
    for `optimize`.

    Raises ConfigError, RequestError (the level), TensorNotFoundError or CheckpointError (tensors
    that do not fit config.json).
    """
    naive, dropped = naive_parts(source)
    shapes = naive.shapes
    used: set[Rule] = set()
    made, passes = optimize_parts(
        naive,
        optimize_level,
        source,
        choose_formats=lambda graph: used.update(
            choose_formats(graph, recipe, source if keep else None)
        ),
        on_pass=on_pass,
    )
    weights = weight_order(made)
    reuse = optimize_level >= MEMORY_REUSE_LEVEL
    shards = plan_shards((weight.name, weight.nbytes) for weight in weights)
    return Plan(
        source=source,
        recipe=recipe,
        optimize_level=optimize_level,
        naive=naive.main,
        graph=made.main,
        draft=made.draft,
        passes=tuple(passes),
        weights=tuple(weights),
        shards=tuple(shards),
        locations=locate(shards),
        memory=plan_memory(made.main, reuse),
        draft_memory=plan_memory(made.draft, reuse) if made.draft else None,
        parameters=sum(math.prod(shape) for shape in shapes.values()),
        dropped=dropped,
        unused=unused(source, shapes),
        idle=tuple(r.pattern for r in recipe.rules if not (r.is_role or r in used)),
    )


def choose_formats(graph: Graph, recipe: Recipe, source: Source | None) -> set[Rule]:
    """Gives weights the recipe's formats, in place, or those of the source's own codes where these
    have no more bits; the rules that chose one. source: None where no codes are kept.

    MLA's up-projections are multiplied in two ways, which only our own formats are.
    """
    used = apply(graph, recipe)
    for weight in graph.weights.values():
        chosen = named(weight.format)
        if source is None or weight.role not in _KEPT_ROLES or not chosen.is_quantized:
            continue
        kept = weight.expr.kept_format(source)
        if kept is not None and named(kept).bits <= chosen.bits:
            weight.format = kept
    return used


def weight_order(made: Parts) -> list[Weight]:
    """The weights as nodes first read them, so that what runs together lies together; the draft
    part's own last.
    """
    nodes = [*made.main.nodes, *(made.draft.nodes if made.draft else ())]
    weights = made.weights
    return [weights[name] for name in dict.fromkeys(name for n in nodes for name in n.weights)]


def unused(source: Source, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """What the model does not read, what changes it most first; but for biases of zeros, which
    AutoGPTQ wrote for every layer.
    """
    read = {name.rpartition(".")[0] for name in shapes}
    tied = HEAD not in shapes
    left = [
        name
        for name in source.names()
        if name not in shapes and not _LEFTOVERS.search(name) and not (tied and name == HEAD)
    ]
    left = [name for name in left if not (name.endswith(".bias") and _is_zero(source, name))]
    left.sort(key=lambda name: name.rpartition(".")[0] not in read)
    return (*source.left_out(), *left)


def _is_zero(source: Source, name: str) -> bool:
    """Whether a bias is all zeros; it is read for that, unless it is stored as integers."""
    if source.stored_as(name) not in FLOATS or len(source.shape(name)) != 1:
        return False
    return not source.read(name).any()
