"""What each op of an exported network may be: its parameters, the shapes it takes and gives.

One rule for each kind of op, the twin of the method of model.py that writes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from deepmnn.exporters.mnn.model import END
from deepmnn.exporters.mnn.schema import (
    BINARY,
    FLOAT,
    INT32,
    NC4HW4,
    NCHW,
    NHWC,
    REDUCTION,
    TABLES,
    TORCH,
    UNARY,
)
from deepmnn.exporters.mnn.weight_check import WeightBlobs, need

TOKENS, ROWS, ROUTED = "tokens", "rows", "routed tokens"
"""Sizes that change from call to call: of a step, of the logits that are wanted, of an expert."""

MAX_ELEMENTS = 1 << 22
"""Of a tensor, for one token; the logits of the largest vocabulary are a 25th of it."""

_MAX_RANK = 5
Op = dict[str, Any]
Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class Tensor:
    """What is known of a tensor.

    Attributes:
        shape: [tokens, width, 1, 1] when it is packed.
        packed: whether it lies in MNN's NC4HW4.
        is_int: int32; otherwise float32.
        note: what an integer says, as far as it chooses something: ("constant", values),
            ("positions",), ("coarse" or "start" or "fine", step), ("below", bound), ("row",).
    """

    shape: Shape
    packed: bool = False
    is_int: bool = False
    note: tuple[Any, ...] = ()


class State:
    """What rules learn from one op and ask of another.

    Attributes:
        blobs: the weight file.
        layers: attentions so far.
        cache_width: elements they cache for a token.
        context_length: positions that every table of angles holds.
    """

    def __init__(self, blobs: WeightBlobs) -> None:
        self.blobs = blobs
        self.layers = self.cache_width = 0
        self.context_length = (1 << 31) - 1
        self.expert_layers: list[tuple[int, int]] = []
        self._expert = (0, 0)

    def next_expert(self) -> tuple[int, int, int]:
        """→ layer, expert and width of the next subgraph."""
        layer, expert = self._expert
        need(layer < len(self.expert_layers), "no op asks for it")
        count, hidden = self.expert_layers[layer]
        self._expert = (layer, expert + 1) if expert + 1 < count else (layer + 1, 0)
        return layer, expert, hidden

    def experts_left(self) -> int:
        """Layers whose experts have not all been seen."""
        return len(self.expert_layers) - self._expert[0]


Rule = Callable[[State, Op, Sequence[Tensor]], Sequence[Tensor]]


def check_size(tensor: Tensor) -> None:
    """Raises OpError for more dimensions or elements than any op writes."""
    count, symbols = _volume(tensor.shape)
    need(len(tensor.shape) <= _MAX_RANK and len(symbols) <= 1, f"its shape is {tensor.shape}")
    need(0 < count <= MAX_ELEMENTS, f"its output has {count} elements for each token")


def declared(op: Op, name: str, is_int: bool = False) -> tuple[int, ...] | None:
    """The dims of an Input of that name; None when it is another op."""
    main = op["main"]
    if op["name"] != name or main is None or main["kind"] != "Input" or op["inputIndexes"]:
        return None
    if (main["dtype"], main["dformat"]) != (INT32 if is_int else FLOAT, NCHW):
        return None
    dims: tuple[int, ...] | None = main["dims"]
    return dims


# ---------------------------------------------------------------------------- parameters


def _main(op: Op, kind: str, free: Sequence[str] = (), **fixed: Any) -> dict[str, Any]:
    """The parameters; those that are not `free` are as `fixed` says, or empty."""
    main: dict[str, Any] | None = op["main"]
    need(main is not None and main["kind"] == kind, f"it has no {kind}")
    assert main is not None
    _check_table(main, kind, free, fixed)
    return main


def _check_table(
    table: dict[str, Any], kind: str, free: Sequence[str], fixed: dict[str, Any]
) -> None:
    for field, _ in TABLES[kind]:
        if field not in free:
            value, wanted = table[field], fixed.get(field)
            right = value == wanted if field in fixed else not value
            need(right, f"its {field} is {value!r:.40}")


def _form(op: Op, form: int = NCHW) -> None:
    found = op["defaultDimentionFormat"]
    need(found == form, f"its format is {found}")


def _inputs(given: Sequence[Tensor], *counts: int) -> None:
    need(len(given) in counts, f"it has {len(given)} inputs")


def _plain(*tensors: Tensor, rank: int | None = None) -> None:
    """Floats, row-major."""
    for x in tensors:
        right = not (x.packed or x.is_int or x.note == ("mask",))
        need(right and rank in (None, len(x.shape)), f"an input is {x}")


def _packed(*tensors: Tensor) -> None:
    """Floats [tokens, width, 1, 1]."""
    for x in tensors:
        need(x.packed, f"an input is {x}")


def _constant(x: Tensor, count: int | None) -> tuple[int, ...]:
    """The numbers of a small vector of integers; count None: of a scalar."""
    shape = () if count is None else (count,)
    need(x.shape == shape and x.note[:1] == ("constant",), f"an input is {x}, no constant {shape}")
    values: tuple[int, ...] = x.note[1]
    return values


def _volume(shape: Shape) -> tuple[int, tuple[str, ...]]:
    """The product of what is known, and the rest."""
    known = math.prod(size for size in shape if isinstance(size, int))
    return known, tuple(size for size in shape if isinstance(size, str))


def _size(x: Tensor, axis: int) -> int:
    """The size along an axis that does not count tokens."""
    need(0 <= axis < len(x.shape), f"axis {axis} of {x.shape}")
    size = x.shape[axis]
    need(isinstance(size, int), f"axis {axis} of {x.shape}")
    assert isinstance(size, int)
    return size


def _with(shape: Shape, axis: int, size: int | str) -> Shape:
    return (*shape[:axis], size, *shape[axis + 1 :])


# ---------------------------------------------------------------------------- constants, layouts


def _const(state: State, op: Op, given: Sequence[Tensor]) -> Sequence[Tensor]:
    _inputs(given, 0)
    _form(op)
    main = _main(op, "Blob", ("dims", "dataType", "int32s", "float32s", "external"))
    dims = main["dims"] or ()
    need(len(dims) <= _MAX_RANK and all(size > 0 for size in dims), f"its dims are {dims!r:.40}")
    count, is_int = math.prod(dims), main["dataType"] == INT32
    need(is_int or main["dataType"] == FLOAT, f"its type is {main['dataType']}")
    values = main["int32s"] if is_int else main["float32s"]
    need(not (main["float32s"] if is_int else main["int32s"]), "it has numbers of two types")
    if values is None and not is_int:
        state.blobs.check_floats(main["external"], count)
        return [Tensor(dims)]
    need(main["external"] is None and len(values or ()) == count, f"its numbers are not {count}")
    return [Tensor(dims, is_int=is_int, note=("constant", values) if is_int else ())]


def _convert(state: State, op: Op, given: Sequence[Tensor]) -> Sequence[Tensor]:
    _inputs(given, 1)
    _form(op)
    (x,) = given
    forms = (NC4HW4, NCHW) if x.packed else (NCHW, NC4HW4)
    _main(op, "TensorConvertInfo", source=forms[0], dest=forms[1])
    need(not x.is_int and len(x.shape) == 4 and x.shape[2:] == (1, 1), f"its input is {x}")
    return [Tensor(x.shape, not x.packed)]


def _reshape(state: State, op: Op, given: Sequence[Tensor]) -> Sequence[Tensor]:
    _inputs(given, 1)
    _form(op)
    (x,) = given
    if x.note != ("positions",):
        _plain(x)
    dims = _main(op, "Reshape", ("dims",))["dims"] or ()
    need(len(dims) <= _MAX_RANK and dims.count(-1) <= 1, f"its dims are {dims!r:.60}")
    need(all(size > 0 or size == -1 for size in dims), f"its dims are {dims!r:.60}")
    (count, symbols), known = _volume(x.shape), math.prod(size for size in dims if size > 0)
    if -1 not in dims:
        need(not symbols and count == known, f"{x.shape} to {dims}")
        return [Tensor(dims, note=x.note, is_int=x.is_int)]
    need(count % known == 0 and (not symbols or count == known), f"{x.shape} to {dims}")
    rest = symbols[0] if symbols else count // known
    shape = _with(dims, dims.index(-1), rest)
    return [Tensor(shape, note=x.note, is_int=x.is_int)]


def _slice(state: State, op: Op, given: Sequence[Tensor]) -> Sequence[Tensor]:
    _inputs(given, 1)
    _form(op)
    (x,) = given
    _plain(x)
    main = _main(op, "Slice", ("axis", "slicePoints"), sourceType=TORCH)
    axis, sizes = main["axis"], main["slicePoints"] or ()
    need(len(sizes) > 1 and all(size > 0 for size in sizes), f"its parts are {sizes!r:.60}")
    need(sum(sizes) == _size(x, axis), f"its parts are {sizes!r:.60} of {x.shape}")
    return [Tensor(_with(x.shape, axis, size)) for size in sizes]


def _concat(state: State, op: Op, given: Sequence[Tensor]) -> Sequence[Tensor]:
    need(len(given) > 0, "it has no inputs")
    _form(op)
    _plain(*given)
    axis = _main(op, "Axis", ("axis",))["axis"]
    first = given[0].shape
    total = sum(_size(x, axis) for x in given)
    same = all(_with(x.shape, axis, 0) == _with(first, axis, 0) for x in given)
    need(same, f"its inputs are {[x.shape for x in given]!s:.80}")
    return [Tensor(_with(first, axis, total))]


def _strided_slice(state: State, op: Op, given: Sequence[Tensor]) -> Sequence[Tensor]:
    """The rows whose logits are wanted."""
    _inputs(given, 4)
    _form(op)
    _main(op, "StridedSliceParam", Index=INT32, T=FLOAT, fromType=1)
    x, begin, end, axis = given
    _packed(x)
    need(begin.note == ("row",), f"its first row is {begin}")
    need(_constant(end, 1) == (END,) and _constant(axis, 1) == (0,), "it ends elsewhere")
    need(x.shape[0] == TOKENS, f"its input is {x}")
    return [Tensor(_with(x.shape, 0, ROWS), packed=True)]


def _permute(state: State, op: Op, given: Sequence[Tensor]) -> Sequence[Tensor]:
    _inputs(given, 1)
    _form(op)
    (x,) = given
    _plain(x)
    order = _main(op, "Permute", ("dims",))["dims"] or ()
    need(sorted(order) == list(range(len(x.shape))), f"its order is {order!r:.40}")
    return [Tensor(tuple(x.shape[axis] for axis in order))]


def _padding(state: State, op: Op, given: Sequence[Tensor]) -> Sequence[Tensor]:
    _inputs(given, 2)
    _form(op)
    _main(op, "PadParam")
    x, widths = given
    _plain(x)
    pads = _constant(widths, 2 * len(x.shape))
    shape = list(x.shape)
    for axis, (before, after) in enumerate(zip(pads[::2], pads[1::2], strict=True)):
        need(0 <= before <= MAX_ELEMENTS and 0 <= after <= MAX_ELEMENTS, f"it adds {pads!r:.40}")
        if before or after:
            shape[axis] = _size(x, axis) + before + after
    return [Tensor(tuple(shape))]


# ---------------------------------------------------------------------------- arithmetic


def _unary(state: State, op: Op, given: Sequence[Tensor]) -> Sequence[Tensor]:
    _inputs(given, 1)
    _form(op)
    need(_main(op, "UnaryOp", ("opType",), T=FLOAT)["opType"] in UNARY, "its operation")
    (x,) = given
    if not x.packed:
        _plain(x)
    return [Tensor(x.shape, x.packed)]


def _binary(state: State, op: Op, given: Sequence[Tensor]) -> Sequence[Tensor]:
    _inputs(given, 2)
    _form(op)
    a, b = given
    main = _main(op, "BinaryOp", ("opType",), T=INT32 if a.is_int else FLOAT)
    operation = BINARY.get(main["opType"])
    if a.is_int:
        return [_position_arithmetic(operation, a, b)]
    need(operation in ("ADD", "SUB", "MUL", "REALDIV", "MUL_SILU"), "its operation")
    if a.packed or b.packed:
        ones = {(1,)} if operation != "MUL_SILU" else set()
        fits = (a.packed and b.packed and a.shape == b.shape) or b.shape in ones
        need(a.packed and not b.is_int and fits, f"its inputs are {a} and {b}")
        return [Tensor(a.shape, packed=True)]
    need(operation != "MUL_SILU", "its inputs are not packed")
    _plain(a, b)
    return [Tensor(_broadcast(a.shape, b.shape))]


def _position_arithmetic(operation: str | None, a: Tensor, b: Tensor) -> Tensor:
    """A position taken apart: step · coarse + fine (rotary.py)."""
    if operation == "SUB" and a.note == ("positions",) and b.note[:1] == ("start",):
        need(a.shape == b.shape, f"its inputs are {a} and {b}")
        return Tensor(a.shape, is_int=True, note=("fine", b.note[1]))
    (step,) = _constant(b, None)
    need(step > 0 and a.shape == (TOKENS,), f"its inputs are {a} and {b}")
    if operation == "FLOORDIV" and a.note == ("positions",):
        return Tensor(a.shape, is_int=True, note=("coarse", step))
    need(operation == "MUL" and a.note == ("coarse", step), f"its inputs are {a} and {b}")
    return Tensor(a.shape, is_int=True, note=("start", step))


def _broadcast(a: Shape, b: Shape) -> Shape:
    rank = max(len(a), len(b))
    shape = []
    for x, y in zip((1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b, strict=True):
        need(x == y or 1 in (x, y), f"its inputs are {a} and {b}")
        shape.append(x if y == 1 else y)
    return tuple(shape)


def _layer_norm(state: State, op: Op, given: Sequence[Tensor]) -> Sequence[Tensor]:
    _inputs(given, 1, 2)
    x = given[0]
    _form(op, NC4HW4 if x.packed else NCHW)
    _packed(*given) if x.packed else _plain(*given)
    need(len(given) == 1 or (x.packed and given[1].shape == x.shape), f"its inputs are {given}")
    main = _main(op, "LayerNorm", ("epsilon", "external"), axis=(-1,), group=1, useRMSNorm=True)
    _check_eps(main)
    width = _size(x, 1 if x.packed else len(x.shape) - 1)
    state.blobs.check_floats(main["external"], width, times=2)
    return [Tensor(x.shape, x.packed)] * len(given)


def _check_eps(main: dict[str, Any]) -> None:
    need(0.0 <= main["epsilon"] < 1.0, f"its epsilon is {main['epsilon']}")


def _reduction(state: State, op: Op, given: Sequence[Tensor]) -> Sequence[Tensor]:
    _inputs(given, 1)
    _form(op)
    (x,) = given
    _plain(x)
    main = _main(op, "ReductionParam", ("operation", "dim", "keepDims"), coeff=1.0, dType=FLOAT)
    need(main["operation"] in REDUCTION and len(main["dim"] or ()) == 1, "its operation")
    (axis,) = main["dim"]
    _size(x, axis)
    return [Tensor(_with(x.shape, axis, 1) if main["keepDims"] else _without(x.shape, axis))]


def _without(shape: Shape, axis: int) -> Shape:
    return (*shape[:axis], *shape[axis + 1 :])


def _softmax(state: State, op: Op, given: Sequence[Tensor]) -> Sequence[Tensor]:
    _inputs(given, 1)
    _form(op)
    _plain(*given)
    _main(op, "Axis", axis=-1)
    _size(given[0], len(given[0].shape) - 1)
    return given


def _cast(state: State, op: Op, given: Sequence[Tensor]) -> Sequence[Tensor]:
    _inputs(given, 1)
    _form(op)
    _main(op, "CastParam", srcT=INT32, dstT=FLOAT)
    need(given[0].note[:1] == ("below",), f"its input is {given[0]}")
    return [Tensor(given[0].shape)]


def _batch_matmul(state: State, op: Op, given: Sequence[Tensor]) -> Sequence[Tensor]:
    _inputs(given, 2)
    _form(op)
    _main(op, "BatchMatMulParam")
    a, b = given
    _plain(a, b, rank=4)
    right = not _volume(b.shape)[1] and a.shape[:2] == b.shape[:2] and a.shape[3] == b.shape[2]
    need(right, f"its inputs are {a.shape} and {b.shape}")
    return [Tensor((*a.shape[:3], b.shape[3]))]


def _top_k(state: State, op: Op, given: Sequence[Tensor]) -> Sequence[Tensor]:
    _inputs(given, 2)
    _form(op)
    _main(op, "TopKV2", T=FLOAT, sorted=True, largest=True)
    x, count = given
    _plain(x)
    (k,), axis = _constant(count, None), len(x.shape) - 1
    size = _size(x, axis)
    need(1 <= k <= size, f"it takes {k} of {size}")
    shape = _with(x.shape, axis, k)
    return [Tensor(shape), Tensor(shape, is_int=True, note=("below", size))]


def _gather_elements(state: State, op: Op, given: Sequence[Tensor]) -> Sequence[Tensor]:
    _inputs(given, 3)
    _form(op)
    need(op["main"] is None, "it has parameters")
    x, indices, axis = given
    _plain(x, rank=2)
    need(_constant(axis, None) == (1,), "its axis")
    _check_choice(indices, _size(x, 1), x.shape[0])
    return [Tensor(indices.shape)]


def _check_choice(indices: Tensor, size: int, rows: int | str) -> None:
    """Indices [rows, k] below `size`."""
    bound = indices.note[1] if indices.note[:1] == ("below",) else size + 1
    right = len(indices.shape) == 2 and indices.shape[0] == rows and bound <= size
    need(right, f"its indices are {indices}, of {size}")


def _gather_rows(state: State, op: Op, given: Sequence[Tensor]) -> Sequence[Tensor]:
    """Rows of a table of angles."""
    _inputs(given, 3)
    _form(op)
    need(op["main"] is None, "it has parameters")
    table, index, axis = given
    _plain(table, rank=2)
    need(_constant(axis, None) == (0,), "its axis")
    rows, width = _size(table, 0), _size(table, 1)
    need(index.note[:1] in (("coarse",), ("fine",)), f"its rows are {index}")
    part, step = index.note
    if part == "coarse":
        state.context_length = min(state.context_length, rows * step)
    else:
        need(step <= rows, f"it takes {step} rows of {rows}")
    return [Tensor((*index.shape, width))]


# ---------------------------------------------------------------------------- the large ones


def _convolution(state: State, op: Op, given: Sequence[Tensor]) -> Sequence[Tensor]:
    _inputs(given, 1)
    _form(op)
    (x,) = given
    _packed(x)
    main = _main(op, "Convolution2D", ("common", "quanParameter", "external"))
    common = main["common"]
    need(common is not None, "it has no sizes")
    ones = ("kernelX", "kernelY", "strideX", "strideY", "dilateX", "dilateY", "group")
    sizes = ("outputCount", "inputCount")
    _check_table(common, "Convolution2DCommon", sizes, dict.fromkeys(ones, 1))
    rows, cols = (common[name] for name in sizes)
    need(rows > 0 and cols == _size(x, 1), f"[{rows}, {cols}] for an input of {x.shape}")
    state.blobs.check_matrix(main["external"], main["quanParameter"], rows, cols)
    return [Tensor((x.shape[0], rows, 1, 1), packed=True)]


def _rope(state: State, op: Op, given: Sequence[Tensor]) -> Sequence[Tensor]:
    _inputs(given, 4)
    _form(op, NHWC)
    sizes = ("rope_cut_head_dim", "num_head", "kv_num_head", "head_dim")
    main = _main(op, "RoPEParam", (*sizes, "q_norm", "k_norm"))
    turned, heads, kv_heads, dim = (main[name] for name in sizes)
    need(min(turned, heads, kv_heads, dim) > 0 and turned <= dim, f"{turned} of {dim} turn")
    need(turned % 2 == 0, f"{turned} elements turn")
    q, k, cos, sin = given
    _packed(q, k)
    _plain(cos, sin, rank=2)
    tokens = q.shape[0]
    found = (q.shape[:2], k.shape[:2], cos.shape, sin.shape)
    wanted = ((tokens, heads * dim), (tokens, kv_heads * dim), (tokens, turned), (tokens, turned))
    need(found == wanted, f"its inputs are {found}, not {wanted}")
    for norm in (main["q_norm"], main["k_norm"]):
        if norm is not None:
            fixed = {"axis": (-1,), "group": 1, "useRMSNorm": True}
            _check_table(norm, "LayerNorm", ("epsilon", "gamma"), fixed)
            _check_eps(norm)
            need(len(norm["gamma"] or ()) == dim, f"a norm of {len(norm['gamma'] or ())} elements")
    return [Tensor((1, tokens, count, dim)) for count in (heads, kv_heads)]


def _attention(state: State, op: Op, given: Sequence[Tensor]) -> Sequence[Tensor]:
    _inputs(given, 4)
    _form(op, NHWC)
    q, k, v, mask = given
    _plain(q, k, rank=4)
    need(mask.note == ("mask",), f"its mask is {mask}")
    fixed: dict[str, Any] = {"kv_cache": True, "kv_shared_layer_index": -1, "output_c4": True}
    _main(op, "AttentionParam", (), layer_index=state.layers, **fixed)
    tokens, heads, kv_heads, dim = q.shape[1], _size(q, 2), _size(k, 2), _size(q, 3)
    right = q.shape[:2] == (1, TOKENS) and heads % kv_heads == 0
    need(right, f"its queries are {q.shape}, of {kv_heads} heads")
    need(k.shape == (1, tokens, kv_heads, dim), f"its keys are {k.shape}")
    values = {Tensor(k.shape), Tensor((tokens, kv_heads * dim, 1, 1), packed=True)}
    need(v in values, f"its values are {v}")
    state.layers += 1
    state.cache_width += 2 * kv_heads * dim
    return [Tensor((tokens, heads * dim, 1, 1), packed=True)]


def _moe(state: State, op: Op, given: Sequence[Tensor]) -> Sequence[Tensor]:
    _inputs(given, 3)
    _form(op)
    x, weights, indices = given
    _plain(x, weights, rank=2)
    attributes = _main(op, "Extra", ("attr",))["attr"] or []
    for attribute in attributes:
        _check_table(attribute, "Attribute", ("i", "key"), {})
    names = [attribute["key"] for attribute in attributes]
    need(names == ["num_experts", "top_k", "layer_id"], f"its attributes are {names!s:.80}")
    experts, top_k, layer = (attribute["i"] for attribute in attributes)
    need(layer == len(state.expert_layers), f"it is expert layer {layer}")
    need(0 < top_k <= experts, f"{top_k} of {experts} experts")
    need(weights.shape == indices.shape == (x.shape[0], top_k), f"its weights are {weights.shape}")
    _check_choice(indices, experts, x.shape[0])
    state.expert_layers.append((experts, _size(x, 1)))
    return [Tensor(x.shape)]


RULES: dict[str, Rule] = {
    "Const": _const,
    "ConvertTensor": _convert,
    "Reshape": _reshape,
    "Slice": _slice,
    "Concat": _concat,
    "StridedSlice": _strided_slice,
    "Permute": _permute,
    "Padding": _padding,
    "UnaryOp": _unary,
    "BinaryOp": _binary,
    "LayerNorm": _layer_norm,
    "Reduction": _reduction,
    "Softmax": _softmax,
    "Cast": _cast,
    "BatchMatMul": _batch_matmul,
    "TopKV2": _top_k,
    "GatherElements": _gather_elements,
    "GatherV2": _gather_rows,
    "Convolution": _convolution,
    "RoPE": _rope,
    "Attention": _attention,
    "MoE": _moe,
}
