"""Checks what the ops of an exported network point to in llm.mnn.weight (see weights.py)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

import numpy as np

from deepmnn.errors import ArtifactError
from deepmnn.exporters.mnn.weights import LEAST_BLOCK, SHAPE_16_MAX

FP32_BYTES, FP16_BYTES = 4, 2
_QUANTISED, _FP16 = 1, 3
_CODES = 2
"""The first byte of a blob of codes."""


class OpError(Exception):
    """What is wrong with an op, for the message that names it."""


def need(condition: bool, found: str) -> None:
    """Raises OpError unless the condition holds."""
    if not condition:
        raise OpError(found)


class WeightBlobs:
    """The weight file, of which only the heads of blobs are read. A context manager.

    Raises ArtifactError when it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as fault:
            raise ArtifactError(f"{path} cannot be read: {fault}") from None
        self.size = os.fstat(self._file).st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def check_span(self, offset: int, nbytes: int) -> None:
        """Raises OpError unless these bytes are in the file."""
        inside = offset >= 0 and nbytes >= 0 and offset + nbytes <= self.size
        need(inside, f"bytes {offset} to {offset + nbytes} of {self.size}")

    def check_floats(self, external: Any, count: int, times: int = 1) -> None:
        """`external` is an offset and, `times` over, the bytes of `count` float32 from there on."""
        nbytes = FP32_BYTES * count
        need(external is not None, "numbers that are nowhere")
        need(external[1:] == (nbytes,) * times, f"{external[1:]} bytes for {count} numbers")
        self.check_span(external[0], nbytes * times)

    def check_matrix(self, external: Any, stored: Any, rows: int, cols: int) -> None:
        """`external` and the quanParameter `stored` of a convolution are those of [rows, cols]."""
        need(external is not None, "a matrix that is nowhere")
        if stored is None:
            sizes: tuple[int, ...] = (FP32_BYTES * rows * cols, FP32_BYTES * rows)
        elif stored["type"] == _FP16:
            _check_fields(stored, type=_FP16)
            sizes = (FP16_BYTES * rows * cols, 0, FP32_BYTES * rows, 0)
        else:
            sizes = self._quantised(external, stored, rows, cols)
        need(external[1:] == sizes, f"{external[1:]} bytes, not {sizes}")
        self.check_span(external[0], sum(sizes))

    def _quantised(self, external: Any, stored: Any, rows: int, cols: int) -> tuple[int, ...]:
        """The sizes that `external` must name, after the head that is in the file."""
        bits, wide = stored["aMaxOrBits"], max(rows, cols) > SHAPE_16_MAX
        need(bits in (4, 8), f"codes of {bits} bits")
        fields = {"type": _QUANTISED, "quantScale": 1.0, "aMaxOrBits": bits, "scaleStorage": 1}
        _check_fields(stored, **fields, shapeInt32=wide)
        need(len(external) == 5, f"{len(external)} sizes")
        half = 1 << bits - 1
        head = b"".join(
            (
                bytes([_CODES]),
                np.array([rows, cols], "<u4" if wide else "<u2").tobytes(),
                bytes([2 * half % 256]),
                np.arange(-half, half, dtype=np.int8).tobytes(),
            )
        )
        self.check_span(external[0], len(head))
        need(os.pread(self._file, len(head), external[0]) == head, "codes of another shape or kind")
        scales, bias = external[2:4]
        need(bias in (0, FP32_BYTES * rows), f"a bias of {bias} bytes for {rows} rows")
        blocks, rest = divmod(scales, FP16_BYTES * rows)
        fits = blocks > 0 and not rest and not cols % blocks and cols // blocks >= LEAST_BLOCK
        need(fits, f"{scales} bytes of scales for {rows} rows of {cols} columns")
        return len(head) + rows * cols * bits // 8, scales, bias, 0


def _check_fields(stored: dict[str, Any], **expected: Any) -> None:
    for name, value in stored.items():
        wanted = expected.get(name)
        need(value == wanted if wanted is not None else not value, f"{name} is {value!r:.40}")
