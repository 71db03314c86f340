"""PyTorch files (torch.save): the tensors of a state dict, decoded to float32.

A file is a zip archive of uncompressed records: data.pkl, a pickle of the containers, and data/KEY,
the bytes of each storage. torch reads the pickle alone: restricted to tensors and plain containers
(weights_only), so that nothing in it runs, and without the numbers (map_location "meta"). They are
read from their place in the file when asked for, as in safetensors.py: memory stays that of one
tensor, and a file that shrinks meanwhile is an error instead of the bus fault of a mapping.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmnn.errors import CheckpointError, MissingDependencyError, TensorNotFoundError
from deepmnn.graph.weights import F32
from deepmnn.source.safetensors import DTYPES, SAMPLE_BYTES, to_float32
from deepmnn.source.torch_archive import RE_DOWNLOAD, read_records

WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which training scripts keep the state dict, in the order they are tried."""

MAX_REPEATED = 1 << 28
"""Elements that a tensor may have beyond those stored (torch's expand repeats with stride 0)."""

MAX_EXPERTS = 1 << 16
"""No layer has more experts; a damaged size is not taken for their number."""

_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
"""torch's dtypes in safetensors' words."""

_SAVE_STATE_DICT = (
    "Where its code is installed, save the weights alone: torch.save(model.state_dict(), PATH)"
)


@dataclass(frozen=True)
class Entry:
    """One tensor's place: element (i, j) lies at byte begin + itemsize · (i, j) · strides.

    Attributes:
        dtype: in safetensors' words; torch's own word for what those lack.
        itemsize: bytes of an element.
        shape, strides: in elements.
        begin: byte of the first element, from the file's start.
        storage: bytes [begin, end) of the storage, which several tensors may share.
    """

    dtype: str
    itemsize: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    begin: int
    storage: tuple[int, int]

    @property
    def span(self) -> int:
        """Elements from the first to the last as stored, both included."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes from the first element to the end of the last."""
        return self.span * self.itemsize

    def part(self, index: int, start: int = 0, stop: int | None = None) -> Entry:
        """tensor[index, start:stop]: the place of a part, without its first dimension."""
        rows = len(range(*slice(start, stop).indices(self.shape[1])))
        offset = index * self.strides[0] + start * self.strides[1]
        return replace(
            self,
            shape=(rows, *self.shape[2:]),
            strides=self.strides[1:],
            begin=self.begin + offset * self.itemsize,
        )


class TorchFile:
    """One state dict on disk. Needs torch to be opened; the numbers are read without it.

    Args:
        path: a file that torch.save (1.6 or newer) wrote: tensor name → tensor, or such a mapping
            under one of WRAPPERS. What is not a tensor is left out.

    Raises CheckpointError, or MissingDependencyError without torch.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        records = read_records(path)
        state = _state_dict(_load(path), path)
        self.entries = unstack_experts(
            {name: _entry(name, state[name], records, path) for name in state}
        )

    def read(self, name: str) -> F32:
        """The tensor as float32. Raises TensorNotFoundError."""
        return to_float32(self.stored(name))

    def stored(self, name: str) -> NDArray[Any]:
        """The tensor in its stored type. Raises TensorNotFoundError."""
        entry = self._entry(name)
        if entry.dtype not in DTYPES:
            raise CheckpointError(
                f"tensor {name!r} in {self.path} has dtype {entry.dtype}",
                f"one of {', '.join(_NAMES)}",
            )
        raw, dtype = self._bytes(name, entry.begin, entry.nbytes), DTYPES[entry.dtype]
        if 0 in entry.shape or entry.strides == _row_major(entry.shape):
            return raw.view(dtype).reshape(entry.shape)
        strides = [entry.itemsize * stride for stride in entry.strides]
        strided: NDArray[Any] = np.ndarray(entry.shape, dtype, raw.data, strides=strides)
        return np.array(strided, order="C")

    def sample(self, name: str) -> bytes:
        """A little of the tensor's bytes, at the same places in all tensors of one layout."""
        entry = self._entry(name)
        nbytes = min(SAMPLE_BYTES, entry.nbytes)
        places = (0, (entry.nbytes - nbytes) // 2, entry.nbytes - nbytes)
        return b"".join(self._bytes(name, entry.begin + at, nbytes).tobytes() for at in places)

    def remove_prefix(self, prefix: str) -> None:
        """Renames the tensors whose names begin with `prefix`."""
        self.entries = {name.removeprefix(prefix): e for name, e in self.entries.items()}

    def _bytes(self, name: str, begin: int, nbytes: int) -> NDArray[np.uint8]:
        try:
            data = np.fromfile(self.path, np.uint8, nbytes, offset=begin)
        except OSError as fault:
            raise CheckpointError(f"{self.path} cannot be read: {fault}") from None
        if data.nbytes != nbytes:
            raise CheckpointError(f"{self.path} ends inside tensor {name!r}", "", RE_DOWNLOAD)
        return data

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise TensorNotFoundError(f"{self.path} has no tensor {name!r}")
        return self.entries[name]


def unstack_experts(entries: dict[str, Entry]) -> dict[str, Entry]:
    """Gives every expert tensors of its own, as checkpoints have them.

    Since version 5 transformers holds the experts of a layer in memory as two tensors,
    experts.gate_up_proj [experts, 2 · moe_intermediate_size, hidden_size] and
    experts.down_proj [experts, hidden_size, moe_intermediate_size]; model.state_dict() shows those.
    """
    unstacked: dict[str, Entry] = {}
    for name, entry in entries.items():
        layer, dot, projection = name.rpartition(".experts.")
        experts = entry.shape[0] if dot and len(entry.shape) == 3 else 0
        if projection not in ("gate_up_proj", "down_proj") or not 0 < experts <= MAX_EXPERTS:
            unstacked[name] = entry
            continue
        half = entry.shape[1] // 2
        for expert in range(experts):
            of = f"{layer}.experts.{expert}"
            if projection == "down_proj":
                unstacked[f"{of}.down_proj.weight"] = entry.part(expert)
            else:
                unstacked[f"{of}.gate_proj.weight"] = entry.part(expert, 0, half)
                unstacked[f"{of}.up_proj.weight"] = entry.part(expert, half)
    return unstacked


def _torch() -> Any:
    try:
        return import_module("torch")
    except ImportError:
        raise MissingDependencyError(
            "PyTorch files need torch, which is not installed",
            "torch, or weights in safetensors",
            "Install it: pip install torch",
        ) from None


def _load(path: Path) -> object:
    """What the pickle holds, its tensors without numbers. Raises CheckpointError."""
    torch = _torch()
    try:
        return torch.load(str(path), map_location="meta", weights_only=True)
    except pickle.UnpicklingError:
        raise _refusal(torch, path) from None
    except Exception as fault:  # a damaged file ends in any of Python's and torch's errors
        reason = f"{type(fault).__name__}: {fault}".splitlines()[0]
        raise CheckpointError(
            f"{path} cannot be read: {reason:.200}", "a file written by torch.save", RE_DOWNLOAD
        ) from None


def _refusal(torch: Any, path: Path) -> CheckpointError:
    """Says which Python objects the file wants to make, or that its pickle is damaged."""
    try:
        unsafe = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # as in _load
        unsafe = []
    if not unsafe:
        return CheckpointError(
            f"{path} has a damaged pickle", "a file written by torch.save", RE_DOWNLOAD
        )
    names = ", ".join(map(repr, unsafe[:4])) + (", …" if len(unsafe) > 4 else "")
    whole = any(name.startswith("torch.nn.modules.") for name in unsafe)
    return CheckpointError(
        f"{path} holds {'a whole model' if whole else 'more than tensors'}, and Python objects are "
        f"never loaded: {names:.300}",
        "a state dict (tensor name → tensor)",
        _SAVE_STATE_DICT,
    )


def _state_dict(loaded: object, path: Path) -> dict[str, Any]:
    """The tensors by name. Raises CheckpointError when there are none."""
    tensors = _unwrap(loaded, _torch().Tensor, len(WRAPPERS))
    if not tensors:
        keys = ", ".join(map(repr, loaded)) if isinstance(loaded, Mapping) else ""
        what = f"a {type(loaded).__name__}" + (f" with the keys {keys}" if keys else "")
        raise CheckpointError(
            f"{path} holds {what:.200}", "a state dict (tensor name → tensor)", _SAVE_STATE_DICT
        )
    return tensors


def _unwrap(value: object, tensor: type, depth: int) -> dict[str, Any]:
    """The tensors of a mapping, or rather of the first wrapper in it that has some."""
    if not isinstance(value, Mapping):
        return {}
    for key in WRAPPERS if depth else ():
        if inner := _unwrap(value.get(key), tensor, depth - 1):
            return inner
    return {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, tensor)}


def _entry(name: str, tensor: Any, records: dict[int, int], path: Path) -> Entry:
    """A tensor's place, checked against the archive: torch takes its word for sizes."""
    where = f"tensor {name!r} in {path}"
    if str(tensor.layout) != "torch.strided" or tensor.is_quantized:
        raise CheckpointError(
            f"{where} is stored as {tensor.layout}, {tensor.dtype}", "a plain dense tensor"
        )
    begin = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    if begin is None:
        raise CheckpointError(
            f"{where} has no numbers",
            "tensors saved from a CPU or a GPU (not meta), and torch 2.13 or newer to open them",
        )
    if begin not in records:
        raise CheckpointError(
            f"{where} is not at the place that torch.save gives it",
            "",
            "The file is damaged, or was zipped again: copy it again, or "
            f"torch.save(torch.load({path.name!r}, weights_only=True), PATH)",
        )
    word = str(tensor.dtype).removeprefix("torch.")
    itemsize = tensor.element_size()
    shape, strides = tuple(tensor.shape), tuple(tensor.stride())
    first, end = begin + tensor.storage_offset() * itemsize, records[begin]
    entry = Entry(_NAMES.get(word, word), itemsize, shape, strides, first, (begin, end))
    repeated = math.prod(shape) > max(entry.span, MAX_REPEATED)
    if not begin <= first <= first + entry.nbytes <= end or min(strides, default=0) < 0 or repeated:
        raise CheckpointError(f"{where} lies outside its record", "", RE_DOWNLOAD)
    return entry


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a contiguous tensor, in elements."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
