"""The model that another one is compared with: how it is opened, and whether it can be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from deepmnn.api.options import LoadOptions
from deepmnn.errors import RequestError
from deepmnn.text.tokenizer import Tokenizer

EXACT = "fp32"
"""The recipe of a checkpoint that is a reference."""


class Compared(Protocol):
    """What can be compared: an `LLM`, a `TorchModel`."""

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""

    @property
    def has_tokenizer(self) -> bool:
        """Whether it came with one."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises TokenizerError when there is none."""


def reference_options(
    name: str, backend: str | None = None, threads: int | None = None, rows: int | None = None
) -> LoadOptions:
    """How to load a reference: a checkpoint in float32, a converted model as it is.

    rows: of the KV cache. Raises RequestError for an unknown backend.
    """
    from deepmnn.conversion.kept import is_checkpoint
    from deepmnn.exporters.mnn.folder import is_exported

    path = Path(name)
    ready = os.path.lexists(name) and (is_exported(path) or not is_checkpoint(path))
    quant = None if ready else EXACT
    return LoadOptions(backend=backend, threads=threads, quant=quant, cache_tokens=rows)


def check_comparable(model: Compared, reference: Compared) -> None:
    """Raises RequestError unless both take the same tokens for the same text."""
    if model.vocab_size != reference.vocab_size:
        raise RequestError(
            f"the reference has {reference.vocab_size:,} tokens, the model {model.vocab_size:,}",
            "the same vocabulary",
            "Compare models of the same family.",
        )
    if not (model.has_tokenizer and reference.has_tokenizer):
        return
    ours, theirs = (each.tokenizer.library.get_vocab() for each in (model, reference))
    if ours != theirs:
        different = sorted(ours.items() ^ theirs.items(), key=lambda pair: pair[1])
        raise RequestError(
            f"the reference's tokenizer differs from the model's, first in {different[0][0]!r:.40}",
            "the same tokenizer",
            "Compare models of the same family.",
        )
