"""config.json as an attacker writes it: an error in words, in little memory and time.

Each model type has a child process with a limit on its address space; the timeout is far above
what it needs.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tiny_models import CONFIGS, tiny_checkpoint

CHILD = Path(__file__).parent / "hostile_configs.py"


@pytest.mark.parametrize(
    "model_type",
    [
        name if name == "deepseek_v3" else pytest.param(name, marks=pytest.mark.slow)
        for name in CONFIGS
    ],
)
def test_any_number_anywhere_is_a_typed_error_or_a_model(tmp_path: Path, model_type: str) -> None:
    tiny_checkpoint(model_type, len(CONFIGS[model_type]) - 1, tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    child = subprocess.run(
        [sys.executable, CHILD, tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert child.returncode == 0, child.stdout + child.stderr
    refused, built = map(int, child.stdout.split())
    assert refused > 100
    assert built > 100
