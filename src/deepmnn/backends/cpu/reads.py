"""What the C++ core has read of streamed weights while a profile ran, and who waited for it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from deepmnn import _core
from deepmnn.backends.cpu.counts import I64

EXPERT, ROWS = "expert", "rows"
"""Kinds of what is read; the third is a dense weight."""

WANTED, GUESSED, AHEAD = range(3)
"""Why something was read, as `_core.Model.reads` numbers it."""

BEGIN, END, UNIT, NBYTES, CAUSE, USED = range(6)
"""Columns of `Reads.reads`; the first three are those of `Reads.waits`, too."""

HITS, MISSES, GUESSES, GOOD_GUESSES = range(4)
"""Columns of `Reads.choices`."""

_EXPERT = re.compile(r"(?:^|\.)layers\.(\d+)\..*?experts\.(\d+)\.")


@dataclass(frozen=True)
class Reads:
    """As `_core.Model.reads` has them.

    Attributes:
        units: (name of the first weight, kind) of what is read at once.
        reads: [n, 6] the latest reads; waits: [n, 3] the latest waits of steps.
        choices: [units, 4] of experts: chosen when in memory or not, guesses read and used.
        lost: reads and waits that are forgotten.
    """

    units: tuple[tuple[str, str], ...]
    reads: I64
    waits: I64
    choices: I64
    lost: int

    @staticmethod
    def take(core: _core.Model) -> Reads | None:
        """Since the profile began, or was reset; None where nothing is streamed."""
        found = core.reads()
        if not found:
            return None
        units = tuple(found["units"])
        return Reads(units, found["reads"], found["waits"], found["choices"], found["lost"])

    def what(self, unit: int) -> str:
        """A unit in words: "expert 17 of layer 3", "rows of embed_tokens", "layers.3.q_proj"."""
        if unit < 0:
            return "several reads"
        name, kind = self.units[unit]
        if kind == EXPERT and (found := _EXPERT.search(name)):
            return f"expert {found[2]} of layer {found[1]}"
        short = name.removeprefix("model.").removesuffix(".weight")
        return f"rows of {short}" if kind == ROWS else short
