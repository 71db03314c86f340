"""Sizes in bytes, for people: written and read."""

from __future__ import annotations

import re

from deepmnn.errors import RequestError, Words, in_shell

_UNITS = {"": 1} | {
    f"{prefix}{unit}": base**power
    for unit, base in (("", 1000), ("i", 1024))
    for power, prefix in enumerate("KMGT", 1)
}


def file_size(nbytes: float) -> str:
    """Bytes for people: "9.3 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"


def nbytes(text: str, what: str | Words) -> int:
    """Bytes of "3GiB", "3.5 GiB", "3Gi", "700MB" or "123456". Raises RequestError; what: whose
    size.
    """
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?(?:([KMGT]i?)B?|)", text.strip(), re.ASCII)
    if found is None:
        raise RequestError(
            Words(f"{what} {text!r:.40}", f"{in_shell(what)} {text!r:.40}"),
            "bytes, as in 3GiB, 700MB or 123456",
        )
    return int(float(found[1]) * _UNITS[found[2] or ""])
