"""PyTorch files (torch.save): the tensors of a state dict.

A file is a zip archive of uncompressed records: data.pkl, a pickle of the containers, and data/KEY,
the bytes of each storage. Nothing in the pickle runs, and torch is not needed: it says where the
numbers of each tensor lie in the file.
"""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path

from deepmnn.errors import CheckpointError
from deepmnn.source.entry import BITS, Entry
from deepmnn.source.pickle_machine import DamagedPickleError, Foreign
from deepmnn.source.regular_file import RegularFile
from deepmnn.source.torch_archive import RE_DOWNLOAD, TorchArchive
from deepmnn.source.torch_pickle import PickledTensor, TorchPickle

WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which training scripts keep the state dict, in the order they are tried."""

MAX_PICKLE_BYTES = 1 << 26
"""The names and shapes of a hundred thousand tensors take 20 MB."""

MAX_REPEATED = 1 << 22
"""Elements of a tensor that repeats what is stored (torch's expand, with stride 0)."""

_SAVE_STATE_DICT = (
    "Where its code is installed, save the weights alone: torch.save(model.state_dict(), PATH)"
)


def read_torch(path: Path) -> dict[str, Entry]:
    """The tensors of a state dict by name.

    Args:
        path: a file that torch.save (1.6 or newer) wrote: tensor name → tensor, or such a mapping
            under one of WRAPPERS. What is not a tensor is left out.

    Raises CheckpointError.
    """
    archive = TorchArchive(RegularFile(path))
    tensors = _state_dict(archive.read("data.pkl", MAX_PICKLE_BYTES), path)
    return {name: _entry(name, tensor, archive) for name, tensor in tensors.items()}


def _state_dict(data: bytes, path: Path) -> dict[str, PickledTensor]:
    """The tensors of the pickle. Raises CheckpointError when there are none."""
    try:
        pickle = TorchPickle(data)
    except DamagedPickleError as fault:
        raise CheckpointError(
            f"{path} has a damaged pickle: {fault}", "a file written by torch.save", RE_DOWNLOAD
        ) from None
    if pickle.objects:
        raise _refusal(pickle.objects, path)
    tensors = _unwrap(pickle.value, len(WRAPPERS))
    if not tensors:
        raise CheckpointError(
            f"{path} holds {_described(pickle.value)}",
            "a state dict (tensor name → tensor)",
            _SAVE_STATE_DICT,
        )
    return tensors


def _refusal(objects: list[str], path: Path) -> CheckpointError:
    """Says which Python objects the file wants to make."""
    names = ", ".join(f"{name!r:.80}" for name in objects[:4]) + (", …" if objects[4:] else "")
    whole = any(name.startswith("torch.nn.modules.") for name in objects)
    return CheckpointError(
        f"{path} holds {'a whole model' if whole else 'more than tensors'}, and Python objects are "
        f"never loaded: {names}",
        "a state dict (tensor name → tensor)",
        _SAVE_STATE_DICT,
    )


def _unwrap(value: object, depth: int) -> dict[str, PickledTensor]:
    """The tensors of a dict, or rather of the first wrapper in it that has some."""
    if not isinstance(value, dict):
        return {}
    for key in WRAPPERS if depth else ():
        if inner := _unwrap(value.get(key), depth - 1):
            return inner
    return {name: item for name, item in value.items() if isinstance(item, PickledTensor)}


def _described(value: object) -> str:
    """What it is, without looking inside: nothing of a stranger's is printed whole."""
    if isinstance(value, dict):
        keys = ", ".join(f"{key!r:.40}" for key in islice(value, 5))
        return f"a dict with the keys {keys}" if keys else "a dict without tensors"
    if isinstance(value, PickledTensor):
        return "a Tensor"
    return f"a {value.kind if isinstance(value, Foreign) else type(value).__name__}"


def _entry(name: str, tensor: PickledTensor, archive: TorchArchive) -> Entry:
    """A tensor's place, checked against the archive. Raises CheckpointError."""
    where = f"tensor {name!r:.200} in {archive.file.path}"
    if tensor.instead or tensor.dtype is None:
        what = tensor.instead or "a dtype that is not known"
        raise CheckpointError(f"{where} is stored as {what}", "a plain dense tensor")
    begin, end = archive.records.get(f"data/{tensor.key}", (0, 0))
    first = begin + tensor.offset * BITS[tensor.dtype] // 8
    entry = Entry(
        archive.file, name, tensor.dtype, tensor.shape, first, tensor.strides, (begin, end)
    )
    if len(tensor.shape) != len(tensor.strides) or not begin <= first <= entry.end <= end:
        raise CheckpointError(f"{where} lies outside its record", "", RE_DOWNLOAD)
    if math.prod(tensor.shape) > max(entry.span, MAX_REPEATED):
        raise CheckpointError(
            f"{where} repeats {entry.span} numbers in a tensor of {math.prod(tensor.shape)}",
            "the numbers themselves",
            "Save it again with tensor.contiguous().",
        )
    return entry
