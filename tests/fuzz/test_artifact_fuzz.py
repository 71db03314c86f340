"""Damaged artifacts: an ArtifactError, or (checksums made right again) a sound read."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from artifact.test_artifact import reseal
from deepmnn.artifact.manifest import MANIFEST, manifest_crc
from deepmnn.artifact.reader import Artifact
from deepmnn.conversion.convert import convert
from deepmnn.errors import ArtifactError
from deepmnn.quant.store import stored_values
from fuzz.mutations import mutate_bytes, mutate_json, rewrite, with_header
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


@contextmanager
def replaced(path: Path, data: bytes, sealed: bool) -> Iterator[None]:
    """The file with other bytes, and with checksums that fit when `sealed`."""
    manifest = path.parent / MANIFEST
    before, before_manifest = path.read_bytes(), manifest.read_bytes()
    rewrite(path, data)
    if sealed and path != manifest:
        reseal(path.parent)
    try:
        yield
    finally:
        rewrite(path, before)
        rewrite(manifest, before_manifest)


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
        with replaced(path, data, sealed=False):
            if read_all(artifact):
                assert same_content(path, data, before), path.name


def damaged_graph(rng: np.random.Generator, data: bytes) -> bytes:
    return json.dumps(mutate_json(rng, json.loads(data))).encode()


def damaged_header(rng: np.random.Generator, data: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = mutate_json(rng, json.loads(data[8 : 8 + length]))
    return with_header(header, data[8 + length :])


@pytest.mark.parametrize(
    ("pattern", "damage"),
    [
        ("graph.json", damaged_graph),
        ("graph.json", mutate_bytes),
        ("*.safetensors", damaged_header),
        ("*.safetensors", mutate_bytes),
        ("config.json", damaged_graph),
    ],
)
@pytest.mark.parametrize("count", [120, pytest.param(500, marks=pytest.mark.slow)])
def test_damage_that_the_checksums_hide(
    artifact: Path, pattern: str, damage: Callable[[np.random.Generator, bytes], bytes], count: int
) -> None:
    rng = np.random.default_rng(4)
    (path,) = artifact.glob(pattern)
    data = path.read_bytes()
    for _ in range(count):
        with replaced(path, damage(rng, data), sealed=True):
            read_all(artifact)


@pytest.mark.parametrize("count", [250, pytest.param(1000, marks=pytest.mark.slow)])
def test_manifest_of_wrong_types(artifact: Path, count: int) -> None:
    rng = np.random.default_rng(5)
    path = artifact / MANIFEST
    fields = json.loads(path.read_text())
    for _ in range(count):
        damaged = mutate_json(rng, fields)
        with replaced(path, json.dumps(damaged).encode(), sealed=False):
            if isinstance(damaged, dict):
                damaged["crc32"] = manifest_crc(damaged)
                path.write_text(json.dumps(damaged))
            read_all(artifact)
