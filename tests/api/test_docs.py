"""The examples of docs/python.md run as they are written, one after the other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import deepmnn
from deepmnn.cli.options import bundled

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_the_examples_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    model = deepmnn.load(bundled(), threads=1)

    def open_tiny(name: str) -> Any:
        asked.append(name)
        return model

    monkeypatch.setattr(deepmnn, "load", open_tiny)
    names: dict[str, Any] = {}
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    for example in examples:
        exec(example, names)
    assert len(examples) >= 4
    assert asked == ["r1-w4"]
    assert names["schema"]["required"] == ["sum"]
    assert names["chat"].tools == [names["add"]]
    assert len(names["first"].ids) == 20
    assert names["first"].ids != names["second"].ids
    assert (len(names["story"].ids), len(names["total"].ids)) == (20, 3)
    assert len(names["token"].top) == 5
