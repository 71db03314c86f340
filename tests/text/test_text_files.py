"""Only the files that a model's manifest lists are read: nothing has checked the others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import deepmnn
from byte_tokenizer import EOS, write_tokenizer
from deepmnn.artifact.reader import Artifact
from deepmnn.conversion.convert import convert
from deepmnn.errors import TokenizerError
from deepmnn.text.text_files import TextFiles
from deepmnn.text.tokenizer import Tokenizer
from tiny_models import CONFIGS

USER = [{"role": "user", "content": "Hi."}]
UNLISTED = {
    "chat_template.jinja": "UNLISTED",
    "generation_config.json": json.dumps({"do_sample": True, "eos_token_id": [5]}),
    "special_tokens_map.json": json.dumps({"unk_token": "<unlisted>"}),
    "added_tokens.json": json.dumps({"<unlisted>": 999}),
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a tokenizer.json and a tokenizer_config.json."""
    directory = tmp_path_factory.mktemp("source")
    write_tokenizer(directory, chat_template="listed", eos_token=EOS)
    config = {"model_type": "llama", **CONFIGS["llama"][0], "vocab_size": 300}
    (directory / "config.json").write_text(json.dumps(config))
    return convert(directory, directory.parent / "model", random_weights=True).path


@pytest.fixture(params=UNLISTED)
def with_unlisted(request: pytest.FixtureRequest, converted: Path, tmp_path: Path) -> Path:
    """With a file beside it that the manifest does not list."""
    model = tmp_path / "model"
    shutil.copytree(converted, model)
    (model / request.param).write_text(UNLISTED[request.param])
    return model


def test_an_unlisted_file_of_a_model_is_not_read(converted: Path, with_unlisted: Path) -> None:
    wanted, model = deepmnn.load(converted, threads=1), deepmnn.load(with_unlisted, threads=1)
    assert model.generation_config == wanted.generation_config
    assert model.tokenizer.apply_chat_template(USER) == "listed"
    assert model.tokenizer.special_tokens == wanted.tokenizer.special_tokens
    assert model.tokenizer.token_id("<unlisted>") is None


def test_an_unlisted_tokenizer_is_none(converted: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(converted / "config.json", source)
    path = convert(source, tmp_path / "model", random_weights=True).path
    shutil.copy(converted / "tokenizer.json", path)
    model = deepmnn.load(path, threads=1)
    assert not model.has_tokenizer
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        model.generate("text")


def test_an_unlisted_file_does_not_go_along_into_a_folder_for_mnn(
    with_unlisted: Path, tmp_path: Path
) -> None:
    pytest.importorskip("MNN")
    from deepmnn.exporters.mnn.export import export
    from deepmnn.exporters.mnn.folder import MnnFolder

    path = export(with_unlisted, tmp_path / "mnn").path
    folder = MnnFolder.open(path)
    exported = {file.name for file in folder.sidecar.iterdir()}
    assert not exported & UNLISTED.keys()
    for name, text in UNLISTED.items():
        (folder.sidecar / name).write_text(text)
        assert name not in MnnFolder.open(path).text_files
    assert Tokenizer(MnnFolder.open(path).text_files).apply_chat_template(USER) == "listed"


def test_a_directory_alone_has_all_of_its_files(with_unlisted: Path) -> None:
    """For tools, which look at directories of any kind."""
    unlisted = [name for name in UNLISTED if (with_unlisted / name).is_file()]
    assert all(name in TextFiles(with_unlisted) for name in unlisted)
    assert not any(name in Artifact.open(with_unlisted).text_files for name in unlisted)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
