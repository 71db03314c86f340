"""Every value that the reference backend computes for whole samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deepmnn.backends.base import I32, Batch
from deepmnn.backends.reference import ReferenceBackend
from deepmnn.inspect.side import Layer
from deepmnn.models import build
from deepmnn.source.open import open_source


def checkpoint_values(path: Path, samples: Sequence[I32]) -> Layer:
    """Of a checkpoint's level-0 graph."""
    source = open_source(path)
    graph = build(source.config, ("hidden", "logits"))
    backend = ReferenceBackend(graph, lambda name: graph.weights[name].expr.read(source))
    return whole_values(backend, samples)


def whole_values(backend: ReferenceBackend, samples: Sequence[I32]) -> Layer:
    """Each sample a sequence of its own; the rows of all are concatenated."""
    parts = []
    for ids in samples:
        rows = np.arange(len(ids), dtype=np.int32)
        starts, length = np.array([0, len(ids)], np.int32), np.array([len(ids)], np.int32)
        batch = Batch(ids, rows, starts, length, np.zeros((1, 1), np.int32), rows)
        parts.append(backend.trace(backend.new_cache(1, len(ids)), batch))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def merged(layers: Sequence[Layer]) -> Layer:
    """The values of all layers."""
    return {name: value for layer in layers for name, value in layer.items()}
