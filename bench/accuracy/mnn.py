"""MNN with models from its own exporter. --source is a checkout of MNN, --python an interpreter
with the packages of that exporter; AWQ needs `datasets`, too.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.accuracy.judged import Logits, Pieces, Stored, Task
from bench.peers import mnn as runtime

TITLE, TIMED = "MNN", "mnn"
RECIPES: Sequence[str] = (
    "8 bits, blocks of 64",
    "4 bits, blocks of 64",
    "4 bits, blocks of 64, HQQ",
    "4 bits, blocks of 32, HQQ",
    "4 bits, blocks of 64, AWQ",
    "4 bits, blocks of 32, AWQ",
)
NOTE = (
    "its exporter, asymmetric, lm_head as the others, embedding in 8 bits; memory low: 8-bit "
    "activations, KV cache float32; AWQ is calibrated with 512 tokens, as its exporter does it"
)
PARAGRAPHS = 128
"""Samples that the exporter's AWQ reads; it skips longer ones than 512 tokens."""

KEPT: list[runtime.MnnSession] = []
"""Models live as long as the process: the wheel sometimes crashes when it frees one."""


def version(source: Path | None) -> str | None:
    packages = ("onnx", "onnxscript", "peft", "sentencepiece", "yaspin", "torch", "transformers")
    return runtime.version(None) if source and all(map(find_spec, packages)) else None


def refuses(config: Mapping[str, Any], recipe: str) -> str:
    return "its exporter has no latent attention" if "kv_lora_rank" in config else ""


def needs(recipe: str) -> Sequence[str]:
    return ()


def build(recipe: str, out: Path, task: Task) -> str:
    from bench.mnn_exporter import export_theirs, exporter_folder

    assert task.source is not None
    made = out / "made"
    options = arguments(recipe)
    if "--awq" in options:
        os.environ["HF_DATASETS_CACHE"] = str(out / "datasets")
        options += ["--calib_data", str(paragraphs(task.calibration_text, out / "calibration"))]
    export_theirs(sys.executable, exporter_folder(task.source), task.checkpoint, made, options)
    (made / "checkpoint").unlink()
    return "made/model"


def arguments(recipe: str) -> list[str]:
    """The exporter's flags for a row."""
    bits, blocks, *method = recipe.split(", ")
    flags = ["--quant_bit", bits.split()[0], "--quant_block", blocks.split()[-1]]
    return [*flags, "--embed_bit", "8", *(f"--{name.lower()}" for name in method)]


def paragraphs(text: Path, folder: Path) -> Path:
    """A data set as the exporter loads it, its split "test": a text file, one sample a line."""
    folder.mkdir()
    samples = (" ".join(part.split()) for part in text.read_text(encoding="utf-8").split("\n\n"))
    lines = [sample for sample in samples if 100 < len(sample) < 1000][:PARAGRAPHS]
    (folder / "test.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder.resolve()


def stored(model: Path, source: Path | None) -> Stored:
    config = json.loads((model / "config.json").read_text())
    embedding = sum(path.stat().st_size for path in model.glob("*embeddings_*.bin"))
    weights = (model / config.get("llm_weight", "llm.mnn.weight")).stat().st_size
    return Stored(weights + embedding, embedding)


def logits(model: Path, pieces: Pieces, threads: int, source: Path | None) -> Iterator[Logits]:
    import numpy as np

    session = runtime.MnnSession(model, threads)
    KEPT.append(session)
    llm = session._llm
    llm.set_config(json.dumps({"all_logits": True}))
    for ids in pieces:
        llm.reset()
        found = llm.forward(list(ids))
        if llm.get_context()["status"] != 0:
            raise RuntimeError(f"MNN could not run {len(ids)} tokens")
        yield np.array(found.read(), np.float32).reshape(-1, found.shape[-1])
