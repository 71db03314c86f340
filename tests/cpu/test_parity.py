"""The CPU engine against every architecture: all levels, all ISAs, both forms of MLA."""

from collections.abc import Callable
from pathlib import Path

import pytest

from deepmnn import _core
from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.conversion.convert import convert
from parity import SCHEDULES, check_parity
from tiny_models import ALL, TinyModel, tiny_checkpoint

MLA = [case for case in ALL if case[0] in ("deepseek_v2", "deepseek_v3", "deepseek_v32")]


Converted = Callable[[str, int, int], tuple[TinyModel, Path]]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """(model_type, index, level) → the model and its fp32 artifact, made once."""
    made: dict[tuple[str, int, int], tuple[TinyModel, Path]] = {}

    def make(model_type: str, index: int, level: int) -> tuple[TinyModel, Path]:
        key = model_type, index, level
        if key not in made:
            folder = tmp_path_factory.mktemp("model")
            tiny = tiny_checkpoint(model_type, index, folder / "hf")
            made[key] = tiny, convert(tiny.path, folder / "out", "fp32", level).path
        return made[key]

    return make


def check(tiny: TinyModel, backend: CpuBackend, *schedules: str) -> None:
    check_parity(tiny, lambda *_: backend, tolerance=1e-5, schedules=schedules or tuple(SCHEDULES))


@pytest.mark.parametrize(("model_type", "index"), ALL)
def test_every_schedule_gives_the_oracles_logits(
    converted: Converted, model_type: str, index: int
) -> None:
    tiny, path = converted(model_type, index, 3)
    check(tiny, CpuBackend(path, threads=2))


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize(("model_type", "index"), ALL)
def test_lower_levels_give_the_same(
    converted: Converted, model_type: str, index: int, level: int
) -> None:
    tiny, path = converted(model_type, index, level)
    check(tiny, CpuBackend(path, threads=1), "ragged", "one by one")


@pytest.mark.parametrize("isa", _core.isas())
@pytest.mark.parametrize(("model_type", "index"), ALL)
def test_every_isa_gives_the_same(
    converted: Converted, model_type: str, index: int, isa: str
) -> None:
    tiny, path = converted(model_type, index, 3)
    check(tiny, CpuBackend(path, threads=1, isa=isa), "ragged", "prefill")


@pytest.mark.parametrize("form", ["absorbed", "expanded"])
@pytest.mark.parametrize(("model_type", "index"), MLA)
def test_both_forms_of_mla(converted: Converted, model_type: str, index: int, form: str) -> None:
    tiny, path = converted(model_type, index, 3)
    check(tiny, CpuBackend(path, threads=2, mla_form=form))
