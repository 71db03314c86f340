"""Damaged programs and weights in the C++ core: a typed error or a sound step, never a crash."""

import subprocess
import sys
from pathlib import Path

import pytest

from deepmnn.conversion.convert import convert
from tiny_models import tiny_checkpoint

CHILD = Path(__file__).with_name("native_child.py")
COUNT = 400


@pytest.mark.parametrize(
    ("model_type", "index", "quant", "level"),
    [
        ("deepseek_v3", 0, "w4", 3),
        ("deepseek_v2", 1, "w8", 2),
        ("deepseek_v3", 3, "fp32", 0),
        ("qwen3", 1, "bf16", 3),
        ("qwen2", 2, "w4", 0),
    ],
)
def test_damaged_programs(
    tmp_path: Path, model_type: str, index: int, quant: str, level: int
) -> None:
    tiny = tiny_checkpoint(model_type, index, tmp_path / "hf")
    path = convert(tiny.path, tmp_path / "model", quant, level).path
    result = subprocess.run(
        [sys.executable, "-X", "faulthandler", str(CHILD), str(path), str(level), str(COUNT)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    last = result.stdout.splitlines()[-1] if result.stdout else "nothing"
    assert result.returncode == 0, f"after {last}: {result.stderr[-2000:]}"
    word, loaded = last.split()
    assert word == "loaded"
    assert 0 < int(loaded) < COUNT
