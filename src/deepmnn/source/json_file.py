"""Strict reading of small JSON files that come from outside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deepmnn.errors import DeepmnnError

MAX_JSON_BYTES = 100_000_000
"""No config, index, tokenizer or safetensors header is larger than this."""

KINDS = {str: "a text", int: "an integer", list: "a list", dict: "an object"}
"""What messages call the types of JSON values."""


def parse_object(data: bytes, what: str, error: type[DeepmnnError]) -> dict[str, Any]:
    """Parses UTF-8 JSON whose top is an object without duplicate keys.

    `what` names the file in messages; every fault is raised as `error`.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"the key {twice!r} appears twice")
        return result

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as fault:
        reason = "nested too deeply" if isinstance(fault, RecursionError) else str(fault)
        raise error(f"{what} is not valid JSON: {reason}", "UTF-8 JSON") from None
    if not isinstance(value, dict):
        raise error(f"{what} holds a JSON {type(value).__name__}", "an object")
    return value


def read_object(path: Path, error: type[DeepmnnError]) -> dict[str, Any]:
    """Reads a JSON file whose top is an object; missing or unreadable files are `error` too."""
    return parse_object(read_small(path, error), str(path), error)


def read_small(path: Path, error: type[DeepmnnError]) -> bytes:
    """Bytes of a file that must be small (metadata, not weights)."""
    try:
        if not path.is_file():
            raise error(f"{path} is missing" if not path.exists() else f"{path} is not a file")
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise error(f"{path} has {size} bytes", f"at most {MAX_JSON_BYTES}")
        return path.read_bytes()
    except (OSError, ValueError) as fault:
        raise error(f"{path} cannot be read: {fault}") from None


def is_plain_name(value: object) -> bool:
    """Whether value is a file name without folders: a file must not reach outside its directory."""
    return (
        isinstance(value, str)
        and value not in ("", ".", "..")
        and value.isprintable()
        and not any(c in "/\\" for c in value)
    )
