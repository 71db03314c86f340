"""What MNN is told of the model: sampling, tokens, templates, sizes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("MNN")

import deepmnn
from byte_tokenizer import write_tokenizer
from deepmnn.conversion.convert import convert
from deepmnn.errors import ConfigError, TokenizerError
from deepmnn.exporters.mnn.export import export
from exporters.folders import Json, change_json
from tiny_artifact import write_config

IDS = [5, 17, 200]


def exported(
    directory: Path, generation: Json | None = None, *, needs_tokenizer: bool = False, **files: Any
) -> tuple[Json, Json, str]:
    """→ config.json, llm_config.json and the note of the export of a checkpoint there."""
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    convert(directory, directory / "model", "w8", random_weights=True, overwrite=True)
    for name, text in files.items():
        (directory / "model" / name).write_text(text)
    report = export(
        directory / "model", directory / "folder", overwrite=True, needs_tokenizer=needs_tokenizer
    )
    config, model = (
        json.loads((report.path / name).read_text()) for name in ("config.json", "llm_config.json")
    )
    return config, model, report.note


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_config(tmp_path, num_hidden_layers=1)
    return tmp_path


FULL = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 40, "min_p": 0.05}


@pytest.mark.parametrize(
    ("generation", "steps", "fields"),
    [
        (None, None, {}),
        ({}, None, {}),
        ({**FULL, "do_sample": False}, None, {}),
        ({**FULL, "temperature": 0.0}, None, {}),
        ({"do_sample": True}, ["temperature"], {"temperature": 1.0}),
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.95},
            ["topP", "temperature"],
            {"temperature": 0.6, "topP": 0.95},
        ),
        (
            {**FULL, "repetition_penalty": 1.1},
            ["penalty", "topK", "topP", "min_p", "temperature"],
            {"penalty": 1.1, "topK": 40, "topP": 0.95, "minP": 0.05, "temperature": 0.6},
        ),
        (
            {"do_sample": True, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0},
            ["temperature"],
            {"temperature": 1.0},
        ),
    ],
)
def test_sampling(
    source: Path, generation: Json | None, steps: list[str] | None, fields: Json
) -> None:
    config = exported(source, generation)[0]
    assert config["sampler_type"] == ("mixed" if steps else "greedy")
    assert config.get("mixed_samplers") == steps
    known = ("penalty", "topK", "topP", "minP", "temperature")
    assert {key: config[key] for key in known if key in config} == fields


@pytest.mark.parametrize("temperature", [-1.0, "0.6", [1]])
def test_sampling_that_makes_no_sense(source: Path, temperature: Any) -> None:
    with pytest.raises(ConfigError, match="temperature"):
        exported(source, {"do_sample": True, "temperature": temperature})
    assert not (source / "folder").exists()


def test_the_sizes_are_the_models(source: Path) -> None:
    config, model, note = exported(source)
    assert note == ""
    assert {key: model[key] for key in model if key not in ("jinja", "tie_embeddings")} == {
        "model_type": "deepseek_v3",
        "hidden_size": 40,
        "layer_nums": 1,
        "attention_mask": "float",
        "attention_type": "full",
        "is_mrope": False,
        "max_position_embeddings": 192,
    }
    assert config["use_template"] is True
    assert config["system_prompt"] == ""
    assert config["backend_type"] == "cpu"
    for field in ("llm_model", "llm_weight", "llm_config", "tokenizer_file", "embedding_file"):
        assert (source / "folder" / config[field]).is_file()


def test_the_context_is_what_the_scaling_makes_it(source: Path) -> None:
    write_config(source, num_hidden_layers=1, rope_scaling={"type": "yarn", "factor": 3.0})
    _, model, _ = exported(source)
    assert model["max_position_embeddings"] == 3 * 192
    assert deepmnn.load(source / "model", threads=1).context_length == 3 * 192
    assert deepmnn.load(source / "folder", threads=1).context_length == 3 * 192


def test_a_model_without_a_template(source: Path) -> None:
    write_tokenizer(source, chat_template=None)
    config, model, note = exported(source)
    assert config["use_template"] is False
    assert "jinja" not in model
    assert note == ""


def test_a_template_that_mnn_lacks_leaves_a_note(source: Path) -> None:
    template = "{% macro m(x) %}{{ x }}{% endmacro %}{{ m(messages[0]['content']) }}"
    write_tokenizer(source, chat_template=template)
    _, model, note = exported(source)
    assert note == model["jinja"]["note"] != ""
    chat = [{"role": "user", "content": "Hi"}]
    want = deepmnn.load(source / "model").encode(chat)
    assert deepmnn.load(source / "folder", threads=1).encode(chat) == want


def test_a_tokenizer_that_mnn_lacks_leaves_a_note(source: Path) -> None:
    change_tokenizer(source / "tokenizer.json")
    _, _, note = exported(source)
    assert "MNN's own tokenizer cannot be used" in note
    model = deepmnn.load(source / "folder", threads=1)
    assert model.logits(IDS).shape == (3, 271)
    assert model.encode("Hi") == deepmnn.load(source / "model").encode("Hi")
    shutil.rmtree(source / "folder")
    with pytest.raises(TokenizerError, match="decoder") as error:
        exported(source, needs_tokenizer=True)
    assert error.value.hint
    assert not (source / "folder").exists()


def change_tokenizer(path: Path) -> None:
    change_json(path, decoder={"type": "Metaspace", "replacement": "_", "prepend_scheme": "always"})


def test_without_a_tokenizer(source: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).unlink()
    config, model, note = exported(source)
    assert (config["use_template"], note) == (False, "")
    assert "jinja" not in model
    assert deepmnn.load(source / "folder", threads=1).logits(IDS).shape == (3, 271)
    shutil.rmtree(source / "folder")
    with pytest.raises(TokenizerError, match=r"no tokenizer.json.*a phone needs.*Convert it again"):
        exported(source, needs_tokenizer=True)
    assert not (source / "folder").exists()


def test_a_damaged_tokenizer_is_said(source: Path) -> None:
    (source / "tokenizer.json").write_text('{"any": "thing"}')
    with pytest.raises(TokenizerError, match=r"tokenizer.json: model is None"):
        exported(source)
    assert not (source / "folder").exists()


def test_a_tokenizer_of_a_larger_model(source: Path) -> None:
    write_config(source, num_hidden_layers=1, vocab_size=101)
    note = exported(source)[2]
    assert "vocab_size" in note or "id" in note
    with pytest.raises(TokenizerError, match="below the model's vocab_size, 101"):
        exported(source, needs_tokenizer=True)
