"""Damaged artifacts whose checksums nobody made right again: an ArtifactError."""

import json
from pathlib import Path

import numpy as np
import pytest

from deepmnn.artifact.manifest import MANIFEST
from deepmnn.artifact.reader import Artifact
from deepmnn.conversion.convert import convert
from deepmnn.errors import ArtifactError
from deepmnn.quant.store import stored_values
from fuzz.mutations import mutate_bytes, rewrite
from tiny_models import tiny_checkpoint


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact")
    tiny = tiny_checkpoint("deepseek_v2", 1, path / "hf")
    return convert(tiny.path, path / "model", "w4").path


def read_all(path: Path) -> bool:
    """Whether the artifact opens and every weight can be read."""
    try:
        artifact = Artifact.open(path)
        graph = artifact.graph()
        for weight in graph.weights.values():
            assert stored_values(weight, artifact.tensor(weight.name)).shape == weight.shape
    except ArtifactError:
        return False
    return True


def same_content(path: Path, data: bytes, before: bytes) -> bool:
    """Whether data says what the file said: white space in the manifest does not count."""
    if path.name == MANIFEST:
        return bool(json.loads(data) == json.loads(before))
    return data == before


@pytest.mark.parametrize("count", [400, pytest.param(2000, marks=pytest.mark.slow)])
def test_any_damage_to_any_file_is_seen(artifact: Path, count: int) -> None:
    rng = np.random.default_rng(3)
    assert read_all(artifact)
    files = sorted(artifact.iterdir())
    for number in range(count):
        path = files[number % len(files)]
        before = path.read_bytes()
        data = mutate_bytes(rng, before)
        rewrite(path, data)
        if read_all(artifact):
            assert same_content(path, data, before), path.name
        rewrite(path, before)
