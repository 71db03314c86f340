"""An exported network, computed in numpy: the small ops around MNN's large ones, as MNN has them.

A check gives values to some tensors and asks for others. What lies between must be arithmetic; the
large ops (convolutions, attentions, experts) are where a value is given, or where a walk ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmnn.errors import ArtifactError
from deepmnn.exporters.mnn.flatbuffer import FlatBuffer
from deepmnn.exporters.mnn.schema import BINARY, INT32, OP_TYPES, REDUCTION, TABLES, UNARY, UNION

Array = NDArray[Any]
Op = dict[str, Any]
_KINDS = {number: name for name, number in OP_TYPES.items()}


class Net:
    """The main block of a .mnn file.

    Args:
        path: the file, checked (`exporters/mnn/network.py`).
        weights: its weight file.

    Attributes:
        ops: in order.

    Raises ArtifactError for a file that cannot be read.
    """

    def __init__(self, path: Path, weights: Path) -> None:
        try:
            data = path.read_bytes()
        except OSError as fault:
            raise ArtifactError(f"{path} cannot be read: {fault}") from None
        again = "Export the model again."
        table = FlatBuffer(data, TABLES, UNION, str(path), again).root("Net")
        self.ops: list[Op] = list(table["oplists"] or ())
        self._path, self._weights = path, weights
        self._made = {at: op for op in self.ops for at in op["outputIndexes"] or ()}

    def kind(self, op: Op) -> str:
        """Its type's name."""
        return _KINDS.get(op["type"], "")

    def of_kind(self, kind: str) -> list[Op]:
        """All ops of a type, in order."""
        return [op for op in self.ops if self.kind(op) == kind]

    def maker(self, tensor: int) -> Op:
        """The op that computes a tensor."""
        return self._made[tensor]

    def inputs(self, op: Op) -> tuple[int, ...]:
        """The tensors that it reads."""
        return tuple(op["inputIndexes"] or ())

    def input(self, name: str) -> int:
        """The tensor of an input of the network."""
        op = next(op for op in self.of_kind("Input") if op["name"] == name)
        return int(op["outputIndexes"][0])

    def before(self, tensor: int, stop: str) -> Iterator[int]:
        """What a tensor is computed from; not what is before ops of the type `stop`."""
        left, seen = [tensor], {tensor}
        while left:
            at = left.pop()
            yield at
            op = self.maker(at)
            new = () if self.kind(op) == stop else self.inputs(op)
            left += [each for each in new if each not in seen]
            seen.update(new)

    def compute(self, wanted: Sequence[int], given: Mapping[int, Array]) -> list[Array]:
        """Tensors from the given ones, in float64.

        Raises ArtifactError when something else than arithmetic lies between.
        """
        known, needed = dict(given), set(wanted)
        order = []
        for op in reversed(self.ops):
            outputs = set(op["outputIndexes"] or ())
            if outputs & needed and not outputs <= known.keys():
                order.append(op)
                needed.update(self.inputs(op))
        for op in reversed(order):
            rule = _RULES.get(self.kind(op))
            if rule is None:
                raise self._other(op)
            try:
                made = rule(self, op, [known[at] for at in self.inputs(op)])
            except (ValueError, IndexError, KeyError, TypeError):
                raise self._other(op) from None
            outputs_in_order = op["outputIndexes"] or ()
            known.update(zip(outputs_in_order, made, strict=False))
        return [known[at] for at in wanted]

    def _other(self, op: Op) -> ArtifactError:
        return ArtifactError(
            f"{self._path}: {op['name']!r:.80} is a {self.kind(op)}",
            "arithmetic there, as this version exports it",
            "Export the model again.",
        )

    def constant(self, op: Op) -> Array:
        """The numbers of a Const. Raises ArtifactError for another op."""
        if self.kind(op) != "Const":
            raise self._other(op)
        main = op["main"]
        dims, external = main["dims"] or (), main["external"]
        if external is not None:
            found: Array = np.fromfile(
                self._weights, "<f4", external[1] // 4, offset=external[0]
            ).astype(np.float64)
        elif main["dataType"] == INT32:
            found = np.asarray(main["int32s"], np.int64)
        else:
            found = np.asarray(main["float32s"], np.float64)
        return found.reshape(dims)


Rule = Callable[[Net, Op, list[Array]], Sequence[Array]]


def _slice(net: Net, op: Op, x: list[Array]) -> Sequence[Array]:
    places = np.cumsum(op["main"]["slicePoints"])[:-1]
    return np.split(x[0], places, axis=op["main"]["axis"])


def _softmax(net: Net, op: Op, x: list[Array]) -> Sequence[Array]:
    exps = np.exp(x[0] - x[0].max(axis=-1, keepdims=True))
    return [exps / exps.sum(axis=-1, keepdims=True)]


def _top_k(net: Net, op: Op, x: list[Array]) -> Sequence[Array]:
    order = np.argsort(-x[0], axis=-1, kind="stable")[..., : int(x[1])]
    return [np.take_along_axis(x[0], order, axis=-1), order]


def _reduce(net: Net, op: Op, x: list[Array]) -> Sequence[Array]:
    main = op["main"]
    axis, keep = tuple(main["dim"]), bool(main["keepDims"])
    if REDUCTION[main["operation"]] == "SUM":
        return [x[0].sum(axis=axis, keepdims=keep)]
    return [x[0].min(axis=axis, keepdims=keep)]


def _padded(net: Net, op: Op, x: list[Array]) -> Sequence[Array]:
    return [np.pad(x[0], np.asarray(x[1]).reshape(-1, 2))]


def _silu(x: Array) -> Array:
    return np.asarray(x / (1 + np.exp(-x)))


_BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "ADD": np.add,
    "SUB": np.subtract,
    "MUL": np.multiply,
    "REALDIV": np.divide,
    "FLOORDIV": np.floor_divide,
    "MUL_SILU": lambda a, b: a * _silu(b),
}
_UNARY: dict[str, Callable[[Array], Array]] = {
    "ABS": np.abs,
    "NEG": np.negative,
    "SIGMOID": lambda x: 1 / (1 + np.exp(-x)),
    "SILU": _silu,
}
_RULES: dict[str, Rule] = {
    "Const": lambda net, op, x: [net.constant(op)],
    "ConvertTensor": lambda net, op, x: x,
    "Reshape": lambda net, op, x: [x[0].reshape(op["main"]["dims"])],
    "Slice": _slice,
    "Concat": lambda net, op, x: [np.concatenate(x, axis=op["main"]["axis"])],
    "Permute": lambda net, op, x: [x[0].transpose(op["main"]["dims"])],
    "Padding": _padded,
    "UnaryOp": lambda net, op, x: [_UNARY[UNARY[op["main"]["opType"]]](x[0])],
    "BinaryOp": lambda net, op, x: [_BINARY[BINARY[op["main"]["opType"]]](x[0], x[1])],
    "Softmax": _softmax,
    "Reduction": _reduce,
    "Cast": lambda net, op, x: x,
    "TopKV2": _top_k,
    "GatherElements": lambda net, op, x: [np.take_along_axis(x[0], x[1], axis=int(x[2]))],
    "GatherV2": lambda net, op, x: [np.take(x[0], x[1].astype(np.int64), axis=int(x[2]))],
}
