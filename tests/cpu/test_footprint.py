"""What a step takes is never more than was reckoned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import deepmnn
from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.backends.cpu.footprint import Footprint, StepShape
from deepmnn.backends.cpu.program import read_program
from deepmnn.engine.kv_cache import BlockTable
from parity import Runner
from tiny_models import tiny_checkpoint

ROWS = 2048
OWNERS = {
    "activations": "activations",
    "working": "working memory",
    "quantised": "quantised rows",
    "rope": "rope tables",
}


@pytest.mark.parametrize("level", [0, 3])
@pytest.mark.parametrize("quant", ["fp32", "w4"])
@pytest.mark.parametrize("model_type", ["deepseek_v2", "deepseek_v3", "qwen2", "deepseek"])
def test_the_engine_keeps_below_the_bound(
    model_type: str, quant: str, level: int, tmp_path: Path
) -> None:
    tiny_checkpoint(model_type, 0, tmp_path / "source")
    deepmnn.convert(tmp_path / "source", tmp_path / "model", quant, level, calibration=False)
    program = read_program((tmp_path / "model" / "program.bin").read_bytes())
    for form in ("auto", "absorbed", "expanded"):
        given: dict[str, Any] = {"mla_form": form, "threads": 2, "cache_tokens": ROWS}
        model = deepmnn.load(tmp_path / "model", max_batch_tokens=64, **given)
        most = model.engine.context_length
        shape = StepShape(64, 64, 64, most, ROWS + 32, 2, form)
        bound = Footprint.of(program, shape)
        model.backend.model.reserve(bound.working)
        for lengths in ([min(200, most)], [30] * 16, [5, 64, 2, 60], [3] * 60):
            run(model, lengths)
        found = model.backend.model.memory()
        for name, owner in OWNERS.items():
            held, _, peak = found[owner]
            assert held <= getattr(bound, name), (owner, form)
            assert peak <= getattr(bound, name), (owner, form)


@pytest.mark.parametrize("quant", ["fp32", "w4"])
def test_a_draft_part_keeps_below_the_bound(quant: str, tmp_path: Path) -> None:
    tiny_checkpoint("deepseek_v3", 0, tmp_path / "source")
    deepmnn.convert(tmp_path / "source", tmp_path / "model", quant, calibration=False)
    program = read_program((tmp_path / "model" / "program.bin").read_bytes())
    for form in ("auto", "absorbed", "expanded"):
        backend = CpuBackend(tmp_path / "model", 2, mla_form=form)
        bound = Footprint.of(program, StepShape(64, 4, 64, 128, 4 * 128, 2, form))
        backend.model.reserve(bound.working)
        step = Runner(backend, blocks=200, output="hidden")
        for ids in ({0: [1] * 64}, {0: [2] * 64}, {1: [1] * 31, 2: [3] * 32, 0: [4]}):
            step.draft(ids, step.step(ids))
        found = backend.model.memory()
        for name, owner in {**OWNERS, "outputs": "outputs"}.items():
            assert found[owner][2] <= getattr(bound, name), (owner, form)


def run(model: deepmnn.LLM, lengths: list[int]) -> None:
    """Prompts side by side, and two tokens after them."""
    engine = model.engine
    tables = [BlockTable([index % 7] * length) for index, length in enumerate(lengths)]
    for _ in range(3):
        engine.run_pending(tables)
        for table in tables:
            if table.length < engine.context_length:
                table.ids.append(1)
    for table in tables:
        engine.manager.free(table)
