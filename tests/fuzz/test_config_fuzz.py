"""Configs of wrong types, from conversion to loading: typed errors only."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from deepmnn.artifact.reader import Artifact
from deepmnn.conversion.convert import convert
from deepmnn.errors import DeepmnnError
from deepmnn.models import read_config
from fuzz.mutations import mutate_json
from tiny_models import CONFIGS


@pytest.mark.parametrize("model_type", CONFIGS)
@pytest.mark.parametrize("count", [12, pytest.param(60, marks=pytest.mark.slow)])
def test_damaged_configs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str, count: int
) -> None:
    """Sizes that no disk holds are refused before anything is written."""
    room = shutil.disk_usage(tmp_path)._replace(free=10_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: room)
    rng = np.random.default_rng(6)
    config = {"model_type": model_type, **CONFIGS[model_type][1], "num_hidden_layers": 2}
    converted = 0
    for _ in range(count):
        (tmp_path / "config.json").write_text(json.dumps(mutate_json(rng, config)))
        try:
            report = convert(tmp_path, tmp_path / "out", random_weights=True, overwrite=True)
            artifact = Artifact.open(report.path)
            artifact.graph()
            read_config(artifact.config)
            converted += 1
        except DeepmnnError:
            pass
    assert 0 < converted < count
