"""Runs graphs on the reference backend: a ragged prefill, then chunks and single tokens."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from deepmnn.backends.base import F32, Batch
from deepmnn.backends.reference import ReferenceBackend
from deepmnn.graph.caches import block_multiple
from deepmnn.graph.ir import Graph
from deepmnn.graph.tensors import tensor_shapes
from deepmnn.graph.weights import TensorSource
from deepmnn.models import build
from deepmnn.source.random import RandomSource
from tiny_models import CONFIGS

BLOCK_SIZE, BLOCKS = 4, 12
STEPS = (((7, 0), (4, 0)), ((1, 7), (3, 4)), ((2, 8), (1, 7)))
"""Each step, each sequence: new tokens and history."""


def _batch(vocab_size: int, step: int) -> Batch:
    random = np.random.default_rng(step)
    new, history = np.array(STEPS[step]).T
    tokens = int(new.sum())
    positions = np.concatenate([past + np.arange(n) for n, past in zip(new, history, strict=True)])
    tables = np.arange(BLOCKS, dtype=np.int32).reshape(len(new), -1)[::-1]
    return Batch(
        ids=random.integers(0, vocab_size, tokens).astype(np.int32),
        positions=positions.astype(np.int32),
        sequence_starts=np.concatenate([[0], np.cumsum(new)]).astype(np.int32),
        context_lengths=(new + history).astype(np.int32),
        block_tables=np.ascontiguousarray(tables),
        logit_rows=np.arange(0, tokens, 1 + step % 2, dtype=np.int32),
    )


@pytest.fixture(scope="session")
def logits() -> Callable[..., F32]:
    """(graph, source, mla_form="expanded") → the logits of all STEPS, [rows, vocab_size]."""

    def run(graph: Graph, source: TensorSource, mla_form: str = "expanded") -> F32:
        backend = ReferenceBackend(
            graph, lambda name: graph.weights[name].expr.read(source), mla_form
        )
        cache = backend.new_cache(BLOCKS, BLOCK_SIZE * block_multiple(graph.caches))
        batches = [_batch(backend.vocab_size, step) for step in range(len(STEPS))]
        return np.concatenate([backend.step(cache, batch) for batch in batches])

    return run


@pytest.fixture(scope="session")
def tiny() -> Callable[[str, int], Graph]:
    """(model_type, index) → the level-0 graph of a tiny model."""

    def model(model_type: str, index: int) -> Graph:
        return build({"model_type": model_type, **CONFIGS[model_type][index]})

    return model


@pytest.fixture(scope="session")
def random_source() -> Callable[[Graph], RandomSource]:
    """Random weights for a graph."""
    return lambda graph: RandomSource(tensor_shapes(graph), seed=3)
