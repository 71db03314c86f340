"""Folders by any name that the system allows: names need not be UTF-8."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import deepmnn
from deepmnn import _core
from deepmnn.errors import ArtifactError
from tiny_artifact import tiny_artifact

NAMES = ["模型".encode("gbk"), b"\xff\xfe \x80", "Ünï 模型".encode(), b"new\nline", b" ", b"-x"]
PARAMS = deepmnn.SamplingParams(max_tokens=5, ignore_eos=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("artifact"), "w8")


@pytest.mark.parametrize("name", NAMES)
def test_a_model_in_it_loads_and_answers(model: Path, tmp_path: Path, name: bytes) -> None:
    wanted = deepmnn.load(model).generate([5, 6, 7], PARAMS).ids
    folder = tmp_path / os.fsdecode(name)
    shutil.copytree(model, folder)
    assert deepmnn.load(folder).generate([5, 6, 7], PARAMS).ids == wanted
    assert deepmnn.load(str(folder)).generate([5, 6, 7], PARAMS).ids == wanted
    for given in (folder, str(folder), os.fsencode(folder)):
        assert _core.Model(given, 1, numa="distribute", numa_root=folder).numa == "off"
        assert _core.available_cores(given) >= 1
        assert _core.available_memory(given) > 0
        assert _core.numa_nodes(None, given)
    done = subprocess.run(
        [sys.executable, "-m", "deepmnn", "generate", "--raw", "--max-tokens", "3", folder, "ab"],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", ["missing", "cut", "cut later"])
def test_errors_name_it(model: Path, tmp_path: Path, name: bytes, way: str) -> None:
    """As Python names it, so that its own functions find it again."""
    folder = tmp_path / os.fsdecode(name)
    shutil.copytree(model, folder)
    (shard,) = folder.glob("*.safetensors")
    if way == "missing":
        shard.unlink()
    if way == "cut":
        os.truncate(shard, 64)
    with pytest.raises(ArtifactError) as raised:  # noqa: PT012
        loaded = deepmnn.load(folder) if way == "cut later" else _core.Model(folder, 1)
        os.truncate(shard, 0)
        loaded.generate([5, 6, 7], PARAMS)
    message = str(raised.value)
    assert (str(shard) if way != "cut" else shard.name) in message
    assert message.encode("utf-8", "surrogateescape")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["program.bin", "model-00001-of-00001.safetensors"])
def test_a_fifo_is_refused_and_not_waited_for(model: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model" / name).unlink()
    os.mkfifo(tmp_path / "model" / name)
    with pytest.raises(ArtifactError, match="not a regular file"):
        _core.Model(tmp_path / "model", 1)
