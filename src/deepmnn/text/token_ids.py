"""Token ids as other libraries hand them over: arrays, tensors, their numbers, ranges."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

from deepmnn.errors import RequestError, shown


def plain(value: object) -> object:
    """An array or a tensor of any library as Python's lists and numbers; all else as it is.

    Raises RequestError for one whose numbers cannot be had (a tensor without data, a sparse one).
    """
    if isinstance(value, type | memoryview):  # bytes are no token ids
        return value
    if not (hasattr(value, "tolist") or hasattr(value, "__array__")):
        return value
    import numpy as np  # here: `deepmnn --help` needs none

    try:
        found: object = value.tolist() if hasattr(value, "tolist") else np.asarray(value).tolist()
    except Exception as error:  # every library has its own
        raise RequestError(
            f"a {type(value).__name__} cannot be read: {error!s:.80}", "one that holds numbers"
        ) from error
    return found


def token_ids(value: object) -> Sequence[int]:
    """A flat list of integers, as a list of Python's; a range stays one, however long it is.

    Raises RequestError for anything else: for text, floats, booleans, and for what has no order or
    no length.
    """
    items = plain(value)
    if isinstance(items, range):
        return items
    if not isinstance(items, Sequence) or isinstance(items, str | bytes | bytearray | memoryview):
        raise RequestError(f"the token ids are {shown(value)}", "a flat list of integers")
    if set(map(type, items)) <= {int}:
        return list(items)
    return [_token_id(index, plain(item)) for index, item in enumerate(items)]


def integer(value: object) -> int | None:
    """An integer of any library as Python's; None for all else, and for booleans."""
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    return int(value) if is_integer else None  # type: ignore[call-overload]


def _token_id(index: int, item: object) -> int:
    found = integer(item)
    if found is None:
        expected = "an integer: the token ids are a flat list of them"
        raise RequestError(f"token id {index} is {shown(item)}", expected)
    return found
