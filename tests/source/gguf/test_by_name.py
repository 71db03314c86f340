"""A GGUF file wherever a model is named: converted once, found again, by path and by hub name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import deepmnn
from deepmnn.artifact.cache import entries
from deepmnn.cli import app
from deepmnn.conversion.kept import converted, described, original
from fake_hub import FakeHub, fake_hub, use_hub
from gguf_files import write_gguf
from parity import relative_error
from tiny_models import TinyModel, tiny_checkpoint

IDS = [3, 1, 4, 1, 5, 9]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg"


@pytest.fixture
def tiny(tmp_path: Path) -> TinyModel:
    return tiny_checkpoint("llama", 1, tmp_path / "checkpoint")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    (tmp_path / "site").mkdir()
    with fake_hub(tmp_path / "site", "owner/name") as served:
        use_hub(served, tmp_path / "hub", monkeypatch)
        yield served


def test_a_file_is_converted_once(tiny: TinyModel, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "model-F32.gguf"
    write_gguf(tiny, path)
    for name in (path, str(path.parent)):
        model = deepmnn.load(name, quant="fp32", threads=1)
        assert relative_error(model.logits(IDS), tiny.logits(IDS)) <= 1e-4
    count = len(entries())
    with converted(path, "fp32") as held:
        assert held.path.name.startswith("model-F32-fp32-")
    assert len(entries()) == count
    write_gguf(tiny_checkpoint("llama", 0, tmp_path / "other"), path)
    with converted(path, "fp32"):
        assert len(entries()) == count + 1, "another model has the name"


def test_all_parts_of_a_file_count(tiny: TinyModel, tmp_path: Path) -> None:
    write_gguf(tiny, tmp_path / "model.gguf", max_tensors=8)
    first, *_, last = sorted(tmp_path.glob("model-*.gguf"))
    with converted(first, "fp32") as held:
        before = held.path
    data = bytearray(last.read_bytes())
    data[-5] ^= 1
    last.write_bytes(data)
    with converted(first, "fp32") as held:
        assert held.path != before


def test_a_file_of_the_hub(site: FakeHub, tiny: TinyModel) -> None:
    write_gguf(tiny, site.directory / "a.gguf")
    write_gguf(tiny, site.directory / "b.gguf")
    name = "owner/name:b.gguf"
    model = deepmnn.load(name, quant="fp32", threads=1)
    assert relative_error(model.logits(IDS), tiny.logits(IDS)) <= 1e-4
    asked = len(site.asked)
    with converted(name, "fp32") as held:
        assert held.path.name.startswith("b-fp32-")
    assert len(site.asked) == asked, "neither hub nor network is asked while it is there"
    assert described(name).name == "b.gguf"


def test_a_file_of_the_hub_by_its_tag(site: FakeHub, tiny: TinyModel) -> None:
    write_gguf(tiny, site.directory / "a-Q8_0.gguf")
    write_gguf(tiny, site.directory / "a-F32.gguf")
    name = "owner/name:f32"
    with converted(name, "fp32") as held:
        assert held.path.name.startswith("a-F32-fp32-")
    asked = len(site.asked)
    with converted(name, "fp32") as held:
        assert held.path.name.startswith("a-F32-fp32-")
    with original(name) as source:
        assert source.paths[0].name == "a-F32.gguf"
    assert described(name).name == "a-F32.gguf"
    assert len(site.asked) == asked


def test_info_says_what_it_downloads(site: FakeHub, tiny: TinyModel) -> None:
    write_gguf(tiny, site.directory / "a-F32.gguf")
    done = CliRunner().invoke(app, ["info", "owner/name:F32"])
    assert done.exit_code == 0, done.output
    assert "downloading owner/name:a-F32.gguf, " in done.stderr
    assert "downloading" not in CliRunner().invoke(app, ["info", "owner/name:F32"]).stderr


def test_the_command_line(tiny: TinyModel, tmp_path: Path) -> None:
    write_gguf(tiny, tmp_path / "model.gguf")
    for arguments in (["info"], ["convert", str(tmp_path / "out")]):
        arguments.insert(1, str(tmp_path / "model.gguf"))
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert "llama" in result.output
    assert (tmp_path / "out" / "deepmnn.json").exists()
