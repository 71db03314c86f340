"""What MNN's chat app would stumble over is said before it does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepmnn.errors import ArtifactError
from deepmnn.exporters.android import check_folder, phone_name

CONFIG: dict[str, Any] = {
    "llm_model": "llm.mnn",
    "llm_weight": "llm.mnn.weight",
    "tokenizer_file": "tokenizer.mtok",
    "backend_type": "cpu",
    "thread_num": 4,
    "precision": "low",
    "memory": "low",
    "system_prompt": "",
    "sampler_type": "mixed",
    "mixed_samplers": ["topK", "topP", "temperature"],
    "temperature": 0.6,
    "topP": 1,
    "a_field_of_mnn_alone": {"x": 1},
}
MODEL = {"hidden_size": 64, "layer_nums": 2, "attention_mask": "float", "jinja": {}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "R1-Distill-Qwen-1.5B"
    folder.mkdir()
    for name in ("llm.mnn", "llm.mnn.weight", "tokenizer.mtok", "embeddings_bf16.bin"):
        (folder / name).write_bytes(b"x")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "llm_config.json").write_text(json.dumps(MODEL))
    return folder


def change(folder: Path, name: str, **fields: Any) -> None:
    """Sets fields of a JSON file; None takes one out."""
    kept = json.loads((folder / name).read_text()) | fields
    kept = {key: value for key, value in kept.items() if value is not None}
    (folder / name).write_text(json.dumps(kept))


def test_an_exported_folder_passes(folder: Path) -> None:
    check_folder(folder)
    change(folder, "llm_config.json", tie_embeddings=[0, 1, 2, 8, 64])
    (folder / "embeddings_bf16.bin").unlink()  # lies in the weights then
    check_folder(folder)


Damage = Callable[[Path], object]
DAMAGES: dict[str, tuple[str, Damage]] = {
    "no config": ("config.json is missing", lambda f: (f / "config.json").unlink()),
    "no object": ("holds a JSON list", lambda f: (f / "config.json").write_text("[]")),
    "cut": ("not valid JSON", lambda f: (f / "config.json").write_text('{"a')),
    "threads": (
        "thread_num is '4'; expected int",
        lambda f: change(f, "config.json", thread_num="4"),
    ),
    "bool": ("thread_num is True", lambda f: change(f, "config.json", thread_num=True)),
    "topP": ("topP is '1'", lambda f: change(f, "config.json", topP="1")),
    "samplers": ("mixed_samplers", lambda f: change(f, "config.json", mixed_samplers=[1])),
    "jinja": ("jinja is 'x'", lambda f: change(f, "config.json", jinja="x")),
    "prompt": ("no system_prompt", lambda f: change(f, "config.json", system_prompt=None)),
    "no model config": ("llm_config.json is miss", lambda f: (f / "llm_config.json").unlink()),
    "hidden": ("hidden_size is 0", lambda f: change(f, "llm_config.json", hidden_size=0)),
    "layers": ("layer_nums is None", lambda f: change(f, "llm_config.json", layer_nums=None)),
    "mask": ("mask is 'int'", lambda f: change(f, "llm_config.json", attention_mask="int")),
    "visual": ("is_visual is set", lambda f: change(f, "llm_config.json", is_visual=True)),
    "weights": ("weight is missing or", lambda f: (f / "llm.mnn.weight").write_bytes(b"")),
    "tokenizer": (
        "tokenizer.txt is missing",
        lambda f: change(f, "config.json", tokenizer_file=None),
    ),
    "embeddings": ("bf16.bin is missing", lambda f: (f / "embeddings_bf16.bin").unlink()),
    "elsewhere": ("'../llm.mnn'", lambda f: change(f, "config.json", llm_model="../llm.mnn")),
    "overridden": ("x.mnn is missing", lambda f: change(f, "llm_config.json", llm_model="x.mnn")),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_named(folder: Path, name: str) -> None:
    message, damage = DAMAGES[name]
    damage(folder)
    with pytest.raises(ArtifactError) as error:
        check_folder(folder)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "on_the_phone"),
    [
        ("DeepSeek-V2-Lite-Chat", "DeepSeek-V2-Lite-Chat"),
        ("DeepSeek-R1-Distill-Qwen-1.5B", "R1-Distill-Qwen-1.5B"),
        ("DeepSeek-R1-0528-Qwen3-8B", "R1-0528-Qwen3-8B"),
        ("deepseek-r1", "r1"),
        ("deepseek-deepseek-r1", "d_eepseek-r1"),
        ("my model (v2)", "my-model-v2-"),
        ("../../Sana", "S_ana"),
        ("qnn-ä", "q_nn--"),
        ("世", "model"),
    ],
)
def test_names_on_the_phone(folder: Path, name: str, on_the_phone: str) -> None:
    assert phone_name(name) == on_the_phone
    check_folder(folder.rename(folder.with_name(on_the_phone)))


@pytest.mark.parametrize("name", ["DeepSeek-R1-Distill-Qwen-7B", "x-QNN", "Sana-x"])
def test_names_that_the_app_mistakes_are_refused(folder: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match=f"Rename it to {phone_name(name)}, for example"):
        check_folder(folder.rename(folder.with_name(name)))
