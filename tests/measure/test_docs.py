"""The examples of docs/eval.md are what they say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from deepmnn.measure.match import MATCHES
from deepmnn.measure.problems import read_problems

PAGE = (Path(__file__).parents[2] / "docs" / "eval.md").read_text(encoding="utf-8")


def test_the_problems_are_read_as_the_page_says(tmp_path: Path) -> None:
    example = re.findall(r"```json\n(.*?)```", PAGE, re.S)[0]
    (tmp_path / "problems.jsonl").write_text(example, encoding="utf-8")
    found = [problem.match for problem in read_problems(tmp_path / "problems.jsonl")]
    assert found == ["contains", "contains", "number", "choice", "regex"]
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.M)) == set(MATCHES)


def test_the_example_in_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("What is 2 + 3? 2 + 3 = 5. " * 9)
    names: dict[str, Any] = {}
    for example in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        exec(example, names)
    assert 0 < names["found"].divergence.mean < 0.5
    assert names["found"].pieces > 1
