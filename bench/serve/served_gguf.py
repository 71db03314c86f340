"""Builds llama.cpp's model for a server: Q4_0 of random weights, with deepmnn's tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

from bench.peers.gguf_file import write

NEEDS = "bench.serve.served_model"


def build(config: Path, out: Path, needed: Path | None, source: Path | None) -> str:
    from deepmnn.exporters.gguf.tokenizer import vocabulary
    from deepmnn.text.tokenizer import Tokenizer

    assert needed is not None
    fields = json.loads(config.read_text())
    ends = frozenset((fields["eos_token_id"],))
    made = vocabulary(Tokenizer(needed), fields["vocab_size"], fields, ends)
    write(fields, out / "model.gguf", made.fields)
    return "model.gguf"
