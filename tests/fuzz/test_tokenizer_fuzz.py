"""Damaged tokenizer files are loaded, or refused as TokenizerError: no crash, no flood, no hang."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

BYTES = 3 << 30
"""Address space of the child; its libraries reserve 1 GB."""


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_damaged_tokenizers(tmp_path: Path, seed: int) -> None:
    count = 400 if seed == 1 else 5000
    command = [sys.executable, "-m", "fuzz.tokenizer_files", str(tmp_path), str(seed), str(count)]
    child = subprocess.run(
        command,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES)),
    )
    assert child.returncode == 0, child.stderr[-2000:]
    loaded, refused = map(int, child.stdout.split())
    assert loaded + refused == count
    assert min(loaded, refused) > count // 20
