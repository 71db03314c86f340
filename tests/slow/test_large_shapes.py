"""Models of published shapes with random weights: little memory, mapped loading, generation.

The memory of a conversion is a child process's own peak.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import deepmnn
from deepmnn.backends.base import F32

CONFIGS = Path(__file__).parents[2] / "bench" / "configs"
GIB = 1 << 30


CHILD = """
import re, sys
from deepmnn.cli import main
sys.argv[0] = "deepmnn"
try:
    main()
finally:
    status = open("/proc/self/status").read()
    print(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1], file=sys.stderr)
"""


def run_in_a_child(*arguments: str) -> int:
    """Runs the command line; returns the child's peak memory in bytes.

    Not from its rusage: that begins with the memory of the process that it was forked from.
    """
    child = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, check=True
    )
    return int(child.stderr.splitlines()[-1]) * 1024


def resident_nbytes() -> int:
    """Memory this process holds now, mapped pages that it touched included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "nbytes"), [("r1-distill-qwen-1.5b", 1 * GIB), ("deepseek-v2-lite", 8 * GIB)]
)
def test_converts_loads_and_generates(tmp_path: Path, name: str, nbytes: int) -> None:
    if shutil.disk_usage(tmp_path).free < 3 * nbytes:
        pytest.fail(f"{tmp_path} needs {3 * nbytes / GIB:.0f} GiB of free disk")
    out = tmp_path / name
    config = str(CONFIGS / f"{name}.json")
    peak = run_in_a_child("convert", config, str(out), "--quant", "w4", "--random-weights")
    assert peak < 3 * GIB
    before = resident_nbytes()
    model = deepmnn.load(out, threads=2)
    assert model.artifact.weights_nbytes > 0.9 * nbytes
    assert resident_nbytes() - before < nbytes / 8, (
        "loading maps the weights, it does not read them"
    )
    prompt = list(range(5, 25))
    answer = model.generate(prompt, deepmnn.SamplingParams(max_tokens=4, ignore_eos=True))
    assert len(answer.ids) == 4
    with model.session() as session:
        logits = session.prefill(prompt)
    assert np.isfinite(logits).all()
    assert int(logits.argmax()) == answer.ids[0]
    on_mnn(out, prompt, logits)


def on_mnn(artifact: Path, prompt: list[int], logits: F32) -> None:
    """The same model exported and run by the MNN wheel, which rounds activations in its own way."""
    folder = artifact.parent / "mnn"
    assert run_in_a_child("export", str(artifact), str(folder)) < 1 * GIB
    shutil.rmtree(artifact)  # the folder stands alone
    model = deepmnn.load(folder, threads=2)
    with model.session() as session:
        found = session.prefill(prompt)
    assert np.corrcoef(found, logits)[0, 1] > 0.9
    answer = model.generate(prompt, deepmnn.SamplingParams(max_tokens=4, ignore_eos=True))
    assert len(answer.ids) == 4
