"""`deepmnn plan`: a model in a budget, from files or from config.json alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from deepmnn.cli import app
from deepmnn.cli.console import out
from tiny_artifact import tiny_artifact

PUBLISHED = Path(__file__).parents[1] / "models" / "published"
LITE = PUBLISHED / "DeepSeek-V2-Lite.json"
FAST = ("--disk-bandwidth", "2GB/s", "--threads", "2")


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's, which takes a second to measure."""
    monkeypatch.setattr("deepmnn._core.measure_read_bandwidth", lambda threads: 10e9)
    monkeypatch.setattr("deepmnn._core.measure_int8_peak", lambda threads: 200e9)
    monkeypatch.setattr(out, "_width", 160)


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["plan", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def planned(*arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(*arguments, "--json"))
    return found


def test_a_config_is_enough() -> None:
    found = planned(LITE, "--quant", "w8", "--memory", "4GiB", *FAST)
    parts = ("kv_nbytes", "step_nbytes", "process_nbytes")
    taken = found["weights"]["memory_nbytes"] + sum(found[part] for part in parts)
    assert taken <= found["memory_nbytes"] == 4 << 30
    assert found["least_nbytes"] < 4 << 30 < found["whole_nbytes"]
    assert not found["weights"]["mapped"]
    assert found["machine"]["disk"] == 2e9
    decode = {each["what"]: each["decode"] for each in found["advice"]}
    now = found["decode"]["tokens_per_second"]
    assert decode["weights in w4"] > now
    assert decode["a disk twice as fast"] > now
    assert list(decode.values()) == sorted(decode.values(), reverse=True)


def test_it_is_shown_as_a_table() -> None:
    shown = run(
        LITE, "--quant", "w4", "--memory", "4GiB", "--context", "8192",
        "--hit-rate", "0.9", *FAST,
    )  # fmt: skip
    for part in ("cache of experts", "8,192 tokens in f32", "least memory", "decode, a token"):
        assert part in shown
    assert "of 1,664 experts" in shown
    assert "90% of the experts that a token needs are cached (as given)" in shown


def test_a_converted_model_that_fits(tmp_path: Path) -> None:
    path = tiny_artifact(tmp_path, "w8")
    found = planned(path, *FAST)
    assert found["weights"]["mapped"]
    assert found["advice"] == []
    assert found["decode"]["missed_nbytes"] == 0
    assert "a checkpoint, or no --quant" in run(path, "--quant", "w4", *FAST, code=1)


def test_what_cannot_be_planned() -> None:
    said = run(LITE, "--memory", "200MB", *FAST, code=1)
    assert "--memory is 200.0 MB, and this model does not run in it" in said
    assert "--memory is 'lots'" in run(LITE, "--memory", "lots", code=1)
    assert "--disk-bandwidth '7 knots'" in run(LITE, "--disk-bandwidth", "7 knots", code=1)
