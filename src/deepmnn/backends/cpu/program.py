"""program.bin: everything the C++ core needs to run a model. docs/program.md is the format.

Program ──encode──► bytes ──read_program──► Program ──format_program──► text for people
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar, get_args

from deepmnn.backends.cpu.pieces import MAX_PIECE_NBYTES, ZEROS, Piece, Pieces, fault_of
from deepmnn.errors import ArtifactError, ConfigError, DeepmnnError
from deepmnn.formats import ALIGNMENT, FORMATS
from deepmnn.graph.caches import CacheEntry
from deepmnn.graph.ir import CONTEXT, ROWS, TOKENS, Attr
from deepmnn.graph.signatures import Reading

MAGIC = b"DMNPROG\0"
VERSION = 5
VALUE_DTYPES = ("f32", "i32")
DIMS = (TOKENS, CONTEXT, ROWS)
READINGS: tuple[str, ...] = get_args(Reading)

# docs/program.md has the limits; the core has the same.
MAX_NBYTES = 32 << 20
MAX_TEXT = 4096
MAX_DIMS = 8
MAX_SHARDS = 1 << 14
MAX_PARTS = 2
MAX_OUTPUTS = 256
MAX_INSTRUCTIONS = 1 << 18
MAX_EXTENT = 1 << 31
MAX_RATIO = 1 << 20
MAX_PIECES = 1 << 14
"""Of the weights that have several; each may be a mapping of its own."""

T = TypeVar("T")


@dataclass(frozen=True)
class ProgramWeight:
    """A stored matrix [rows, cols] (a vector has rows = 1), and where its bytes lie."""

    name: str
    format: str
    rows: int
    cols: int
    pieces: Pieces

    @property
    def nbytes(self) -> int:
        """Of all pieces."""
        return sum(piece.nbytes for piece in self.pieces)


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
class ProgramPart:
    """What runs by itself: buffers that are its inputs and outputs, and its instructions."""

    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    instructions: tuple[Instruction, ...] = ()


@dataclass(frozen=True)
class Program:
    """The tables of program.bin, in file order. arenas: bytes per token, context and logits row.

    inputs, outputs and instructions are those of the main part; draft: the draft part, if any
    (graph/draft.py), whose own weights and caches come after all that the main part has.
    """

    name: str
    shards: tuple[str, ...] = ()
    weights: tuple[ProgramWeight, ...] = ()
    caches: dict[str, CacheEntry] = field(default_factory=dict)
    buffers: tuple[ProgramBuffer, ...] = ()
    arenas: tuple[int, int, int] = (0, 0, 0)
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    instructions: tuple[Instruction, ...] = ()
    draft: ProgramPart | None = None

    @property
    def main(self) -> ProgramPart:
        """The main part."""
        return ProgramPart(self.inputs, self.outputs, self.instructions)

    @property
    def parts(self) -> tuple[ProgramPart, ...]:
        """The main part, and the draft part where there is one."""
        return (self.main, self.draft) if self.draft else (self.main,)

    def without_draft(self) -> Program:
        """The program as the core runs it when nobody drafts: the main part alone, and what it has
        of weights, caches and buffers.
        """
        if self.draft is None:
            return self
        weights = 1 + max((w for each in self.instructions for w in each.weights), default=-1)
        caches = 1 + max((c for each in self.instructions for c in each.caches), default=-1)
        touched = [b for each in self.instructions for b in (*each.inputs, *each.outputs)]
        return replace(
            self,
            weights=self.weights[:weights],
            caches=dict(list(self.caches.items())[:caches]),
            buffers=self.buffers[: 1 + max((*touched, *self.inputs, *self.outputs), default=-1)],
            draft=None,
        )


# ---------------------------------------------------------------------------- writing


def encode(program: Program) -> bytes:
    """The bytes of program.bin. Raises ConfigError for more than a reader takes."""
    instructions = sum(len(part.instructions) for part in program.parts)
    _check_most(instructions, MAX_INSTRUCTIONS, "operations", ConfigError)
    _check_most(len(program.shards), MAX_SHARDS, "weight files", ConfigError)
    _check_most(_several(program.weights), MAX_PIECES, _PIECES, ConfigError)
    parts = [MAGIC, _u32(VERSION), _str(program.name)]
    parts.append(_list(program.shards, _str))
    parts.append(_list(program.weights, _weight))
    parts.append(_list(list(program.caches.items()), _cache))
    parts.append(_list(program.buffers, _buffer))
    parts.append(struct.pack("<3q", *program.arenas))
    parts.append(_list(program.parts, _part))
    data = b"".join(parts)
    _check_most(len(data), MAX_NBYTES, "bytes of program.bin", ConfigError)
    return data


def _part(part: ProgramPart) -> bytes:
    return (
        _list(part.inputs, _u32)
        + _list(part.outputs, _u32)
        + _list(part.instructions, _instruction)
    )


def _check_most(count: int, most: int, what: str, error: type[DeepmnnError]) -> None:
    if count > most:
        raise error(f"the model has {count} {what}", f"at most {most}")


_PIECES = "pieces of weights that have several"


def _several(weights: Sequence[ProgramWeight]) -> int:
    """How many pieces those weights have that have more than one."""
    return sum(len(weight.pieces) for weight in weights if len(weight.pieces) > 1)


def _u32(value: int) -> bytes:
    return struct.pack("<I", value)


def _str(text: str) -> bytes:
    data = text.encode()
    return _u32(len(data)) + data


def _list(items: Sequence[T], write: Callable[[T], bytes]) -> bytes:
    return _u32(len(items)) + b"".join(write(item) for item in items)


def _weight(weight: ProgramWeight) -> bytes:
    return (
        _str(weight.name)
        + struct.pack("<Bqq", FORMATS[weight.format].code, weight.rows, weight.cols)
        + _list(weight.pieces, _piece)
    )


def _piece(piece: Piece) -> bytes:
    return struct.pack("<IQQ", piece.shard, piece.offset, piece.nbytes)


def _cache(item: tuple[str, CacheEntry]) -> bytes:
    name, entry = item
    numbers = (entry.width, entry.ratio, entry.window, entry.exact)
    return _str(name) + struct.pack("<3IB", *numbers)


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
        length = self.u32()
        if length > MAX_TEXT:
            raise _damaged(f"a string of {length} bytes at byte {self.at}", f"at most {MAX_TEXT}")
        data = self.take(length, "a string")
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise _damaged(f"a string before byte {self.at} is not UTF-8") from None

    def items(self, read: Callable[[], T], nbytes: int, most: int = MAX_NBYTES) -> tuple[T, ...]:
        """A list, at most `most` items of at least `nbytes` each."""
        count, left = self.u32(), len(self.data) - self.at
        if count > min(most, left // nbytes):
            raise _damaged(
                f"a list of {count} at byte {self.at}", f"at most {min(most, left // nbytes)}"
            )
        return tuple(read() for _ in range(count))

    def number(self, code: str, what: str, low: int, high: int, multiple: int = 1) -> int:
        """An integer of that range."""
        value = int(self.numbers(code, what)[0])
        if not low <= value <= high or value % multiple:
            of = f", a multiple of {multiple}" if multiple > 1 else ""
            raise _damaged(f"{what} is {value} before byte {self.at}", f"{low} to {high}{of}")
        return value

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


def _damaged(found: str, expected: str = "") -> ArtifactError:
    return ArtifactError(f"program.bin: {found}", expected, "Convert the model again.")


def read_program(data: bytes) -> Program:
    """Parses program.bin; the inverse of `encode`. Raises ArtifactError when it is malformed.

    Takes time and memory in proportion to the bytes, whatever they claim.
    """
    reader = _Reader(data)
    name, shards = _read_head(reader)
    weights = _read_weights(reader, shards)
    caches = dict(reader.items(lambda: _read_cache(reader), 17))
    buffers = reader.items(lambda: _read_buffer(reader), 18)
    arena = partial(reader.number, "q", "an arena's size", 0, MAX_EXTENT, ALIGNMENT)
    arenas = (arena(), arena(), arena())
    parts = reader.items(lambda: _read_part(reader, buffers, weights, caches), 12, MAX_PARTS)
    _check_most(
        sum(len(part.instructions) for part in parts), MAX_INSTRUCTIONS, "operations", ArtifactError
    )
    if not parts:
        raise _damaged("there is no part that runs")
    if reader.at != len(data):
        raise _damaged(f"{len(data) - reader.at} bytes follow the last instruction")
    main, draft = parts[0], parts[1] if len(parts) > 1 else None
    return Program(
        *(name, shards, weights, caches, buffers, arenas),
        *(main.inputs, main.outputs, main.instructions, draft),
    )


def read_shards(data: bytes) -> tuple[str, ...]:
    """The names of the weight files that a program.bin maps. Raises ArtifactError."""
    return _read_head(_Reader(data))[1]


def read_weights(data: bytes) -> tuple[ProgramWeight, ...]:
    """The weights of a program.bin alone. Raises ArtifactError."""
    reader = _Reader(data)
    return _read_weights(reader, _read_head(reader)[1])


def _read_head(reader: _Reader) -> tuple[str, tuple[str, ...]]:
    """The graph's name, and those of the weight files."""
    _check_most(len(reader.data), MAX_NBYTES, "bytes of program.bin", ArtifactError)
    if reader.take(len(MAGIC), "the magic") != MAGIC:
        raise _damaged("not a deepmnn program")
    version = reader.u32()
    if version != VERSION:
        raise _damaged(f"format version {version}, this deepmnn reads {VERSION}")
    return reader.text(), reader.items(reader.text, 4, MAX_SHARDS)


def _read_weights(reader: _Reader, shards: tuple[str, ...]) -> tuple[ProgramWeight, ...]:
    weights = reader.items(lambda: _read_weight(reader, shards), 45)
    _check_most(_several(weights), MAX_PIECES, _PIECES, ArtifactError)
    return weights


def _read_weight(reader: _Reader, shards: tuple[str, ...]) -> ProgramWeight:
    weight = ProgramWeight(
        name=reader.text(),
        format=reader.one_of(tuple(FORMATS), "weight format"),
        rows=reader.number("q", "a weight's rows", 1, MAX_EXTENT),
        cols=reader.number("q", "a weight's columns", 1, MAX_EXTENT // 2),
        pieces=reader.items(lambda: _read_piece(reader, shards), 20),
    )
    if fault := fault_of(weight.pieces):
        raise _damaged(f"weight {weight.name:.200}: {fault}")
    return weight


def _read_piece(reader: _Reader, shards: tuple[str, ...]) -> Piece:
    shard = reader.u32()
    if shard >= len(shards) and shard != ZEROS:
        raise _damaged(f"shard {shard} does not exist")
    return Piece(
        shard,
        offset=reader.number("Q", "a weight's offset", 0, (1 << 64) - 1, ALIGNMENT),
        nbytes=reader.number("Q", "a weight's size", ALIGNMENT, MAX_PIECE_NBYTES, ALIGNMENT),
    )


def _read_cache(reader: _Reader) -> tuple[str, CacheEntry]:
    name = reader.text()
    entry = CacheEntry(
        width=reader.number("I", "a cache's width", 1, MAX_EXTENT),
        ratio=reader.number("I", "a cache's tokens for a row", 1, MAX_RATIO),
        window=reader.number("I", "a cache's window", 0, MAX_EXTENT),
        exact=bool(reader.number("B", "a cache's exactness", 0, 1)),
    )
    if entry.window and entry.ratio > 1:
        raise _damaged(f"cache {_cut(name)} has a window of rows for {entry.ratio} tokens")
    return name, entry


def _read_buffer(reader: _Reader) -> ProgramBuffer:
    name, dtype = reader.text(), reader.one_of(VALUE_DTYPES, "buffer dtype")
    dim, shape = reader.one_of(DIMS, "buffer dimension"), reader.items(reader.u32, 4, MAX_DIMS)
    if not 1 <= math.prod(shape) <= MAX_EXTENT:
        raise _damaged(f"a buffer of {list(shape)} a row", f"a product from 1 to {MAX_EXTENT}")
    offset = reader.number("q", "a buffer's offset", -1, MAX_EXTENT)
    return ProgramBuffer(name, dtype, dim, shape, offset)


def _read_part(reader: _Reader, buffers: Sized, weights: Sized, caches: Sized) -> ProgramPart:
    return ProgramPart(
        inputs=reader.items(lambda: reader.index(buffers, "buffer"), 4),
        outputs=reader.items(lambda: reader.index(buffers, "buffer"), 4, MAX_OUTPUTS),
        instructions=reader.items(
            lambda: _read_instruction(reader, buffers, weights, caches), 44, MAX_INSTRUCTIONS
        ),
    )


def _read_instruction(
    reader: _Reader, buffers: Sized, weights: Sized, caches: Sized
) -> Instruction:
    op, name = reader.text(), reader.text()
    inputs = reader.items(lambda: reader.index(buffers, "buffer"), 4)
    outputs = reader.items(lambda: reader.index(buffers, "buffer"), 4)
    read = reader.items(
        lambda: (reader.index(weights, "weight"), reader.one_of(READINGS, "way to read a weight")),
        5,
    )
    written = reader.items(lambda: reader.index(caches, "cache"), 4)
    row_macs, context_macs = reader.numbers("2Q", "a cost")
    attrs = dict(reader.items(lambda: (reader.text(), _read_attr(reader)), 6))
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
    return reader.items(lambda: reader.numbers(code, "an attribute")[0], 8)


# ---------------------------------------------------------------------------- showing

_SHOWN = 4
"""Values, weights or caches of an instruction that are named: a few words may refer to a lot."""


def format_program(program: Program) -> str:
    """The program as text, one instruction per line: outputs = op(inputs; weights) {attributes}."""
    counts = zip(DIMS, program.arenas, strict=True)
    lines = [
        f"program {program.name}: {len(program.instructions)} instructions, {_drafting(program)}"
        f"{len(program.buffers)} buffers, {len(program.weights)} weights "
        f"in {len(program.shards)} shards",
        "arena bytes per row: " + ", ".join(f"{dim} {nbytes}" for dim, nbytes in counts),
        *(f"cache {_cut(name)}: {_show_cache(entry)}" for name, entry in program.caches.items()),
    ]
    for part in program.parts:
        lines += ["", "draft part"] if part is program.draft else []
        lines += _show_part(program, part)
    return "\n".join(lines)


def _drafting(program: Program) -> str:
    return f"{len(program.draft.instructions)} in a draft part, " if program.draft else ""


def _show_part(program: Program, part: ProgramPart) -> list[str]:
    lines: list[str] = []
    caches = list(program.caches)
    for position, instruction in enumerate(part.instructions):
        outputs = _some(instruction.outputs, lambda i: _show_buffer(program.buffers[i]))
        inputs = _some(instruction.inputs, lambda i: _cut(program.buffers[i].name))
        lines.append(f"{position:5} {outputs} = {instruction.op}({inputs})  # {instruction.name}")
        if instruction.weights:
            shown = _some(instruction.weights, lambda i: _show_weight(program.weights[i]))
            lines.append(f"        {shown}")
        if instruction.caches:
            lines.append(f"        writes {_some(instruction.caches, lambda i: _cut(caches[i]))}")
        lines += [f"        {key}={_short(value)}" for key, value in instruction.attrs.items()]
    return lines


def _some(ids: tuple[int, ...], show: Callable[[int], str]) -> str:
    text = ", ".join(show(i) for i in ids[:_SHOWN])
    return f"{text}, {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else text


def _cut(name: str) -> str:
    return name if len(name) <= 100 else name[:97] + "..."


def _show_cache(entry: CacheEntry) -> str:
    per = "token" if entry.ratio == 1 else f"{entry.ratio} tokens"
    recent = f", of the last {entry.window} tokens" if entry.window else ""
    return f"{entry.width} elements per {per}{recent}{', exact' if entry.exact else ''}"


def _show_buffer(buffer: ProgramBuffer) -> str:
    place = "external" if buffer.offset < 0 else f"@{buffer.offset}"
    return f"{_cut(buffer.name)}[{', '.join([buffer.dim, *map(str, buffer.shape)])}]{place}"


def _show_weight(weight: ProgramWeight) -> str:
    pieces = weight.pieces
    several = f" in {len(pieces)} pieces" if len(pieces) > 1 else ""
    stored = " of zeros" if pieces[0].is_zeros and not several else several
    return f"{_cut(weight.name)} {weight.format}[{weight.rows}, {weight.cols}]{stored}"


def _short(value: Attr) -> str:
    if isinstance(value, tuple) and len(value) > 4:
        return f"({value[0]}, {value[1]}, ... {len(value)} numbers)"
    return str(value)
