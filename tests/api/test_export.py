"""deepmnn.export: every target by its name, as the command has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deepmnn
from deepmnn.backends.mnn import wheel
from deepmnn.errors import RequestError
from deepmnn.source.open import open_source
from tiny_models import CONFIGS, checkpoint_of


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "hf"
    checkpoint_of("llama", CONFIGS["llama"][0] | {"hidden_size": 96, "head_dim": 32}, path)
    return path


@pytest.mark.parametrize(
    ("target", "type", "name"), [("hf", "fp32", "out"), ("gguf", "F32", "out.gguf")]
)
def test_other_programs(
    checkpoint: Path, target: str, type: str, name: str, tmp_path: Path
) -> None:
    if target == "gguf":
        pytest.importorskip("gguf")
    calls: list[tuple[int, int, str]] = []
    report = deepmnn.export(
        checkpoint,
        tmp_path / name,
        target,
        type=type,
        progress=lambda *call: calls.append(call),
    )
    assert report.path == tmp_path / name
    assert calls[-1][0] == calls[-1][1] == report.nbytes
    found, wanted = open_source(tmp_path / name), open_source(checkpoint)
    for tensor in wanted.names():
        np.testing.assert_array_equal(found.read(tensor), wanted.read(tensor))
    with pytest.raises(deepmnn.errors.StorageError, match="overwrite=True"):
        deepmnn.export(checkpoint, tmp_path / name, target)
    deepmnn.export(checkpoint, tmp_path / name, target, overwrite=True)


def test_mnn(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Converted first, or rounded for it."""
    pytest.importorskip("MNN")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    report = deepmnn.export(checkpoint, tmp_path / "w8")
    assert "MNN ops" in report.contents
    made = deepmnn.export(checkpoint, tmp_path / "b4", bits=4, block_size=32, calibration=False)
    assert made.nbytes < report.nbytes
    assert wheel.VERSION in (tmp_path / "b4" / "deepmnn.json").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": "ios"}, "target is 'ios'; expected mnn or android or hf or gguf"),
        ({"type": "bf16"}, "type is for the target hf or gguf, not mnn"),
        ({"target": "hf", "bits": 4}, "bits is for the target mnn or android, not hf"),
        ({"target": "hf", "type": "int8"}, "type is 'int8'; expected one of bf16"),
        ({"calibration": False}, "calibration is given without bits; expected bits=4 or bits=8"),
    ],
)
def test_options_that_do_not_fit(
    checkpoint: Path, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(RequestError) as error:
        deepmnn.export(checkpoint, tmp_path / "out", **options)
    assert str(error.value).startswith(said)
    assert not (tmp_path / "out").exists()
