"""The graphs of a source as its model file writes them, checked against its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepmnn import models
from deepmnn.errors import CheckpointError
from deepmnn.graph.draft import Parts
from deepmnn.graph.ir import Graph
from deepmnn.graph.tensors import tensor_shapes, tensors
from deepmnn.source.source import Source
from deepmnn.source.tensor_names import EMBEDDING, HEAD


def naive_parts(source: Source) -> tuple[Parts, tuple[str, ...]]:
    """The graphs of a source, every tensor's presence and shape checked; and the weights that
    config.json promises and the source lacks.

    Published conversions often leave the layers of multi-token prediction out and keep their number
    in config.json: without its tensors there is no draft part. An embedding or a head of its own
    may be missing; they are the main part's then.

    Raises ConfigError, TensorNotFoundError or CheckpointError.
    """
    config, dropped = untied(source), tuple[str, ...]()
    made = models.build_parts(config)
    if made.draft is not None:
        own = tuple(name for name in made.draft.weights if name not in made.main.weights)
        _read_main_part(made.draft, made.main, source)
        if not all(name in source for name in tensor_shapes(made.draft)):
            made, dropped = Parts(models.build(config)), own
    _check_shapes(made.shapes, source)
    return made, dropped


def untied(source: Source) -> dict[str, Any]:
    """config.json's fields, without tie_word_embeddings where the head is another matrix.

    Libraries write the head beside the embedding that it is tied to; but if both are there and
    differ, both are meant, and config.json is wrong (tie_weights in transformers 5 does the same).
    """
    if source.config.get("tie_word_embeddings") is not True or HEAD not in source:
        return source.config
    if EMBEDDING in source and _are_equal(source, EMBEDDING, HEAD):
        return source.config
    return source.config | {"tie_word_embeddings": False}


def _are_equal(source: Source, first: str, second: str) -> bool:
    """Whether two tensors have the same numbers; one of them is in memory at a time."""
    if source.shape(first) != source.shape(second):
        return False
    if source.sample(first) != source.sample(second):
        return False
    return source.digest(first) == source.digest(second)


def _read_main_part(draft: Graph, main: Graph, source: Source) -> None:
    """Has a draft part read the main part's embedding and head, where the source has no others."""
    for role in ("embedding", "lm_head"):
        (other,) = (weight for weight in main.weights.values() if weight.role == role)
        for weight in draft.weights.values():
            if weight.role == role and not all(t.name in source for t in tensors(weight.expr)):
                weight.expr = other.expr


def _check_shapes(shapes: Mapping[str, tuple[int, ...]], source: Source) -> None:
    """Raises TensorNotFoundError or CheckpointError."""
    for name, shape in shapes.items():
        found = source.shape(name)
        if found != shape:
            raise CheckpointError(
                f"tensor {name!r} has shape {list(found)}",
                f"{list(shape)} from config.json",
                "Check that config.json belongs to these weights.",
            )
