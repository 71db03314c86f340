"""Reads FlatBuffers of which nothing is trusted: every offset, size and count is checked first.

A schema says for each table which fields it may have, in the order of their ids:

    "int=0"      a scalar (bool, byte, int, float) and its default
    "[int]"      a vector of scalars (byte, int, long, float)
    "text"       a string
    "[text]"     a vector of strings
    "Name"       a table
    "[Name]"     a vector of tables
    "union"      a table whose name the schema's UNION gives for the number in the field before
    None         a field that must not be there

A table is read as a dict, its names those of the schema; what is missing is the default, or None.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from deepmnn.errors import ArtifactError

Table = dict[str, Any]
Fields = tuple[tuple[str, str | None], ...]

_SCALARS = {"bool": "?", "byte": "b", "int": "<i", "float": "<f"}
_VECTORS = {"byte": "i1", "int": "<i4", "long": "<i8", "float": "<f4"}


class FlatBuffer:
    """One file.

    Args:
        data: its bytes.
        tables: name → fields.
        union: number → name of the table.
        what: names the file in messages.
        again: advice.
    """

    def __init__(
        self,
        data: bytes,
        tables: Mapping[str, Fields],
        union: Mapping[int, str],
        what: str,
        again: str,
    ) -> None:
        self._data, self._union, self._what, self._again = data, union, what, again
        self._tables = {
            name: [_Field(*field) for field in fields] for name, fields in tables.items()
        }
        self._left = len(data)

    def root(self, name: str) -> Table:
        """The table that everything hangs on. Raises ArtifactError when anything is damaged."""
        try:
            return self._table(name, self._follow(0))
        except (struct.error, UnicodeDecodeError) as fault:
            raise self._damaged(str(fault)) from None

    def _table(self, name: str, at: int) -> Table:
        home = at - self._number("<i", at, 4)
        if not 0 <= home <= len(self._data) - 4 or home % 2:
            raise self._damaged(f"a {name} has no field table")
        home_size, size = struct.unpack_from("<HH", self._data, home)
        if home_size < 4 or home_size % 2 or home + home_size > len(self._data):
            raise self._damaged(f"the field table of a {name} has {home_size} bytes")
        self._take(at, size)
        offsets = struct.unpack_from(f"<{home_size // 2 - 2}H", self._data, home + 4)
        fields, kind = self._tables[name], 0
        found: Table = {}
        if any(offsets[len(fields) :]):
            raise self._damaged(f"a {name} has a field that deepmnn does not write")
        for index, field in enumerate(fields):
            offset = offsets[index] if index < len(offsets) else 0
            if not offset:
                value = field.default
            elif field.spec is None or not 4 <= offset <= size - field.size:
                raise self._damaged(f"a {name} has the field {field.name}")
            else:
                value = self._value(field, at + offset, kind)
            found[field.name] = value
            kind = found[field.name] if field.spec == "union_type=0" else 0
        return found

    def _value(self, field: _Field, at: int, kind: int) -> Any:
        if field.code:
            return self._number(field.code, at, field.size)
        target = self._follow(at)
        if field.spec == "text":
            return self._text(target)
        if field.spec == "union":
            if kind not in self._union:
                raise self._damaged(f"an op has parameters of kind {kind}")
            return {"kind": self._union[kind], **self._table(self._union[kind], target)}
        if not field.is_vector:
            return self._table(field.item, target)
        count = self._number("<I", target, 4)
        self._take(target, 4 + count * field.item_size)
        start = target + 4
        if field.item in _VECTORS:
            vector = np.frombuffer(self._data, _VECTORS[field.item], count, start)
            return tuple(vector.tolist())
        places = [start + 4 * index for index in range(count)]
        if field.item == "text":
            return [self._text(self._follow(place)) for place in places]
        return [self._table(field.item, self._follow(place)) for place in places]

    def _text(self, at: int) -> str:
        count = self._number("<I", at, 4)
        self._take(at, 4 + count + 1)
        text = self._data[at + 4 : at + 4 + count]
        if self._data[at + 4 + count]:
            raise self._damaged("a text does not end")
        return text.decode()

    def _follow(self, at: int) -> int:
        target: int = at + self._number("<I", at, 4)
        if target % 4 or target > len(self._data) - 4:
            raise self._damaged(f"an offset leads to byte {target} of {len(self._data)}")
        return target

    def _number(self, code: str, at: int, size: int) -> Any:
        if at % size or at > len(self._data) - size:
            raise self._damaged(f"a number at byte {at}")
        if code == "?" and self._data[at] > 1:
            raise self._damaged("a truth value is neither true nor false")
        (number,) = struct.unpack_from(code, self._data, at)
        return number

    def _take(self, at: int, size: int) -> None:
        """Nothing is read twice: or a small file could stand for one without end."""
        self._left -= size
        if at + size > len(self._data) or self._left < 0:
            raise self._damaged(f"{size} bytes at byte {at} of {len(self._data)}")

    def _damaged(self, reason: str) -> ArtifactError:
        return ArtifactError(
            f"{self._what} is damaged: {reason}", "a network that export wrote", self._again
        )


class _Field:
    """A field of a schema, taken apart."""

    def __init__(self, name: str, spec: str | None) -> None:
        self.name, self.spec = name, spec
        text = spec or ""
        kind, _, default = text.partition("=")
        self.is_vector = text.startswith("[")
        self.item = text.strip("[]")
        self.item_size = int(_VECTORS.get(self.item, "u4")[-1])
        self.code = {**_SCALARS, "union_type": "B"}.get(kind, "") if default else ""
        self.size = struct.calcsize(self.code) if self.code else 4
        self.default = _default(kind, default) if default else None


def _default(kind: str, text: str) -> bool | int | float:
    if kind == "float":
        return float(text)
    return bool(int(text)) if kind == "bool" else int(text)
