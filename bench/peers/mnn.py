"""MNN with models from `deepmnn export`; mnn_exporter.py has those of MNN's own exporter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from bench.peers.engine import Config

TITLE, BUILDER, NEEDS = "MNN", "mnn", "deepmnn_cpu"
SETTINGS = "deepmnn's w4 exported as it is; memory low (int8 activations), KV cache float32"

RUNTIME = {
    "backend_type": "cpu",
    "memory": "low",
    "precision": "low",
    "attention_mode": 8,  # flash attention over floats; the others are wrong for a prompt in pieces
    "all_logits": False,
    "use_mmap": False,
}


def version(source: Path | None) -> str | None:
    try:
        import_module("_mnncengine")  # the runtime alone: the package MNN.tools reports usage
        return installed("MNN")
    except (ImportError, PackageNotFoundError):
        return None


def exceeds(isa: str, source: Path | None) -> str:
    return ""  # its wheel has no instruction of AVX-512


def refuses(config: Config) -> str:
    return ""


def build(config: Path, out: Path, needed: Path | None, source: Path | None) -> str:
    from deepmnn.exporters.mnn.export import export

    assert needed is not None
    export(needed, out / "model")
    return "model"


def load(model: Path, threads: int, source: Path | None) -> MnnSession:
    return MnnSession(model, threads)


class MnnSession:
    """One sequence: MNN's runtime holds only one."""

    most = 1

    def __init__(self, folder: Path, threads: int) -> None:
        module: Any = import_module("_mnncengine")
        self._llm = module.llm.create(str(folder / "config.json"), False)
        self._llm.set_config(json.dumps(RUNTIME | {"thread_num": threads}))
        if not self._llm.load():
            raise RuntimeError(f"MNN cannot load {folder}")

    def reserve(self, batch: int, tokens: int) -> None:
        self._llm.reset()

    def start(self, prompts: Sequence[Sequence[int]]) -> None:
        (ids,) = prompts
        self._llm.reset()
        self._forward(ids)

    def step(self, tokens: Sequence[int]) -> None:
        self._forward(tokens)

    def _forward(self, ids: Sequence[int]) -> None:
        self._llm.forward(list(ids))
        if self._llm.get_context()["status"] != 0:
            raise RuntimeError(f"MNN could not run {len(ids)} tokens")
