"""tiny-r1, the trained model that comes with the package."""

from __future__ import annotations

from pathlib import Path

from deepmnn.errors import CheckpointError

NAME = "tiny-r1"
CHECKPOINT = Path(__file__).parents[1] / "tiny_r1"
HELD_OUT = CHECKPOINT / "held_out.jsonl"
"""Problems that tiny-r1's training never saw."""


def bundled_checkpoint() -> Path:
    """Its directory. Raises CheckpointError when the package came without it."""
    if not (CHECKPOINT / "config.json").is_file():
        raise CheckpointError(
            f"{CHECKPOINT} holds no model",
            "the tiny-r1 checkpoint of the package",
            "Install deepmnn again.",
        )
    return CHECKPOINT
