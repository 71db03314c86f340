"""Random weights: the same for the same (seed, name), of the right size."""

import numpy as np
import pytest

from deepmnn.errors import TensorNotFoundError
from deepmnn.graph.ir import Graph, Weight
from deepmnn.graph.tensors import tensor_shapes
from deepmnn.graph.weights import Concat, Constant, Interleave, PadHeads, Slice, Tensor
from deepmnn.source.random import RandomSource

SHAPES = {"a.weight": (200, 300), "b.weight": (200, 300), "norm.weight": (500,), "a.bias": (500,)}


def test_deterministic_by_seed_and_name() -> None:
    source = RandomSource(SHAPES, seed=3)
    first = source.read("a.weight")
    assert first.shape == (200, 300)
    assert first.dtype == np.float32
    source.read("b.weight")
    np.testing.assert_array_equal(source.read("a.weight"), first)
    assert not np.array_equal(source.read("b.weight"), first)
    assert not np.array_equal(RandomSource(SHAPES, seed=4).read("a.weight"), first)


def test_sizes_are_sane() -> None:
    source = RandomSource(SHAPES)
    assert source.read("a.weight").std() * np.sqrt(300) == pytest.approx(1, rel=0.02)
    assert source.read("norm.weight").mean() == pytest.approx(1, abs=0.02)
    assert source.read("a.bias").mean() == pytest.approx(0, abs=0.02)


def test_unknown_tensor() -> None:
    with pytest.raises(TensorNotFoundError, match="'c'"):
        RandomSource(SHAPES).read("c")


def test_shapes_are_found_inside_expressions() -> None:
    a, b, c = Tensor("a", (6, 4)), Tensor("b", (6, 4)), Tensor("c", (8, 4))
    graph = Graph("g")
    for name, expr in {
        "x": Concat((a, Constant((2, 4)))),
        "y": Interleave((a, b)),
        "z": PadHeads(Slice(c, 0, 2, heads=2), heads=2),
    }.items():
        graph.weights[name] = Weight(name, expr)
    assert tensor_shapes(graph) == {"a": (6, 4), "b": (6, 4), "c": (8, 4)}
    source = RandomSource(tensor_shapes(graph))
    for weight in graph.weights.values():
        assert weight.expr.read(source).shape == weight.shape
