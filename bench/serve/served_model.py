"""Builds deepmnn's model for a server: random weights in w4, with a tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from bench.serve.vocabulary import write_tokenizer

NEEDS = ""


def build(config: Path, out: Path, needed: Path | None, source: Path | None) -> str:
    from deepmnn.conversion.convert import convert

    checkpoint = out / "checkpoint"
    checkpoint.mkdir()
    shutil.copyfile(config, checkpoint / "config.json")
    write_tokenizer(checkpoint, json.loads(config.read_text()))
    convert(checkpoint, out / "model", quant="w4", random_weights=True)
    return "model"
