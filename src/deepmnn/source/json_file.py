"""Strict reading of small JSON files that come from outside."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from deepmnn.errors import DeepmnnError
from deepmnn.source.regular_file import RegularFile

MAX_JSON_BYTES = 100_000_000
"""No config, index, tokenizer or safetensors header is larger than this."""

MAX_JSON_VALUES = 4_000_000
"""Nor has it more values, of which each may take 80 bytes. Gemma's tokenizer has 1.3 million."""

KINDS = {str: "a text", int: "an integer", list: "a list", dict: "an object"}
"""What messages call the types of JSON values."""
MAX_DEPTH = 100
"""Nothing in them is nested deeper: what prints a value of theirs need not fear for the stack."""


def parse_object(data: bytes, what: str, error: type[DeepmnnError]) -> dict[str, Any]:
    """Parses UTF-8 JSON (a byte order mark may stand before it) whose top is an object.

    Refuses duplicate keys, numbers that are not finite, more than MAX_JSON_VALUES values and what
    is nested deeper than MAX_DEPTH, in time linear in the size. `what` names the file in messages;
    every fault is raised as `error`.
    """
    values = sum(data.count(mark) for mark in (b",", b"[", b"{"))  # and those in texts
    if values > MAX_JSON_VALUES:
        raise error(f"{what} has {values:,} values", f"at most {MAX_JSON_VALUES:,}")
    try:
        value = json.loads(
            data.decode("utf-8-sig"),
            object_pairs_hook=_unique,
            parse_float=_finite,
            parse_constant=_finite,
        )
    except (ValueError, RecursionError) as fault:
        reason = "nested too deeply" if isinstance(fault, RecursionError) else str(fault)
        raise error(f"{what} is not valid JSON: {reason}", "UTF-8 JSON") from None
    if not isinstance(value, dict):
        raise error(f"{what} holds a JSON {type(value).__name__}", "an object")
    if _is_deep(value):
        raise error(f"{what} is nested too deeply", f"at most {MAX_DEPTH} levels")
    return value


def read_object(path: Path, error: type[DeepmnnError]) -> dict[str, Any]:
    """Reads a JSON file whose top is an object; missing or unreadable files are `error` too."""
    return parse_object(read_small(path, error), str(path), error)


def read_small(path: Path, error: type[DeepmnnError]) -> bytes:
    """Bytes of a file that must be small (metadata, not weights)."""
    file = RegularFile(path, error)
    if file.size > MAX_JSON_BYTES:
        raise error(f"{path} has {file.size} bytes", f"at most {MAX_JSON_BYTES}")
    return file.read_all()


def is_plain_name(value: object) -> bool:
    """Whether value is a file name without folders: a file must not reach outside its directory."""
    return (
        isinstance(value, str)
        and value not in ("", ".", "..")
        and value.isprintable()
        and not any(c in "/\\" for c in value)
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(f"the key {counts.most_common(1)[0][0]!r:.80} appears twice")
    return result


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text:.40} is no finite number")
    return number


def _is_deep(value: dict[str, Any]) -> bool:
    """Whether lists and objects are nested deeper than MAX_DEPTH, without recursion."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        values = (item.values() if isinstance(item, dict) else item for item in level)
        level = [child for part in values for child in part if isinstance(child, dict | list)]
        if not level:
            return False
    return True
