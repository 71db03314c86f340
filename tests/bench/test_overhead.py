"""What a step costs beside the core: the table adds up, and nothing stays watched."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

import deepmnn
import overhead
from deepmnn.engine.batch import make_batch
from deepmnn.engine.scheduler import Scheduler
from deepmnn.errors import ContextLengthError
from tiny_artifact import tiny_artifact


@pytest.mark.parametrize("tokenizer", [True, False])
@pytest.mark.parametrize("way", overhead.WAYS)
def test_a_row_splits_the_step(tmp_path: Path, way: str, tokenizer: bool) -> None:
    model = deepmnn.load(tiny_artifact(tmp_path, tokenizer=tokenizer), threads=1)
    schedule = Scheduler.schedule
    name, sampling, batch, *numbers, share = overhead.row("tiny", model, 2, 5, way)
    assert (name, sampling, batch) == ("tiny", way, "2")
    total, core, spent, *parts, rest = map(int, numbers)
    assert 0 < core < total
    assert 0 < spent < total
    assert len(parts) == len(overhead.PARTS)
    assert (parts[-1] > 0) == tokenizer
    assert min(parts[:-1]) > 0
    assert sum(parts) + rest == pytest.approx(spent, abs=4)
    assert share.endswith("%")
    assert Scheduler.schedule is schedule
    assert overhead.engine_module.make_batch is make_batch
    assert not model.engine.scheduler.busy
    with pytest.raises(ContextLengthError):
        overhead.row("tiny", model, 1, 192, way)
