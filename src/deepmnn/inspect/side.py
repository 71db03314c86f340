"""One of the two models that are compared: what it computes, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from deepmnn.backends.base import I32

Layer = dict[str, NDArray[Any]]
"""Values of one layer by their names in the level-0 graph: [tokens, width] each, float32, or int32
where they are indices."""


class Side(Protocol):
    """A model on one backend.

    Attributes:
        label: what it is, in a few words: "PyTorch, float32".
        vocab_size: width of the logits.
    """

    label: str
    vocab_size: int

    def layers(self, samples: Sequence[I32]) -> Iterator[Layer]:
        """What it computes for token ids, each sample a sequence of its own from position 0 on.

        One `Layer` for each decoder layer, in order (the first has the embedding's rows, too), and
        a last one with "hidden", where the backend tells it, and "logits" [tokens, vocab_size]. The
        rows of all samples are concatenated. A value may come one layer early or late: passes move
        nodes. What the backend cannot tell is left out.

        A layer is computed when it is asked for, or put aside on disk: only one need be in memory.

        Raises RequestError for ids outside the vocabulary.
        """
        ...
