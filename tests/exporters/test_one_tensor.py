"""Exports hold one tensor in memory, and the one before it for a moment."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest

from deepmnn.conversion.kept import original
from deepmnn.exporters.gguf.export import export_gguf
from deepmnn.exporters.hf.export import export_hf
from deepmnn.formats import F32
from deepmnn.source.wrapped import WrappedSource
from tiny_models import tiny_checkpoint


class Watched(WrappedSource):
    """Knows which tensors that it handed out are still in memory."""

    def __init__(self, source: Any) -> None:
        super().__init__(source)
        self.given: list[weakref.ref[F32]] = []
        self.most = 0

    def read(self, name: str) -> F32:
        self.most = max(self.most, sum(one() is not None for one in self.given))
        numbers = self._source.read(name).copy()
        self.given.append(weakref.ref(numbers))
        return numbers


@pytest.mark.parametrize("kind", ["hf", "gguf"])
def test_one_tensor_at_a_time(kind: str, tmp_path: Path) -> None:
    if kind == "gguf":
        pytest.importorskip("gguf")
    tiny_checkpoint("deepseek_v3", 0, tmp_path / "hf")
    with original(tmp_path / "hf") as source:
        watched = Watched(source)
        if kind == "hf":
            export_hf(watched, tmp_path / "out", type="fp32")
        else:
            export_gguf(watched, tmp_path / "out.gguf")
    assert len(watched.given) > 50
    assert watched.most <= 1
