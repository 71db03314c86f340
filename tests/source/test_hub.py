"""Checkpoints of a hub on loopback: what is fetched, what is kept, what goes wrong."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepmnn.errors import CheckpointError, StorageError
from deepmnn.source import hub
from deepmnn.source.hub import HubName, download, fetched
from fake_hub import FakeHub, fake_hub, use_hub

SMALL = {"config.json", "tokenizer.json", "chat_template.jinja", "tokenizer.model", "merges.txt"}
OTHERS = {"README.md", "modeling_deepseek.py", "figures/benchmark.jpg", "flax_model.msgpack"}
SAFETENSORS = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
INDEX = {"model.safetensors.index.json"}
TORCH = {"pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"}
NOT_WEIGHTS = {"training_args.bin", "optimizer.bin", "original/consolidated.safetensors"}
NAME = HubName("owner/name")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub without files, and an empty cache for what is fetched from it."""
    (tmp_path / "site").mkdir()
    with fake_hub(tmp_path / "site", "owner/name") as served:
        use_hub(served, tmp_path / "cache", monkeypatch)
        yield served


def put(site: FakeHub, *names: str) -> None:
    for name in names:
        (site.directory / name).parent.mkdir(parents=True, exist_ok=True)
        (site.directory / name).write_bytes(f"this is {name}".encode())


def found(path: Path) -> set[str]:
    return {
        str(file.relative_to(path))
        for file in path.rglob("*")
        if file.is_file() and ".cache" not in file.parts
    }


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        (SAFETENSORS | INDEX, SAFETENSORS | INDEX),
        (SAFETENSORS | INDEX | TORCH, SAFETENSORS | INDEX | {"pytorch_model.bin.index.json"}),
        (TORCH, TORCH),
        ({"pytorch_model.bin"}, {"pytorch_model.bin"}),
        (set(), set()),
    ],
)
def test_weights_come_in_one_format(site: FakeHub, weights: set[str], wanted: set[str]) -> None:
    put(site, *SMALL, *OTHERS, *NOT_WEIGHTS, *weights)
    path = download(NAME)
    assert found(path) == SMALL | wanted
    assert path.name == site.commit
    assert (path / "tokenizer.json").read_text() == "this is tokenizer.json"


def test_what_is_here_is_not_fetched_again(site: FakeHub) -> None:
    put(site, *SMALL, *SAFETENSORS)
    path = download(NAME)
    before = len(site.asked)
    assert download(NAME) == path
    assert hub.local_snapshot(NAME) == path
    assert hub.local_snapshot(HubName("owner/name", site.commit)) == path
    assert len(site.asked) == before + 1, "one request, for the newest commit"
    put(site, "generation_config.json")
    newer = download(NAME)
    assert newer != path
    assert hub.local_snapshot(NAME) == newer


def test_a_directory_of_ones_own(site: FakeHub, tmp_path: Path) -> None:
    put(site, *SMALL, *SAFETENSORS)
    assert download(NAME, tmp_path / "mine") == tmp_path / "mine"
    assert found(tmp_path / "mine") == SMALL | SAFETENSORS
    assert hub.local_snapshot(NAME) is None


def test_a_revision(site: FakeHub) -> None:
    put(site, *SMALL, *SAFETENSORS)
    named = HubName("owner/name", site.commit)
    assert found(download(named)) == SMALL | SAFETENSORS
    with pytest.raises(CheckpointError, match=r"the hub has no owner/name@none .*revision"):
        download(HubName("owner/name", "none"))


def test_it_says_how_much_comes_and_how_far_it_is(
    site: FakeHub, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(site, *SMALL, *OTHERS)
    (site.directory / "model.safetensors").write_bytes(bytes(3_000_000))
    caplog.set_level(logging.INFO, "deepmnn")
    calls: list[tuple[int, int, str]] = []
    monkeypatch.setattr(hub, "EVERY", 0.001)
    download(NAME, progress=lambda *call: calls.append(call))
    assert "downloading owner/name, 3.0 MB, to " in caplog.text
    assert {total for _, total, _ in calls} == {
        3_000_000 + sum((site.directory / name).stat().st_size for name in SMALL)
    }
    assert all(0 <= done <= total for done, total, _ in calls)


def test_a_download_that_breaks_off_goes_on(site: FakeHub) -> None:
    put(site, *SMALL)
    (site.directory / "model.safetensors").write_bytes(os.urandom(200_000))
    site.cut_after = 50_000
    path = download(NAME)
    data = (site.directory / "model.safetensors").read_bytes()
    assert (path / "model.safetensors").read_bytes() == data


def test_names_that_the_hub_does_not_have(site: FakeHub) -> None:
    with pytest.raises(CheckpointError, match=r"the hub has no other/name .* a path that exists"):
        download(HubName("other/name"))
    with pytest.raises(CheckpointError, match="no name of the hub"):
        download(HubName("owner/" + "n" * 200))
    put(site, *SAFETENSORS)
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        hub.download_config(NAME)


def test_without_a_network(site: FakeHub, tmp_path: Path) -> None:
    put(site, *SMALL, *SAFETENSORS)
    with_model = download(NAME)
    site.shutdown()
    site.server_close()
    assert download(NAME) == with_model, "an earlier copy will do"
    for action in (
        lambda: download(HubName("owner/other")),
        lambda: download(NAME, tmp_path / "mine"),
        lambda: hub.download_config(HubName("owner/other")),
    ):
        with pytest.raises(CheckpointError, match=r"the hub cannot be reached for owner/\w+: "):
            action()


def test_a_disk_that_cannot_be_written(site: FakeHub, tmp_path: Path) -> None:
    put(site, *SMALL, *SAFETENSORS)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be stored"):
        download(NAME, tmp_path / "file")


def test_config_json_alone(site: FakeHub) -> None:
    put(site, *SMALL, *SAFETENSORS)
    (site.directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    path = fetched("owner/name", only_config=True)
    assert json.loads(path.read_text()) == {"model_type": "llama"}
    assert not [line for line in site.asked if "safetensors" in line]
    assert hub.local_snapshot(NAME) is None, "weights are what makes a copy"


def test_a_path_that_exists_is_itself(
    site: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert fetched("owner/name") == Path("owner/name")
    assert fetched(Path("owner/missing")) == Path("owner/missing"), "a Path is no name"
    shutil.rmtree(tmp_path / "owner")
    put(site, *SMALL, *SAFETENSORS)
    assert found(fetched("owner/name")) == SMALL | SAFETENSORS


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        ("deepseek-ai/DeepSeek-V3", "deepseek-ai/DeepSeek-V3", None),
        ("a/b@main", "a/b", "main"),
        ("a/b.c_d-1@refs/pr/3", "a/b.c_d-1", "refs/pr/3"),
    ],
)
def test_hub_names(text: str, repo: str, revision: str | None) -> None:
    assert HubName.parse(text) == HubName(repo, revision)
    assert str(HubName.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "a", "/a", "a/", "./a", "a/b/c", "a/b@", "a b/c", "~/a", "a/b\n", "ä/b", "-a/b"),
        *("phone/llm.mnn", "r1/pytorch_model.bin"),
        *("a/b@../../c", "a/b@../c:Q4_0", "a/b@/c", "a/b@c/", "a/b@.", "a/b@refs//c"),
    ],
)
def test_no_hub_names(text: str) -> None:
    assert HubName.parse(text) is None


Q4, Q8 = "model-Q4_K_M.gguf", "model-Q8_0.gguf"
LARGE = [f"BF16/model-BF16-{part:05}-of-00003.gguf" for part in (1, 2, 3)]


def test_a_gguf_file_is_fetched_alone(site: FakeHub) -> None:
    put(site, *SMALL, *SAFETENSORS, Q4, Q8, *LARGE)
    named = HubName.parse(f"owner/name:{Q4}")
    assert named == HubName("owner/name", None, Q4)
    path = fetched(f"owner/name:{Q4}")
    assert (path.name, found(path.parent)) == (Q4, {Q4})
    assert hub.local_snapshot(named) == path.parent
    assert hub.local_snapshot(HubName("owner/name", site.commit, Q8)) is None
    large = fetched(f"owner/name@main:{LARGE[1]}", only_config=True)
    assert large == path.parent / LARGE[1]
    assert found(path.parent) == {Q4, *LARGE}, "all of its parts"
    assert hub.local_snapshot(HubName("owner/name", None, LARGE[0])) == path.parent
    (path.parent / LARGE[2]).unlink()
    assert hub.local_snapshot(HubName("owner/name", None, LARGE[0])) is None
    assert found(download(NAME)) >= SMALL | SAFETENSORS, "without a name the others are meant"


def test_a_repository_of_gguf_files(site: FakeHub) -> None:
    put(site, "README.md", "mmproj-model-f16.gguf", Q4)
    assert found(download(NAME)) == {Q4}, "its only model"
    put(site, Q8, *LARGE)
    choices = rf"holds 3 GGUF models; expected one of owner/name:{LARGE[0]}, owner/name:{Q4}"
    with pytest.raises(CheckpointError, match=choices):
        download(NAME)
    with pytest.raises(CheckpointError, match=rf"has no other\.gguf; expected one of .*:{Q8}"):
        download(HubName("owner/name", None, "other.gguf"))


@pytest.mark.parametrize(
    "text",
    [
        "owner/name:",
        "owner/name:Q4/K_M",
        "owner/name:model.safetensors",
        "owner/name:../a.gguf",
        "owner/name:/a.gguf",
        "owner/name:a//b.gguf",
        "owner/model.gguf",
        "owner/name:a.gguf:b.gguf\n",
    ],
)
def test_what_names_no_gguf_file(text: str) -> None:
    assert HubName.parse(text) is None


# -------------------------------------------------------------------------------------------- tags

UD, IQ = "model-UD-Q2_K_XL.gguf", "model-i1-IQ4_XS.gguf"


@pytest.mark.parametrize(
    ("tag", "file"),
    [
        *(("Q4_K_M", Q4), ("q4_k_m", Q4), ("Q8_0", Q8), ("BF16", LARGE[0])),
        *(("UD-Q2_K_XL", UD), ("Q2_K_XL", UD), ("i1-IQ4_XS", IQ)),
    ],
)
def test_a_tag_stands_for_the_file_with_that_word(site: FakeHub, tag: str, file: str) -> None:
    put(site, *SMALL, *SAFETENSORS, Q4, Q8, UD, IQ, "mmproj-Q8_0.gguf", *LARGE)
    named = HubName.parse(f"owner/name@main:{tag}")
    assert named == HubName("owner/name", "main", tag=tag)
    assert str(named) == f"owner/name@main:{tag}"
    assert hub.local_snapshot(named) is None
    path = fetched(f"owner/name@main:{tag}")
    snapshot = hub.local_snapshot(named)
    assert snapshot is not None
    assert path == snapshot / file
    assert found(snapshot) == ({*LARGE} if tag == "BF16" else {file}), "that model alone"
    asked = len(site.asked)
    assert hub.located(named) == HubName("owner/name", "main", file)
    assert len(site.asked) == asked, "the network is not asked for what is here"


@pytest.mark.parametrize("tag", ["Q4", "Q4_K", "K_M", "XS", "4_XS", "Q4_0"])
def test_a_tag_that_no_file_has(site: FakeHub, tag: str) -> None:
    put(site, Q4, Q8, IQ)
    choices = f"one of owner/name:{Q4}, owner/name:{Q8}, owner/name:{IQ}"
    with pytest.raises(
        CheckpointError, match=f"no GGUF models with {tag} in .*; expected {choices}"
    ):
        fetched(f"owner/name:{tag}")


def test_a_tag_of_several_files(site: FakeHub) -> None:
    put(site, Q4, Q8, "model-v2-Q4_K_M.gguf")
    choices = f"one of owner/name:{Q4}, owner/name:model-v2-Q4_K_M.gguf$"
    with pytest.raises(
        CheckpointError, match=f"2 GGUF models with Q4_K_M in .*; expected {choices}"
    ):
        fetched("owner/name:Q4_K_M")


def test_a_tag_in_a_repository_without_gguf_files(site: FakeHub) -> None:
    put(site, *SMALL, *SAFETENSORS)
    with pytest.raises(CheckpointError, match="expected a repository with GGUF files"):
        fetched("owner/name:Q4_K_M")
    with pytest.raises(CheckpointError, match="the hub has no owner/other"):
        fetched("owner/other:Q4_K_M")
