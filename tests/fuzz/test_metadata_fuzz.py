"""Configs and tokenizer files of wrong types, from conversion to loading: typed errors only."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from byte_tokenizer import write_tokenizer
from deepmnn.artifact.reader import Artifact
from deepmnn.conversion.convert import convert
from deepmnn.errors import DeepmnnError
from deepmnn.models import read_config
from deepmnn.text.generation_config import GenerationConfig
from deepmnn.text.tokenizer import Tokenizer
from fuzz.mutations import mutate_bytes, mutate_json, rewrite
from tiny_models import CONFIGS


@pytest.mark.parametrize("model_type", CONFIGS)
@pytest.mark.parametrize("count", [25, pytest.param(60, marks=pytest.mark.slow)])
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


def use_text_files(directory: Path) -> bool:
    """Whether the tokenizer and generation settings of a model directory work."""
    try:
        GenerationConfig.read(directory, {})
        tokenizer = Tokenizer(directory)
        tokenizer.decode(tokenizer.encode("x = 1 + 2"))
        tokenizer.encode_chat([{"role": "user", "content": "hi"}])
    except DeepmnnError:
        return False
    return True


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
def test_damaged_text_files_of_an_artifact(tmp_path: Path, name: str) -> None:
    """They are copied as they are; using them is a typed error or works."""
    write_tokenizer(tmp_path)
    settings = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "eos_token_id": [1, 2]}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    config = {"model_type": "llama", **CONFIGS["llama"][0], "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    path = convert(tmp_path, tmp_path / "out", random_weights=True).path
    assert use_text_files(path)
    rng = np.random.default_rng(7)
    whole = (path / name).read_bytes()
    worked = 0
    for number in range(150):
        if number % 2:
            damaged = mutate_bytes(rng, whole)
        else:
            damaged = json.dumps(mutate_json(rng, json.loads(whole))).encode()
        rewrite(path / name, damaged)
        worked += use_text_files(path)
    assert 0 < worked < 150
