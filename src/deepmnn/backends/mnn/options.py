"""How MNN computes: the choices, and what each may be."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from deepmnn.errors import RequestError, Words, argument

LEVELS = ("low", "normal", "high")


@dataclass(frozen=True)
class MnnOptions:
    """How MNN computes. A field's metadata holds its help text on the command line, and the name of
    its flag where that is another ("flag").

    Attributes:
        memory: "low" rounds activations to int8 and multiplies them with the quantised weights,
            MNN's own default and its quick way; "normal" and "high" compute in floats, exactly,
            with the weights unpacked to floats in memory.
        precision: "high" and "normal" compute in float32; "low" in float16 where the processor
            can (no x86 does), keys and values too.
        mmap: a directory on disk for the weights in MNN's layout: they are mapped instead of held
            in memory, and removed with the model. None holds them in memory.

    Raises RequestError when a value is none of these.
    """

    memory: str = field(
        default="low",
        metadata={
            "help": "MNN: low (int8 activations, quick; the default), normal or high "
            "(floats, exact).",
            "flag": "mnn_memory",  # --memory is how much there is
        },
    )
    precision: str = field(
        default="high",
        metadata={
            "help": "MNN: low (float16 where the processor can), normal or high (the default)."
        },
    )
    mmap: str | Path | None = None

    def __post_init__(self) -> None:
        for name in ("memory", "precision"):
            value = getattr(self, name)
            if value not in LEVELS:
                flag = argument("mnn_memory" if name == "memory" else name).shell
                said = f" is {value!r:.80}"
                raise RequestError(
                    Words(f"{name}{said}", f"{flag}{said}"), " or ".join(map(repr, LEVELS))
                )
        if not isinstance(self.mmap, str | Path | None):
            raise RequestError(f"mmap is {self.mmap!r:.80}", "a directory")
