"""The CPU engine against every architecture: all levels, all ISAs, both forms of MLA."""

from pathlib import Path

import pytest

from deepmnn import _core
from deepmnn.backends.cpu_model import CpuBackend
from deepmnn.convert import convert
from parity import SCHEDULES, check_parity
from tiny_models import ALL, TinyModel, tiny_checkpoint

MLA = [case for case in ALL if case[0] in ("deepseek_v2", "deepseek_v3")]


def converted(tiny: TinyModel, level: int) -> Path:
    """An fp32 artifact beside the checkpoint."""
    out = tiny.path.parent / f"level-{level}"
    convert(tiny.path, out, quant="fp32", optimize_level=level)
    return out


def check(tiny: TinyModel, backend: CpuBackend, *schedules: str) -> None:
    check_parity(tiny, lambda *_: backend, tolerance=1e-5, schedules=schedules or tuple(SCHEDULES))


@pytest.mark.parametrize(("model_type", "index"), ALL)
def test_every_schedule_gives_the_oracles_logits(
    tmp_path: Path, model_type: str, index: int
) -> None:
    tiny = tiny_checkpoint(model_type, index, tmp_path / "hf")
    check(tiny, CpuBackend(converted(tiny, 3), threads=2))


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize(("model_type", "index"), ALL)
def test_lower_levels_give_the_same(
    tmp_path: Path, model_type: str, index: int, level: int
) -> None:
    tiny = tiny_checkpoint(model_type, index, tmp_path / "hf")
    check(tiny, CpuBackend(converted(tiny, level), threads=1), "ragged", "one by one")


@pytest.mark.parametrize("isa", _core.isas())
@pytest.mark.parametrize(("model_type", "index"), ALL)
def test_every_isa_gives_the_same(tmp_path: Path, model_type: str, index: int, isa: str) -> None:
    tiny = tiny_checkpoint(model_type, index, tmp_path / "hf")
    check(tiny, CpuBackend(converted(tiny, 3), threads=1, isa=isa), "ragged", "prefill")


@pytest.mark.parametrize("form", ["absorbed", "expanded"])
@pytest.mark.parametrize(("model_type", "index"), MLA)
def test_both_forms_of_mla(tmp_path: Path, model_type: str, index: int, form: str) -> None:
    tiny = tiny_checkpoint(model_type, index, tmp_path / "hf")
    check(tiny, CpuBackend(converted(tiny, 3), threads=2, mla_form=form))
