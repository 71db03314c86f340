"""The float32 model, by transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench.accuracy.judged import Logits, Pieces


def logits(model: Path, pieces: Pieces, threads: int, source: Path | None) -> Iterator[Logits]:
    """model: the checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    exact = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.inference_mode():
        for ids in pieces:
            yield exact(torch.tensor([list(ids)])).logits[0].numpy()
