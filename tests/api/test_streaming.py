"""Answers from a model in a short budget: the same, or an error for who needed what is gone."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

import deepmnn
from deepmnn.conversion.convert import convert
from failing_reads import failing_reads
from tiny_artifact import write_config

sys.path.insert(0, str(Path(__file__).parent))
from streaming_child import short_memory

CHILD = Path(__file__).with_name("streaming_child.py")
KILLS = 200


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("streaming")
    write_config(
        directory / "source", hidden_size=256, moe_intermediate_size=256, n_routed_experts=24,
        num_hidden_layers=4, intermediate_size=512,
    )  # fmt: skip
    convert(directory / "source", directory / "model", "w8", random_weights=True, seed=2)
    return directory / "model"


def test_answers_are_the_same(model: Path) -> None:
    prompts = [[5, 17, 200], [8, 9, 10] * 30]
    params = deepmnn.SamplingParams(max_tokens=16, ignore_eos=True)
    streamed = deepmnn.load(model, memory=short_memory(model))
    assert streamed.is_streamed
    want = deepmnn.load(model).generate(prompts, params)
    got = streamed.generate(prompts, params)
    assert [each.ids for each in got] == [each.ids for each in want]


def test_reads_that_fail_end_who_needed_them(model: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    done = subprocess.run(
        [sys.executable, CHILD, model, gate],
        env=os.environ | failing_reads(tmp_path, gate, 60),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    failed, good = map(int, done.stdout.split())
    assert failed + good == 100
    assert failed > 0, "the disk must have failed"
    assert good > 0, "others must have gone on"


@pytest.mark.slow
def test_kills_at_any_moment_leave_nothing(model: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in model.rglob("*")}
    chance = random.Random(4)
    right = 0
    for _ in range(KILLS):
        child = subprocess.Popen(
            [sys.executable, CHILD, model],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(chance.uniform(0.2, 2.5))
        assert child.poll() is None, child.communicate()[1][-2000:]
        child.kill()
        said, errors = child.communicate(timeout=30)
        assert set(said.split()) <= {"right"}, said
        assert "Traceback" not in errors, errors[-2000:]
        right += said.count("right")
    assert right > KILLS // 4, "some must have answered before they were killed"
    assert {path: path.stat().st_mtime_ns for path in model.rglob("*")} == before
