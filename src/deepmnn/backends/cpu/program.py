"""program.bin: everything the C++ core needs to run a model. docs/program.md is the format.

Program ──encode──► bytes ──read_program──► Program ──format_program──► text for people
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args

from deepmnn.errors import ArtifactError
from deepmnn.formats import FORMATS
from deepmnn.graph.ir import CONTEXT, ROWS, TOKENS, Attr
from deepmnn.graph.signatures import Reading

MAGIC = b"DMNPROG\0"
VERSION = 2
VALUE_DTYPES = ("f32", "i32")
DIMS = (TOKENS, CONTEXT, ROWS)
READINGS: tuple[str, ...] = get_args(Reading)

T = TypeVar("T")


@dataclass(frozen=True)
class ProgramWeight:
    """A stored matrix [rows, cols] (a vector has rows = 1): `nbytes` at `offset` of a shard."""

    name: str
    format: str
    rows: int
    cols: int
    group_size: int
    shard: int
    offset: int
    nbytes: int


@dataclass(frozen=True)
class ProgramBuffer:
    """A value: `offset` is bytes per row in the arena of `dim`, -1 when the caller supplies it."""

    name: str
    dtype: str
    dim: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Instruction:
    """One op; inputs, outputs, weights and caches are positions in the program's tables.

    readings: how each weight is read (graph/signatures.py). caches: the entries it writes.
    row_macs: multiply-accumulates for each row; context_macs: besides, for each cached row it sees.
    """

    op: str
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    weights: tuple[int, ...]
    readings: tuple[str, ...]
    caches: tuple[int, ...]
    row_macs: int
    context_macs: int
    attrs: dict[str, Attr]


@dataclass(frozen=True)
class Program:
    """The tables of program.bin, in file order. arenas: bytes per token, context and logits row."""

    name: str
    shards: tuple[str, ...] = ()
    weights: tuple[ProgramWeight, ...] = ()
    caches: dict[str, int] = field(default_factory=dict)
    buffers: tuple[ProgramBuffer, ...] = ()
    arenas: tuple[int, int, int] = (0, 0, 0)
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    instructions: tuple[Instruction, ...] = ()


# ---------------------------------------------------------------------------- writing


def encode(program: Program) -> bytes:
    """The bytes of program.bin."""
    parts = [MAGIC, _u32(VERSION), _str(program.name)]
    parts.append(_list(program.shards, _str))
    parts.append(_list(program.weights, _weight))
    parts.append(_list(list(program.caches.items()), lambda item: _str(item[0]) + _u32(item[1])))
    parts.append(_list(program.buffers, _buffer))
    parts.append(struct.pack("<3q", *program.arenas))
    parts.append(_list(program.inputs, _u32))
    parts.append(_list(program.outputs, _u32))
    parts.append(_list(program.instructions, _instruction))
    return b"".join(parts)


def _u32(value: int) -> bytes:
    return struct.pack("<I", value)


def _str(text: str) -> bytes:
    data = text.encode()
    return _u32(len(data)) + data


def _list(items: Sequence[T], write: Callable[[T], bytes]) -> bytes:
    return _u32(len(items)) + b"".join(write(item) for item in items)


def _weight(weight: ProgramWeight) -> bytes:
    return _str(weight.name) + struct.pack(
        "<BqqIIQQ",
        *(FORMATS[weight.format].code, weight.rows, weight.cols, weight.group_size),
        *(weight.shard, weight.offset, weight.nbytes),
    )


def _buffer(buffer: ProgramBuffer) -> bytes:
    kind = bytes([VALUE_DTYPES.index(buffer.dtype), DIMS.index(buffer.dim)])
    shape = _list(buffer.shape, _u32)
    return _str(buffer.name) + kind + shape + struct.pack("<q", buffer.offset)


def _instruction(instruction: Instruction) -> bytes:
    parts = [_str(instruction.op), _str(instruction.name)]
    parts += [_list(ids, _u32) for ids in (instruction.inputs, instruction.outputs)]
    weights = list(zip(instruction.weights, instruction.readings, strict=True))
    parts.append(_list(weights, lambda read: _u32(read[0]) + bytes([READINGS.index(read[1])])))
    parts.append(_list(instruction.caches, _u32))
    parts.append(struct.pack("<2Q", instruction.row_macs, instruction.context_macs))
    parts.append(_list(list(instruction.attrs.items()), _attr))
    return b"".join(parts)


def _attr(item: tuple[str, Attr]) -> bytes:
    key, value = item
    if isinstance(value, int):
        return _str(key) + struct.pack("<Bq", 0, value)
    if isinstance(value, float):
        return _str(key) + struct.pack("<Bd", 1, value)
    if isinstance(value, str):
        return _str(key) + b"\2" + _str(value)
    floats = any(isinstance(element, float) for element in value)
    kind, code = (4, "d") if floats else (3, "q")
    return _str(key) + struct.pack(f"<BI{len(value)}{code}", kind, len(value), *value)


# ---------------------------------------------------------------------------- reading


class _Reader:
    """Takes values off the front of the bytes; every shortage is an ArtifactError."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int, what: str) -> bytes:
        left = len(self.data) - self.at
        if size > left:
            raise _damaged(f"{what} needs {size} bytes at byte {self.at}, but {left} are left")
        self.at += size
        return self.data[self.at - size : self.at]

    def numbers(self, code: str, what: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}"), what))

    def u32(self) -> int:
        return int(self.numbers("I", "a number")[0])

    def text(self) -> str:
        data = self.take(self.u32(), "a string")
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise _damaged(f"a string before byte {self.at} is not UTF-8") from None

    def items(self, read: Callable[[], T]) -> tuple[T, ...]:
        count = self.u32()
        if count > len(self.data) - self.at:
            raise _damaged(f"a list at byte {self.at} claims {count} items")
        return tuple(read() for _ in range(count))

    def one_of(self, names: tuple[str, ...], what: str) -> str:
        code = int(self.numbers("B", what)[0])
        if code >= len(names):
            raise _damaged(f"{what} {code} is unknown")
        return names[code]

    def index(self, table: Sized, what: str) -> int:
        number = self.u32()
        if number >= len(table):
            raise _damaged(f"{what} {number} does not exist")
        return number


def _damaged(found: str) -> ArtifactError:
    return ArtifactError(f"program.bin: {found}", "", "Convert the model again.")


def read_program(data: bytes) -> Program:
    """Parses program.bin; the inverse of `encode`. Raises ArtifactError when it is malformed."""
    reader = _Reader(data)
    if reader.take(len(MAGIC), "the magic") != MAGIC:
        raise _damaged("not a deepmnn program")
    version = reader.u32()
    if version != VERSION:
        raise _damaged(f"format version {version}, this deepmnn reads {VERSION}")
    name, shards = reader.text(), reader.items(reader.text)
    weights = reader.items(lambda: _read_weight(reader, shards))
    caches = dict(reader.items(lambda: (reader.text(), reader.u32())))
    buffers = reader.items(lambda: _read_buffer(reader))
    tokens, context, rows = reader.numbers("3q", "the arena sizes")
    inputs = reader.items(lambda: reader.index(buffers, "buffer"))
    outputs = reader.items(lambda: reader.index(buffers, "buffer"))
    instructions = reader.items(lambda: _read_instruction(reader, buffers, weights, caches))
    if reader.at != len(data):
        raise _damaged(f"{len(data) - reader.at} bytes follow the last instruction")
    arenas = (tokens, context, rows)
    return Program(name, shards, weights, caches, buffers, arenas, inputs, outputs, instructions)


def _read_weight(reader: _Reader, shards: tuple[str, ...]) -> ProgramWeight:
    name, format = reader.text(), reader.one_of(tuple(FORMATS), "weight format")
    rows, cols, group_size = reader.numbers("qqI", "a weight")
    shard = reader.index(shards, "shard")
    return ProgramWeight(
        name, format, rows, cols, group_size, shard, *reader.numbers("QQ", "a weight")
    )


def _read_buffer(reader: _Reader) -> ProgramBuffer:
    name, dtype = reader.text(), reader.one_of(VALUE_DTYPES, "buffer dtype")
    dim, shape = reader.one_of(DIMS, "buffer dimension"), reader.items(reader.u32)
    return ProgramBuffer(name, dtype, dim, shape, reader.numbers("q", "an offset")[0])


def _read_instruction(
    reader: _Reader, buffers: Sized, weights: Sized, caches: Sized
) -> Instruction:
    op, name = reader.text(), reader.text()
    inputs = reader.items(lambda: reader.index(buffers, "buffer"))
    outputs = reader.items(lambda: reader.index(buffers, "buffer"))
    read = reader.items(
        lambda: (reader.index(weights, "weight"), reader.one_of(READINGS, "way to read a weight"))
    )
    written = reader.items(lambda: reader.index(caches, "cache"))
    row_macs, context_macs = reader.numbers("2Q", "a cost")
    attrs = dict(reader.items(lambda: (reader.text(), _read_attr(reader))))
    weight_ids, readings = tuple(item for item, _ in read), tuple(way for _, way in read)
    return Instruction(
        op, name, inputs, outputs, weight_ids, readings, written, row_macs, context_macs, attrs
    )


def _read_attr(reader: _Reader) -> Attr:
    kind = reader.numbers("B", "an attribute type")[0]
    if kind in (0, 1):
        value: int | float = reader.numbers("q" if kind == 0 else "d", "an attribute")[0]
        return value
    if kind == 2:
        return reader.text()
    if kind not in (3, 4):
        raise _damaged(f"attribute type {kind} is unknown")
    code = "q" if kind == 3 else "d"
    return reader.items(lambda: reader.numbers(code, "an attribute")[0])


# ---------------------------------------------------------------------------- showing


def format_program(program: Program) -> str:
    """The program as text, one instruction per line: outputs = op(inputs; weights) {attributes}."""
    counts = zip(DIMS, program.arenas, strict=True)
    lines = [
        f"program {program.name}: {len(program.instructions)} instructions, "
        f"{len(program.buffers)} buffers, {len(program.weights)} weights "
        f"in {len(program.shards)} shards",
        "arena bytes per row: " + ", ".join(f"{dim} {nbytes}" for dim, nbytes in counts),
        *(f"cache {name}: {width} elements per token" for name, width in program.caches.items()),
    ]
    for position, instruction in enumerate(program.instructions):
        outputs = ", ".join(_show_buffer(program.buffers[i]) for i in instruction.outputs)
        inputs = ", ".join(program.buffers[i].name for i in instruction.inputs)
        lines.append(f"{position:5} {outputs} = {instruction.op}({inputs})  # {instruction.name}")
        lines += [f"        {_show_weights(program, instruction)}"] * bool(instruction.weights)
        lines += [f"        writes {name}" for name in _caches_of(program, instruction)]
        lines += [f"        {key}={_short(value)}" for key, value in instruction.attrs.items()]
    return "\n".join(lines)


def _show_buffer(buffer: ProgramBuffer) -> str:
    place = "external" if buffer.offset < 0 else f"@{buffer.offset}"
    return f"{buffer.name}[{', '.join([buffer.dim, *map(str, buffer.shape)])}]{place}"


def _show_weights(program: Program, instruction: Instruction) -> str:
    shown = [program.weights[i] for i in instruction.weights[:4]]
    text = ", ".join(f"{w.name} {w.format}[{w.rows}, {w.cols}]" for w in shown)
    more = len(instruction.weights) - len(shown)
    return f"{text}, {more} more" if more else text


def _caches_of(program: Program, instruction: Instruction) -> list[str]:
    names = list(program.caches)
    return [names[i] for i in instruction.caches]


def _short(value: Attr) -> str:
    if isinstance(value, tuple) and len(value) > 4:
        return f"({value[0]}, {value[1]}, ... {len(value)} numbers)"
    return str(value)
