"""MNN's own tokenizer and template engine, with no model behind them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deepmnn.backends.mnn.wheel import captured, runtime
from deepmnn.exporters.mnn.mtok import FILE


def mnn_text(folder: Path, tokenizer: bytes, jinja: dict[str, Any] | None = None) -> Any:
    """An MNN model whose network is empty: it fails to load, but after its tokenizer did."""
    pytest.importorskip("_mnncengine")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_bytes(tokenizer)
    for name in ("llm.mnn", "llm.mnn.weight", "embeddings_bf16.bin"):
        (folder / name).write_bytes(b"")
    facts = {"hidden_size": 1, "layer_nums": 1, **({"jinja": jinja} if jinja else {})}
    (folder / "llm_config.json").write_text(json.dumps(facts))
    (folder / "config.json").write_text(json.dumps({"tokenizer_file": FILE, "backend_type": "cpu"}))
    with captured():
        llm = runtime().llm.create(str(folder / "config.json"), False)
        assert not llm.load()
    return llm
