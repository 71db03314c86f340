"""Checkpoint → artifact: build the graph, optimise it, quantise and write one weight at a time."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from deepmnn import formats, models
from deepmnn.artifact.manifest import CONFIG, GRAPH, PROGRAM
from deepmnn.artifact.writer import ArtifactWriter
from deepmnn.backends.cpu.lower import lower
from deepmnn.errors import CheckpointError, RequestError
from deepmnn.graph.ir import Graph, Weight
from deepmnn.graph.levels import PassResult, optimize
from deepmnn.graph.passes.memory_plan import plan_memory
from deepmnn.graph.serialize import to_json
from deepmnn.graph.weights import Concat, Interleave, Tensor, TensorSource
from deepmnn.quant import recipes
from deepmnn.quant.pack import pack_weight
from deepmnn.quant.random_bytes import draw
from deepmnn.source.checkpoint import (
    Checkpoint,
    config_path,
    open_checkpoint,
    read_config,
)
from deepmnn.source.json_file import read_small
from deepmnn.source.random import RandomSource, tensor_shapes, tensors

COPIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files that go into the artifact as they are, where the checkpoint has them."""

MEMORY_REUSE_LEVEL = 3

Progress = Callable[[int, int, str], None]
"""Called after each weight with (bytes written, bytes in all, the weight's name)."""


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion did.

    Attributes:
        path: the artifact.
        source_nbytes: bytes of the checkpoint's tensors (0 for random weights).
        nbytes: bytes of the artifact's weights.
        nodes_level_0, nodes: nodes of the graph as the model file builds it, and as converted.
        passes: what each pass did.
        dropped: weights that config.json promises and the checkpoint lacks (unused MTP layers).
        seconds: time taken.
    """

    path: Path
    model_type: str
    quant: str
    optimize_level: int
    parameters: int
    source_nbytes: int
    nbytes: int
    nodes_level_0: int
    nodes: int
    passes: tuple[PassResult, ...]
    dropped: tuple[str, ...]
    seconds: float


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    quant: str = "w4",
    optimize_level: int = 3,
    *,
    config: str | os.PathLike[str] | None = None,
    group_size: int | None = None,
    random_weights: bool = False,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ConvertReport:
    """Converts a checkpoint to an artifact that `deepmnn.load` runs.

    Needs memory for one weight at a time. Written to a temporary directory and renamed when
    complete: interrupted at any moment it leaves nothing that loads.

    Args:
        source: a checkpoint directory, or a PyTorch file (.pt, .pth, .bin, .ckpt); with
            random_weights a directory with config.json, or that file itself, is enough.
        out: the directory to create.
        quant: "fp32", "bf16", "w8" or "w4" (quant/recipes.py).
        optimize_level: 0 (the graph as the paper writes it) to 3.
        config: a config.json, or its directory, to use instead of the one beside the weights.
        group_size: columns per scale in w4: 32, 64 or 128; by default 64, or 32 where that wastes
            less. What the recipe stores as w8 has one scale for 256 columns.
        random_weights: weights drawn at random, for benchmarks; in w8 and w4 most of them are drawn
            in their stored form, so another optimisation level is another model.
        seed: of the random weights.
        overwrite: replaces an artifact at `out`.
        progress: called after each weight.

    Raises CheckpointError, ConfigError, RequestError (quant, level, group_size or seed),
    MissingDependencyError (PyTorch files need torch) or StorageError.
    """
    began = time.monotonic()
    recipes.check_recipe(quant)
    if type(seed) is not int or seed < 0:
        raise RequestError(f"seed is {seed!r:.80}", "an integer of at least 0")
    checkpoint = None if random_weights else open_checkpoint(source, config)
    fields = read_config(config or source) if checkpoint is None else checkpoint.config
    naive = models.build(fields)
    dropped = () if checkpoint is None else _match(naive, checkpoint)
    shapes = tensor_shapes(naive)
    tensor_source = RandomSource(shapes, seed) if checkpoint is None else checkpoint
    graph, passes = optimize(naive, optimize_level, checkpoint)
    recipes.apply(graph, quant)
    if group_size is not None:
        _regroup(graph, quant, group_size)
    order = weight_order(graph)
    with ArtifactWriter(out, overwrite) as writer:
        locations = writer.plan_weights([(w.name, w.nbytes) for w in order])
        plan = plan_memory(graph, reuse=optimize_level >= MEMORY_REUSE_LEVEL)
        writer.add_file(PROGRAM, lower(graph, plan, locations, writer.shard_names))
        writer.add_file(GRAPH, to_json(graph).encode())
        config_file = config_path(source, (config or source) if random_weights else config)
        for name, data in _copied_files(Path(source), config_file):
            writer.add_file(name, data)
        drawn_seed = seed if random_weights else None
        nbytes = _write_weights(writer, order, tensor_source, drawn_seed, progress)
        writer.commit(
            {
                "model_type": fields["model_type"],
                "quant": quant,
                "optimize_level": optimize_level,
                "nodes_level_0": len(naive.nodes),
                "nodes": len(graph.nodes),
                "passes": [asdict(result) for result in passes],
            }
        )
    return ConvertReport(
        path=Path(out),
        model_type=fields["model_type"],
        quant=quant,
        optimize_level=optimize_level,
        parameters=sum(math.prod(shape) for shape in shapes.values()),
        source_nbytes=0 if checkpoint is None else checkpoint.nbytes(),
        nbytes=nbytes,
        nodes_level_0=len(naive.nodes),
        nodes=len(graph.nodes),
        passes=tuple(passes),
        dropped=dropped,
        seconds=time.monotonic() - began,
    )


def _regroup(graph: Graph, quant: str, group_size: int) -> None:
    """Gives every w4 weight groups of that size. Raises RequestError."""
    weights = [weight for weight in graph.weights.values() if weight.format == "w4"]
    if not weights:
        raise RequestError(
            f"group_size {group_size} for {quant}",
            "w4",
            "w8 has one scale for 256 columns, fp32 and bf16 have none: leave it out.",
        )
    for weight in weights:
        formats.named(weight.format).check_group_size(group_size)
        weight.group_size = group_size


def weight_order(graph: Graph) -> list[Weight]:
    """The weights as nodes first read them, so that what runs together lies together; then the
    kept ones, which no node reads.
    """
    read = [name for node in graph.nodes for name in node.weights]
    return [graph.weights[name] for name in dict.fromkeys([*read, *graph.kept])]


def _write_weights(
    writer: ArtifactWriter,
    order: list[Weight],
    source: TensorSource,
    drawn_seed: int | None,
    progress: Progress | None,
) -> int:
    """Evaluates, packs and writes one weight after another; returns their bytes."""
    total, done, threads = sum(weight.nbytes for weight in order), 0, _cores()
    for weight in order:
        if drawn_seed is not None and _is_drawable(weight):
            packed = draw(weight, drawn_seed)
        else:
            packed = pack_weight(weight, weight.expr.read(source), threads)
        writer.write_weight(weight.name, packed)
        done += packed.nbytes
        if progress is not None:
            progress(done, total, weight.name)
    return done


def _is_drawable(weight: Weight) -> bool:
    """Whether random stored bytes are as good as stored random numbers.

    Not where zero rows inside the matrix matter, and not for the MLA projections, of which several
    are made of one tensor.
    """
    expr = weight.expr
    if weight.format not in recipes.QUANTISED or weight.role == "latent":
        return False
    if isinstance(expr, Interleave):
        return expr.parts[0].shape[0] % formats.BLOCK_ROWS == 0
    return isinstance(expr, Tensor | Concat)


def _match(graph: Graph, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Checks every tensor's presence and shape before anything is written.

    Published conversions often leave the MTP layers out and keep their count in config.json; if the
    checkpoint lacks a kept weight, all kept weights leave the graph. Returns their names.

    Raises TensorNotFoundError or CheckpointError.
    """
    dropped: tuple[str, ...] = ()
    kept = [tensor for name in graph.kept for tensor in tensors(graph.weights[name].expr)]
    if not all(tensor.name in checkpoint for tensor in kept):
        dropped, graph.kept = tuple(graph.kept), []
        for name in dropped:
            del graph.weights[name]
    for name, shape in tensor_shapes(graph).items():
        found = checkpoint.shape(name)
        if found != shape:
            raise CheckpointError(
                f"tensor {name!r} has shape {list(found)}",
                f"{list(shape)} from config.json",
                "Check that config.json belongs to these weights.",
            )
    return dropped


def _copied_files(source: Path, config: Path) -> Iterator[tuple[str, bytes]]:
    """config.json, and the tokenizer's and generation files that lie beside the weights, or beside
    config.json when there are none.
    """
    yield CONFIG, read_small(config, CheckpointError)
    for folder in (source if source.is_dir() else source.parent, config.parent):
        files = [folder / name for name in COPIED if (folder / name).is_file()]
        if files:
            yield from ((file.name, read_small(file, CheckpointError)) for file in files)
            return


def _cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
