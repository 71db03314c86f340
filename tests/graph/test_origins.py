"""An expression read backwards: its rows, put where they came from, are the tensors."""

from __future__ import annotations

import numpy as np
import pytest

from deepmnn.graph.origins import row_origins
from deepmnn.graph.weights import Concat, Constant, Expr, Interleave, PadHeads, Slice, Tensor

A, B, C = Tensor("a", (21, 3)), Tensor("b", (21, 3)), Tensor("c", (6, 3))
BIAS = Tensor("bias", (5,))

EXPRESSIONS = [
    A,
    Concat((A, C, B)),
    Interleave((A, B)),
    PadHeads(Tensor("k", (12, 3)), 3),
    PadHeads(Slice(Tensor("kv", (21, 3)), 2, 6, 3), 3),
    Concat((BIAS, Constant((4,)), Tensor("other", (7,)))),
]


class Numbers:
    """A source of random numbers."""

    def __init__(self) -> None:
        self.tensors: dict[str, np.ndarray] = {}
        self.shapes = {"a": (21, 3), "b": (21, 3), "c": (6, 3), "k": (12, 3), "kv": (21, 3)}
        self.shapes |= {"bias": (5,), "other": (7,)}

    def read(self, name: str) -> np.ndarray:
        if name not in self.tensors:
            rng = np.random.default_rng(len(self.tensors))
            self.tensors[name] = rng.standard_normal(self.shapes[name]).astype(np.float32)
        return self.tensors[name]


@pytest.mark.parametrize("expr", EXPRESSIONS, ids=lambda expr: type(expr).__name__)
def test_rows_are_found_again(expr: Expr) -> None:
    source = Numbers()
    weight = expr.read(source)
    origins = row_origins(expr)
    assert origins.keys() == source.tensors.keys()
    for name, (rows, places) in origins.items():
        assert np.array_equal(weight[rows], source.tensors[name][places])
        assert len(set(places)) == len(places)
    used = np.concatenate([rows for rows, _ in origins.values()])
    assert len(set(used)) == len(used)
    assert not weight[np.setdiff1d(np.arange(len(weight)), used)].any()


def test_two_halves_are_a_whole() -> None:
    kv = Tensor("kv", (21, 3))
    halves = [PadHeads(Slice(kv, begin, end, 3), 3) for begin, end in ((0, 2), (2, 7))]
    places = np.concatenate([row_origins(half)["kv"][1] for half in halves])
    assert sorted(places) == list(range(21))
