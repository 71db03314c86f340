"""The pickle inside a PyTorch file: which tensor is which part of which record.

torch/_utils.py and torch/_tensor.py have the functions that tensors are saved as calls of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deepmnn.source.pickle_machine import OBJECT, DamagedPickleError, Foreign, Global, PickleMachine

STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "ComplexFloatStorage": "C64",
    "ComplexDoubleStorage": "C128",
}
"""torch's kinds of storage → dtypes in safetensors' words."""

DTYPES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e5m2": "F8_E5M2",
    "torch.float8_e8m0fnu": "F8_E8M0",
    "torch.float8_e4m3fnuz": "F8_E4M3FNUZ",
    "torch.float8_e5m2fnuz": "F8_E5M2FNUZ",
    "torch.complex32": "C32",
    "torch.complex64": "C64",
    "torch.complex128": "C128",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int16": "I16",
    "torch.int8": "I8",
    "torch.uint64": "U64",
    "torch.uint32": "U32",
    "torch.uint16": "U16",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}
"""torch's dtypes → the same in safetensors' words."""

_REBUILD = "torch._utils._rebuild_"
_OF_A_CLASS = "torch._tensor._rebuild_from_type_v2"
_PARAMETERS = (
    "torch.nn.parameter.Parameter",
    "torch.nn.parameter.Buffer",
    _REBUILD + "parameter",
    _REBUILD + "parameter_with_state",
)
_DENSE = (_REBUILD + "tensor", _REBUILD + "tensor_v2", _REBUILD + "tensor_v3")
_NOT_DENSE = {
    _REBUILD + "qtensor": "a quantised tensor",
    _REBUILD + "sparse_tensor": "a sparse tensor (torch.sparse_coo or another)",
    _REBUILD + "nested_tensor": "a nested tensor",
    _REBUILD + "meta_tensor_no_storage": "a meta tensor, which has no numbers",
    _REBUILD + "wrapper_subclass": "a tensor of a class of its own",
    _REBUILD + "device_tensor_from_numpy": "a tensor of another device",
    _REBUILD + "device_tensor_from_cpu_tensor": "a tensor of another device",
}
_OTHERS = (
    "collections.OrderedDict",
    "collections.Counter",
    "_codecs.encode",
    "builtins.bytearray",
    "builtins.complex",
    "builtins.set",
    "__builtin__.bytearray",
    "__builtin__.complex",
    "__builtin__.set",
    "torch.serialization._get_layout",
)
_KNOWN = {_OF_A_CLASS, *_PARAMETERS, *_DENSE, *_NOT_DENSE, *_OTHERS}
_MODULES = ("torch", "torch.storage", "torch.cuda")
"""Their names are dtypes, layouts and storages."""

_MAX_DIMS = 32


@dataclass(frozen=True, slots=True)
class Storage:
    """A record of numbers by its name. dtype: None for one that is not known."""

    dtype: str | None
    key: str


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A tensor on a storage: offset, shape and strides in elements, checked against nothing.

    instead: what else it is, "" for a plain dense tensor.
    """

    dtype: str | None = None
    key: str = ""
    offset: int = 0
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    instead: str = ""


class TorchPickle(PickleMachine):
    """What torch.save wrote: dicts of PickledTensors. Raises DamagedPickleError."""

    @property
    def objects(self) -> list[str]:
        """The Python classes and functions that no state dict needs."""
        return sorted(
            name for name in self.names - _KNOWN if name.rpartition(".")[0] not in _MODULES
        )

    def persistent(self, pid: object) -> Storage:
        """("storage", its class, the record's name, device, number of elements)."""
        if not isinstance(pid, tuple) or len(pid) < 3 or pid[0] != "storage":
            raise DamagedPickleError
        kind, key = pid[1], pid[2]
        if not isinstance(kind, Global) or not isinstance(key, str):
            raise DamagedPickleError
        return Storage(STORAGES.get(kind.name.rpartition(".")[2]), key)

    def call(self, name: str, arguments: tuple[Any, ...]) -> object:
        """Tensors, what wraps them, and ordered dicts, which are filled later."""
        if name == "collections.OrderedDict":
            return Foreign("OrderedDict") if arguments else {}
        if name == "torch.Size" and len(arguments) == 1:
            return arguments[0]
        if name == _OF_A_CLASS and len(arguments) == 4:
            function, _, inner, _ = arguments
            if isinstance(function, Global) and function.name in _DENSE + _PARAMETERS:
                return self.call(function.name, inner)
        if name in _NOT_DENSE:
            return PickledTensor(instead=_NOT_DENSE[name])
        if name in _PARAMETERS and arguments:
            return arguments[0]
        return _tensor(name, arguments) if name in _DENSE else OBJECT


def _tensor(function: str, arguments: tuple[Any, ...]) -> PickledTensor:
    """Of (storage, offset, size, stride, requires_grad, hooks, dtype in _v3, flags).

    Flags, if there are any, say that its numbers are to be negated or conjugated.
    """
    storage, offset, shape, strides, *rest = arguments
    if not isinstance(storage, Storage) or not all(map(_are_sizes, ((offset,), shape, strides))):
        raise DamagedPickleError
    dtype, flags = storage.dtype, rest[2:]
    if function == _REBUILD + "tensor_v3":
        named, flags = rest[2], rest[3:]
        dtype = DTYPES.get(named.name) if isinstance(named, Global) else None
    if any(isinstance(flag, dict) and flag for flag in flags):
        return PickledTensor(instead="a negated or conjugated view")
    return PickledTensor(dtype, storage.key, offset, shape, strides)


def _are_sizes(values: object) -> bool:
    return (
        isinstance(values, tuple)
        and len(values) <= _MAX_DIMS
        and all(type(value) is int and 0 <= value < 1 << 48 for value in values)
    )
