"""What an exporter says of its work, and what every exporter of numbers checks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepmnn.conversion.plan import unused
from deepmnn.errors import CheckpointError, RequestError, argument, shown
from deepmnn.formats import F32
from deepmnn.source.source import Source

LARGEST_F16 = 65504.0


@dataclass(frozen=True)
class Exported:
    """What an export did.

    Attributes:
        path: what was written.
        nbytes: bytes of the weights.
        contents: what is in it, in a few words.
        note: what runs otherwise than in the model that was exported; "" when nothing does.
        seconds: time taken.
    """

    path: Path
    nbytes: int
    contents: str
    note: str
    seconds: float


def check_type(type: str, known: Iterable[str], hint: str = "") -> str:
    """The name among `known` that is meant, whatever its case. Raises RequestError, with `hint`."""
    found = {name.casefold(): name for name in known}
    if type.casefold() not in found:
        raise RequestError(
            argument("type", f" is {shown(type)}"), f"one of {', '.join(found.values())}", hint
        )
    return found[type.casefold()]


def check_numbers(name: str, numbers: F32, largest: float, type: str) -> None:
    """Raises CheckpointError for NaN, infinity and numbers that a type cannot hold."""
    low, high = (float(numbers.min()), float(numbers.max())) if numbers.size else (0.0, 0.0)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise CheckpointError(
            f"tensor {name!r:.200} contains NaN or infinity", "finite numbers", "Check its source."
        )
    if max(-low, high) > largest:
        raise CheckpointError(
            f"tensor {name!r:.200} has numbers of {max(-low, high):.3g}",
            f"at most {largest:g} in {type}",
            "Choose a type with the range of bf16.",
        )


def unread(source: Source, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """A note on what is not written, since the model does not read it; none where there is nothing.

    shapes: of the tensors that it reads.
    """
    left = unused(source, shapes)
    if not left:
        return []
    others = f" and {len(left) - 1} more" if len(left) > 1 else ""
    return [f"left out, since the model does not read it: {left[0]}{others}"]
