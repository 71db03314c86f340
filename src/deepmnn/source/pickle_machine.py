"""Reads a pickle without running it.

A pickle is a program for a stack machine that may ask for anything: any function, any object, any
amount of memory. This machine makes dicts with names, tuples, texts and small integers. Every other
value is a Foreign, which has a kind and no content; what a class or function would make is up to
`call`. No value is ever compared, hashed or printed, so nothing recurses. Memory stays within
_SPARE_NBYTES and _TIMES the pickle's bytes, time within _MAX_OPERATIONS. The opcodes are documented
in pickletools of Python's library; these are the ones of protocols 2 to 5.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_MAX_MARKS = 1000
"""No list or dict that a training script writes is nested deeper."""

_LONGEST_NAME = 1000
"""Characters of a module and a name in it."""

_MAX_HEIGHT = 1 << 20
"""Values on the stack; Python's pickler puts a thousand items at a time into a list or dict."""

_MAX_OPERATIONS = 1 << 23
"""Several seconds of them. A tensor of a state dict takes some 35."""

_SPARE_NBYTES, _TIMES = 56 << 20, 3
"""Memory that values may take: so many bytes, and so many times those of the pickle. A tensor of a
state dict takes 140 bytes of a pickle and a thousand in memory, so there may be 100,000."""

_OBJECT_NBYTES, _ITEM_NBYTES, _SLOT_NBYTES = 80, 100, 8
"""What an object, an item of a dict, and a place in a tuple or in the memo take."""


class DamagedPickleError(ValueError):
    """It ends early, or asks for what cannot be."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """A value whose content is not read; `kind` names it."""

    kind: str


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function, by its full name."""

    name: str


LIST, SET, BYTES, FLOAT = (Foreign(kind) for kind in ("list", "set", "bytes", "float"))
LONG, OBJECT = Foreign("long"), Foreign("object")


class PickleMachine(ABC):
    """Reads one pickle. Raises DamagedPickleError.

    Attributes:
        value: what it holds.
        names: the classes and functions that it names.
    """

    def __init__(self, data: bytes) -> None:
        self.value: object = OBJECT
        self.names: set[str] = set()
        self._data = data
        self._at = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: list[Any] = []
        self._left = _SPARE_NBYTES + _TIMES * len(data)
        try:
            self._run()
            self.value = self._stack.pop()
        except (LookupError, TypeError, ValueError):
            raise DamagedPickleError(f"before byte {self._at}") from None

    @abstractmethod
    def call(self, name: str, arguments: tuple[Any, ...]) -> object:
        """What stands for the result of calling a class or function."""

    @abstractmethod
    def persistent(self, pid: object) -> object:
        """What stands for an object that the pickle refers to, and does not hold."""

    # ---------------------------------------------------------------------------- the program

    def _run(self) -> None:
        for _ in range(_MAX_OPERATIONS):
            opcode = self._take(1)
            if opcode == b".":
                return
            _OPERATIONS[opcode](self)
        raise DamagedPickleError

    def _take(self, nbytes: int) -> bytes:
        begin, self._at = self._at, self._at + nbytes
        if self._at > len(self._data):
            raise DamagedPickleError
        return self._data[begin : self._at]

    def number(self, nbytes: int, signed: bool = False) -> int:
        """The integer in the next bytes."""
        return int.from_bytes(self._take(nbytes), "little", signed=signed)

    def line(self) -> str:
        """The text up to the next end of line."""
        end = self._data.index(b"\n", self._at)
        text = self._take(end - self._at).decode()
        self._at += 1
        return text

    # ---------------------------------------------------------------------------- values

    def push(self, value: object) -> None:
        """A value that takes no memory of its own."""
        if len(self._stack) == _MAX_HEIGHT:
            raise DamagedPickleError
        self._stack.append(value)

    def push_new(self, value: object, nbytes: int = _OBJECT_NBYTES) -> None:
        """One that does."""
        self.charge(nbytes)
        self.push(value)

    def charge(self, nbytes: int) -> None:
        """Some memory is taken."""
        self._left -= nbytes
        if self._left < 0:
            raise DamagedPickleError

    def push_text(self, nbytes: int) -> None:
        """A string of that many bytes."""
        text = self._take(nbytes).decode("utf-8", "surrogatepass")
        self.push_new(text, sys.getsizeof(text))

    def push_integer(self, nbytes: int, signed: bool = False) -> None:
        """The integer in the next bytes, at most 8."""
        number = self.number(nbytes, signed)
        self.push_new(number, sys.getsizeof(number))

    def push_long(self, nbytes: int) -> None:
        """An integer of that many bytes; one beyond 64 bits is foreign."""
        if nbytes <= 8:
            self.push_integer(nbytes, signed=True)
        else:
            self.push(self.skip(nbytes, LONG))

    def skip(self, nbytes: int, value: Foreign) -> Foreign:
        """Bytes that are not read, and what stands for them."""
        if nbytes > len(self._data) - self._at:
            raise DamagedPickleError
        self._at += nbytes
        return value

    def pop(self) -> Any:
        """The value on top of the stack."""
        return self._stack.pop()

    def mark(self) -> None:
        """Remembers the height of the stack."""
        if len(self._marks) == _MAX_MARKS:
            raise DamagedPickleError
        self._marks.append(len(self._stack))

    def pop_mark(self) -> list[Any]:
        """All values since the last mark."""
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def push_tuple(self, size: int) -> None:
        """A tuple of the topmost values."""
        items = tuple(self.pop() for _ in range(size))
        self.push_new(items[::-1])

    def push_marked_tuple(self) -> None:
        """A tuple of all values since the last mark."""
        items = self.pop_mark()
        self.push_new(tuple(items), _OBJECT_NBYTES + _SLOT_NBYTES * len(items))

    def set_items(self, items: list[Any]) -> None:
        """Puts what has a name into the dict on top of the stack; the rest is dropped."""
        target = self._stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(target, dict) and isinstance(key, str):
                self.charge(_ITEM_NBYTES)
                target[key] = value

    def put(self, index: int) -> None:
        """Remembers the value on top of the stack."""
        missing = max(0, index + 1 - len(self._memo))
        self.charge(_SLOT_NBYTES * missing)
        self._memo.extend([OBJECT] * missing)
        self._memo[index] = self._stack[-1]

    def memoize(self) -> None:
        """The same under the next number."""
        self.put(len(self._memo))

    def get(self, index: int) -> None:
        """Pushes a value that was remembered."""
        self.push(self._memo[index])

    def push_global(self, module: object, name: object) -> None:
        """A class or function."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise DamagedPickleError
        if len(module) + len(name) > _LONGEST_NAME:  # texts are remembered, a name of two is new
            raise DamagedPickleError
        found = Global(f"{module}.{name}")
        self.names.add(found.name)
        self.push_new(found, _OBJECT_NBYTES + _ITEM_NBYTES + sys.getsizeof(found.name))

    def reduce(self) -> None:
        """Calls a function with a tuple of arguments."""
        arguments, function = self.pop(), self.pop()
        known = isinstance(function, Global) and isinstance(arguments, tuple)
        self.push_new(self.call(function.name, arguments) if known else OBJECT)


_Operation = Callable[[PickleMachine], object]


def _pushes(value: object) -> _Operation:
    return lambda machine: machine.push(value)


def _skips(size: int, value: Foreign) -> _Operation:
    """Bytes with their number before them."""
    return lambda machine: machine.push(machine.skip(machine.number(size), value))


def _drops_marked(value: object = None) -> _Operation:
    """What was built of the marked values has no content; None: it was there before."""

    def run(machine: PickleMachine) -> None:
        machine.pop_mark()
        if value is not None:
            machine.push(value)

    return run


def _marked_dict(machine: PickleMachine) -> None:
    items = machine.pop_mark()
    machine.push_new({})
    machine.set_items(items)


def _item(machine: PickleMachine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


def _stack_global(machine: PickleMachine) -> None:
    name, module = machine.pop(), machine.pop()
    machine.push_global(module, name)


def _new_object_ex(machine: PickleMachine) -> None:
    machine.pop()  # keyword arguments
    machine.reduce()


_OPERATIONS: dict[bytes, _Operation] = {
    b"\x80": lambda m: m.number(1),  # PROTO
    b"\x95": lambda m: m.number(8),  # FRAME
    b"(": PickleMachine.mark,
    b"0": PickleMachine.pop,
    b"1": PickleMachine.pop_mark,
    b"2": lambda m: m.push(m._stack[-1]),  # DUP
    b"N": _pushes(None),
    b"\x88": _pushes(True),
    b"\x89": _pushes(False),
    b"J": lambda m: m.push_integer(4, signed=True),
    b"K": lambda m: m.push(m.number(1)),
    b"M": lambda m: m.push_integer(2),
    b"\x8a": lambda m: m.push_long(m.number(1)),
    b"\x8b": lambda m: m.push_long(m.number(4)),
    b"G": lambda m: m.push(m.skip(8, FLOAT)),
    b"U": lambda m: m.push_text(m.number(1)),
    b"T": lambda m: m.push_text(m.number(4)),
    b"\x8c": lambda m: m.push_text(m.number(1)),
    b"X": lambda m: m.push_text(m.number(4)),
    b"\x8d": lambda m: m.push_text(m.number(8)),
    b"C": _skips(1, BYTES),
    b"B": _skips(4, BYTES),
    b"\x8e": _skips(8, BYTES),
    b"\x96": _skips(8, BYTES),  # BYTEARRAY8
    b")": _pushes(()),
    b"t": PickleMachine.push_marked_tuple,
    b"\x85": lambda m: m.push_tuple(1),
    b"\x86": lambda m: m.push_tuple(2),
    b"\x87": lambda m: m.push_tuple(3),
    b"]": _pushes(LIST),
    b"l": _drops_marked(LIST),
    b"a": PickleMachine.pop,  # APPEND
    b"e": _drops_marked(),  # APPENDS
    b"\x8f": _pushes(SET),
    b"\x90": _drops_marked(),  # ADDITEMS
    b"\x91": _drops_marked(SET),  # FROZENSET
    b"}": lambda m: m.push_new({}),
    b"d": _marked_dict,
    b"s": _item,
    b"u": lambda m: m.set_items(m.pop_mark()),
    b"q": lambda m: m.put(m.number(1)),
    b"r": lambda m: m.put(m.number(4)),
    b"\x94": PickleMachine.memoize,
    b"h": lambda m: m.get(m.number(1)),
    b"j": lambda m: m.get(m.number(4)),
    b"c": lambda m: m.push_global(m.line(), m.line()),
    b"\x93": _stack_global,
    b"R": PickleMachine.reduce,
    b"\x81": PickleMachine.reduce,  # NEWOBJ
    b"\x92": _new_object_ex,
    b"b": PickleMachine.pop,  # BUILD: the state of the object below
    b"Q": lambda m: m.push_new(m.persistent(m.pop())),
}
"""Opcode → what it does."""
