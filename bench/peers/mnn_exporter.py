"""MNN with dense models from its own exporter. --source is a checkout of MNN."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.peers import mnn
from bench.peers.engine import Config

TITLE, BUILDER, NEEDS = "MNN, its exporter", "mnn_exporter", "checkpoint"
SETTINGS = "4 bits, blocks of 64, asymmetric; memory low (int8 activations), KV cache float32"

load, exceeds = mnn.load, mnn.exceeds


def version(source: Path | None) -> str | None:
    found = mnn.version(None)
    return found if source is not None and found is not None else None


def refuses(config: Config) -> str:
    return "no latent attention" if "kv_lora_rank" in config else ""


def build(config: Path, out: Path, needed: Path | None, source: Path | None) -> str:
    from bench.mnn_exporter import export_theirs, exporter_folder

    assert needed is not None
    assert source is not None
    made, arguments = out / "made", ("--quant_bit", "4", "--quant_block", "64")
    export_theirs(sys.executable, exporter_folder(source), needed, made, arguments)
    (made / "checkpoint").unlink()
    return "made/model"
