"""A .mnn model in the making: tensors and ops, in the words of MNN's schema (schema/default/*.fbs).

An activation of the model is "packed", [tokens, width, 1, 1] in NC4HW4, the form MNN's
convolutions, RMS norms and element-wise ops share, or "plain": row-major, any shape. Methods take
and return tensor indices; each names the form it works on where that matters.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Json = dict[str, Any]
END = 2**31 - 1
"""As a slice's end: the last element and all before it."""


class Block:
    """The tensors and ops of a net, or of a subgraph."""

    def __init__(self) -> None:
        self.tensors: list[str] = []
        self.ops: list[Json] = []

    def tensor(self, name: str) -> int:
        """A new tensor."""
        self.tensors.append(name)
        return len(self.tensors) - 1

    def op(
        self,
        kind: str,
        inputs: Sequence[int],
        main_type: str = "",
        main: Json | None = None,
        outputs: int = 1,
        name: str = "",
        data_format: str = "NCHW",
    ) -> tuple[int, ...]:
        """Appends an op (`kind` is an OpType, `main_type` its parameter's table)."""
        stem = name or f"{kind}_{len(self.ops)}"
        made = [self.tensor(f"{stem}:{i}" if i else stem) for i in range(outputs)]
        op: Json = {"type": kind, "name": stem, "outputIndexes": made}
        if inputs:
            op["inputIndexes"] = list(inputs)
        if main_type:
            op["main_type"], op["main"] = main_type, main or {}
        op["defaultDimentionFormat"] = data_format
        self.ops.append(op)
        return tuple(made)

    # ------------------------------------------------------------------ inputs and constants

    def input(self, name: str, dims: Sequence[int], dtype: str = "DT_FLOAT") -> int:
        """A model input; -1 is a size that changes from call to call."""
        main = {"dims": list(dims), "dtype": dtype, "dformat": "NCHW"}
        return self.op("Input", (), "Input", main, name=name)[0]

    def floats(self, values: NDArray[np.floating]) -> int:
        """A small constant of float32."""
        flat = [float(v) for v in np.asarray(values, np.float32).ravel()]
        return self._const(values.shape, "DT_FLOAT", {"float32s": flat})

    def ints(self, values: Sequence[int] | int) -> int:
        """A small constant of int32: a vector, or a scalar."""
        array = np.asarray(values, np.int32)
        return self._const(array.shape, "DT_INT32", {"int32s": array.ravel().tolist()})

    def stored_floats(self, shape: Sequence[int], offset: int, nbytes: int) -> int:
        """A constant of float32 that lies in the weight file."""
        return self._const(shape, "DT_FLOAT", {"external": [offset, nbytes]})

    def _const(self, dims: Sequence[int], dtype: str, data: Json) -> int:
        main = {"dims": list(dims), "dataFormat": "NCHW", "dataType": dtype, **data}
        return self.op("Const", (), "Blob", main)[0]

    # ------------------------------------------------------------------ shapes and layouts

    def pack(self, x: int) -> int:
        """Plain [tokens, width, 1, 1] → packed."""
        return self._convert(x, "NCHW", "NC4HW4")

    def unpack(self, x: int) -> int:
        """Packed → plain [tokens, width, 1, 1]."""
        return self._convert(x, "NC4HW4", "NCHW")

    def _convert(self, x: int, source: str, dest: str) -> int:
        main = {"source": source, "dest": dest}
        return self.op("ConvertTensor", (x,), "TensorConvertInfo", main)[0]

    def reshape(self, x: int, dims: Sequence[int]) -> int:
        """A plain tensor in another shape; one size may be -1."""
        return self.op("Reshape", (x,), "Reshape", {"dims": list(dims), "dimType": "NCHW"})[0]

    def split(self, x: int, sizes: Sequence[int], axis: int) -> tuple[int, ...]:
        """Cut along an axis. Either form (packed: axis 1)."""
        if len(sizes) == 1:
            return (x,)
        main = {"axis": axis, "slicePoints": list(sizes), "sourceType": "TORCH"}
        return self.op("Slice", (x,), "Slice", main, outputs=len(sizes))

    def concat(self, parts: Sequence[int], axis: int) -> int:
        """Parts side by side along an axis. Either form."""
        return self.op("Concat", parts, "Axis", {"axis": axis})[0]

    def slice_from(self, x: int, begin: int, axis: int) -> int:
        """x from `begin` (an int32 tensor [1], negative: from the end) to its end."""
        inputs = (x, begin, self.ints([END]), self.ints([axis]))
        main = {"Index": "DT_INT32", "T": "DT_FLOAT", "fromType": 1}
        return self.op("StridedSlice", inputs, "StridedSliceParam", main)[0]

    def permute(self, x: int, order: Sequence[int]) -> int:
        """A plain tensor with its axes in another order."""
        return self.op("Permute", (x,), "Permute", {"dims": list(order)})[0]

    def pad(self, x: int, before_after: Sequence[int]) -> int:
        """Zeros around a plain tensor: before and after the first axis, the second, ..."""
        return self.op("Padding", (x, self.ints(before_after)), "PadParam", {"mode": "CONSTANT"})[0]

    # ------------------------------------------------------------------ arithmetic, either form

    def unary(self, operation: str, x: int) -> int:
        """A UnaryOpOperation: SILU, SIGMOID, NEG, ABS, ..."""
        main = {"opType": operation, "T": "DT_FLOAT"}
        return self.op("UnaryOp", (x,), "UnaryOp", main)[0]

    def binary(self, operation: str, a: int, b: int, dtype: str = "DT_FLOAT") -> int:
        """A BinaryOpOperation: ADD, SUB, MUL, REALDIV, MUL_SILU (a · silu(b)), ..."""
        main = {"opType": operation, "T": dtype, "activationType": 0}
        return self.op("BinaryOp", (a, b), "BinaryOp", main)[0]

    def rms_norm(
        self, inputs: Sequence[int], external: Sequence[int], eps: float, packed: bool = True
    ) -> list[int]:
        """RMS norm over the width (packed) or the last axis (plain).

        One input: its norm. Two, packed: their sum and its norm. external is where the weight
        file has the weight and as many zeros: offset, bytes, bytes.
        """
        main = {
            "axis": [-1],
            "epsilon": float(eps),
            "external": list(external),
            "useRMSNorm": True,
        }
        form = "NC4HW4" if packed else "NCHW"
        count = len(inputs)
        return list(self.op("LayerNorm", inputs, "LayerNorm", main, count, data_format=form))

    # ------------------------------------------------------------------ arithmetic, plain

    def sum(self, x: int, axis: int, keep: bool) -> int:
        """The sum over one axis."""
        main = {"operation": "SUM", "dim": [axis], "coeff": 1.0, "keepDims": keep}
        return self.op("Reduction", (x,), "ReductionParam", main)[0]

    def minimum(self, x: int, axis: int) -> int:
        """The least along one axis, which goes."""
        main = {"operation": "MINIMUM", "dim": [axis], "coeff": 1.0, "keepDims": False}
        return self.op("Reduction", (x,), "ReductionParam", main)[0]

    def softmax(self, x: int) -> int:
        """Over the last axis."""
        return self.op("Softmax", (x,), "Axis", {"axis": -1})[0]

    def cast(self, x: int, source: str, target: str) -> int:
        """Another DataType."""
        return self.op("Cast", (x,), "CastParam", {"srcT": source, "dstT": target})[0]

    def matmul(self, a: int, b: int) -> int:
        """Batched: [..., m, k] times [..., k, n]."""
        return self.op("BatchMatMul", (a, b), "BatchMatMulParam", {})[0]

    def top_k(self, x: int, k: int) -> tuple[int, ...]:
        """The k largest of the last axis, largest first, and their int32 indices."""
        main = {"T": "DT_FLOAT", "sorted": True, "largest": True}
        return self.op("TopKV2", (x, self.ints(k)), "TopKV2", main, outputs=2)

    def gather_elements(self, x: int, indices: int, axis: int) -> int:
        """x[i, indices[i, j]]."""
        return self.op("GatherElements", (x, indices, self.ints(axis)))[0]

    def gather_rows(self, x: int, rows: int) -> int:
        """x[rows[i]] for a plain [n, d]."""
        return self.op("GatherV2", (x, rows, self.ints(0)))[0]

    # ------------------------------------------------------------------ the large ones

    def convolution(self, x: int, name: str, rows: int, cols: int, stored: Json) -> int:
        """A linear map of packed x; `stored` is what WeightFile.linear returned."""
        common = {
            "kernelX": 1,
            "kernelY": 1,
            "strideX": 1,
            "strideY": 1,
            "dilateX": 1,
            "dilateY": 1,
            "padMode": "CAFFE",
            "group": 1,
            "outputCount": rows,
            "inputCount": cols,
        }
        main = {"common": common, **stored}
        return self.op("Convolution", (x,), "Convolution2D", main, name=name)[0]

    def rope(
        self,
        inputs: Sequence[int],
        heads: tuple[int, int],
        head_dim: int,
        rotated: int,
        norms: Json,
    ) -> tuple[int, ...]:
        """Packed q, packed k, plain cos and sin [tokens, rotated] → plain [1, tokens, heads, d].

        The first `rotated` elements of every head turn, pairs half a rotation apart; norms may
        hold q_norm and k_norm, applied to every head before.
        """
        main = {
            "rope_cut_head_dim": rotated,
            "num_head": heads[0],
            "kv_num_head": heads[1],
            "head_dim": head_dim,
            **norms,
        }
        return self.op("RoPE", inputs, "RoPEParam", main, outputs=2, data_format="NHWC")

    def attention(self, inputs: Sequence[int], layer: int, name: str) -> int:
        """Causal attention of q, k, v [1, tokens, heads, head_dim] and the mask; keeps the cache.

        → packed [tokens, heads · head_dim, 1, 1]. v may be packed too. The scale is 1/√head_dim.
        """
        main = {
            "kv_cache": True,
            "layer_index": layer,
            "kv_shared_layer_index": -1,
            "output_c4": True,
        }
        kind = "Attention"
        return self.op(kind, inputs, "AttentionParam", main, name=name, data_format="NHWC")[0]

    def moe(self, inputs: Sequence[int], experts: int, top_k: int, layer: int) -> int:
        """Plain x [tokens, hidden], weights, int32 indices → Σ weight · expert(x).

        Expert e is the subgraph named by `expert_name(layer, e)`.
        """
        numbers = {"num_experts": experts, "top_k": top_k, "layer_id": layer}
        main = {"attr": [{"key": key, "i": value} for key, value in numbers.items()]}
        return self.op("MoE", inputs, "Extra", main, name=f"/layers.{layer}/moe")[0]


def expert_name(layer: int, expert: int) -> str:
    """The subgraph that MNN's MoE op looks for."""
    return f"/expert/{layer}_{expert}"


class Model(Block):
    """A whole net: the main block and its subgraphs (name, block, inputs, outputs)."""

    def __init__(self, biz_code: str = "") -> None:
        super().__init__()
        self.biz_code = biz_code
        self.outputs: list[str] = []
        self.subgraphs: list[tuple[str, Block, list[int], list[int]]] = []

    def to_json(self) -> Iterator[str]:
        """The text that MNN's converter builds the .mnn from, in pieces."""
        head: Json = {
            "bizCode": self.biz_code,
            "sourceType": "ONNX",
            "preferForwardType": "CPU",
            "tensorNumber": len(self.tensors),
            "tensorName": self.tensors,
            "outputName": self.outputs,
            "usage": "INFERENCE",
        }
        yield json.dumps(head)[:-1]
        yield ', "oplists": ' + json.dumps(self.ops)
        yield ', "subgraphs": ['
        for index, (name, block, inputs, outputs) in enumerate(self.subgraphs):
            graph = {
                "name": name,
                "inputs": inputs,
                "outputs": outputs,
                "tensors": block.tensors,
                "nodes": block.ops,
            }
            yield (", " if index else "") + json.dumps(graph)
        yield "]}"
