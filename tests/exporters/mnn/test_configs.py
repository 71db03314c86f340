"""config.json is the user's, within bounds; llm_config.json is as it was written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("MNN")

import deepmnn
from deepmnn.backends.mnn.options import MnnOptions
from deepmnn.errors import ArtifactError
from deepmnn.exporters.mnn.configs import SETTINGS
from deepmnn.exporters.mnn.export import export
from deepmnn.exporters.mnn.folder import MnnFolder
from exporters.folders import change_json, reseal_folder
from tiny_artifact import tiny_artifact

IDS = [5, 17, 200]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("configs")
    return export(tiny_artifact(home, quant="w8"), home / "folder").path


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "folder"))


def logits(folder: Path) -> Any:
    return deepmnn.load(folder, threads=1, mnn=MnnOptions(memory="normal")).logits(IDS)


USERS: dict[str, tuple[Any, ...]] = {
    "backend_type": ("cpu", "opencl", "metal", "npu"),
    "thread_num": (1, 8, 1024),
    "precision": ("low", "normal", "high"),
    "memory": ("low", "normal", "high"),
    "power": ("low", "high"),
    "use_mmap": (True, False),
    "system_prompt": ("", "Be brief. ü 世", "x" * 100_000),
    "use_template": (True, False),
    "max_new_tokens": (-1, 1, 100_000),
    "sampler_type": ("greedy", "mixed", "temperature", "topK", "topP", "min_p", "tfs", "penalty"),
    "mixed_samplers": ([], ["topK", "topP", "temperature"], ["penalty", "typical", "minP"]),
    "temperature": (0, 0.6, 1, 100.0),
    "topK": (-1, 0, 40),
    "top_k": (1,),
    "topP": (0.0, 0.9, 1),
    "top_p": (0.5,),
    "minP": (0.05,),
    "min_p": (1.0,),
    "tfsZ": (0.9,),
    "tfs_z": (1.0,),
    "typical": (0.95,),
    "penalty": (0.0, 1.05),
    "repetition_penalty": (2,),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (0.1,),
    "penalty_window": (0, 64),
    "n_gram": (1, 8),
    "ngram_factor": (1.0,),
    "penalty_sampler": ("greedy", "temperature"),
}
"""What MNN's documentation tells people to set."""


def test_what_a_user_may_set_changes_nothing_here(folder: Path) -> None:
    """deepmnn computes as its own options say, and samples itself."""
    assert USERS.keys() == SETTINGS.keys()
    want = logits(folder)
    pristine = (folder / "config.json").read_bytes()
    extremes: list[dict[str, Any]] = [{key: values[0] for key, values in USERS.items()}]
    extremes += [{key: values[-1] for key, values in USERS.items()}]
    for fields in extremes:
        change_json(folder / "config.json", **fields)
        np.testing.assert_array_equal(logits(folder), want)
        (folder / "config.json").write_bytes(pristine)
    for key, values in USERS.items():
        for value in values:
            change_json(folder / "config.json", **{key: value})
            MnnFolder.open(folder)
        (folder / "config.json").write_bytes(pristine)


WRONG: dict[str, Any] = {
    "backend_type": "gpu",
    "thread_num": 0,
    "precision": "bf16",
    "memory": 1,
    "use_mmap": "false",
    "system_prompt": ["x"],
    "use_template": 1,
    "max_new_tokens": 1 << 40,
    "sampler_type": "beam",
    "mixed_samplers": ["mixed"],
    "temperature": "0.6",
    "topK": 1.5,
    "topP": 1.1,
    "penalty": True,
    "n_gram": -1,
    "base_dir": "/",
    "speculative_type": "eagle",
    "eagle_model": "/etc/passwd",
    "draft_model": "x",
    "lookup_file": "../x",
    "lora": "x",
    "tmp_path": "/tmp",
    "prompt_cache": True,
    "kvcache_mmap": True,
    "prefix_cache_path": "/",
    "context_file": "x",
    "mllm": {},
    "is_visual": True,
    "visual_model": "x",
    "has_talker": True,
    "ple_embed_file": "x",
    "attention_mode": 10,
    "quant_qkv": 8,
    "logit_bias": {"1": 1},
    "banned_tokens": [1],
    "chunk_limits": [1],
    "hidden_size": 40,
    "jinja": {},
    "all_logits": True,
    "é\x1b[31m": 1,
}


@pytest.mark.parametrize("key", WRONG)
def test_other_values_and_other_keys_are_refused_in_words(folder: Path, key: str) -> None:
    change_json(folder / "config.json", **{key: WRONG[key]})
    with pytest.raises(ArtifactError, match=r"config\.json: '?") as error:
        deepmnn.load(folder)
    assert str(error.value).isprintable()
    assert "Take it out" in error.value.hint
    assert "thread_num" in error.value.hint


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 80),
        ("hidden_size", (1 << 31) - 1),
        ("layer_nums", 3),
        ("model_type", 3),
        ("attention_mask", "int"),
        ("attention_type", "mix"),
        ("is_mrope", True),
        ("max_position_embeddings", 0),
        ("jinja", "x"),
        ("jinja", {"chat_template": 3}),
        ("jinja", {"chat_template": "x", "tools": "y"}),
        ("jinja", {"context": {"a": {}}}),
        ("tie_embeddings", [0, 10, 10, 8, 64]),
        ("tie_embeddings", {}),
        ("key_value_shape", [1]),
        ("llm_weight", "llm.mnn.weight"),
        ("sliding_window", 1),
    ],
)
def test_llm_config_is_as_it_was_written(folder: Path, key: str, value: Any) -> None:
    change_json(folder / "llm_config.json", **{key: value})
    reseal_folder(folder)
    with pytest.raises(ArtifactError, match=key):
        MnnFolder.open(folder)


def test_the_embedding_table_is_where_it_is_said_to_be(folder: Path) -> None:
    pristine = json.loads((folder / "llm_config.json").read_text())["tie_embeddings"]
    for key, old in pristine.items():
        for new in (-1, 0, 1, 16, 1 << 63, 1 << 70, None, "8", 2.0, True, [8]):
            if new is None or (new == old and type(new) is type(old)):
                continue
            change_json(folder / "llm_config.json", tie_embeddings=pristine | {key: new})
            reseal_folder(folder)
            with pytest.raises(ArtifactError, match=r"tie_embeddings|embedding_file"):
                MnnFolder.open(folder)
    change_json(folder / "llm_config.json", tie_embeddings=pristine)
    table = folder / "embeddings_int8.bin"
    data = table.read_bytes()
    for wrong in (data[:-1], data + b"\0", b""):
        table.write_bytes(wrong)
        reseal_folder(folder)
        with pytest.raises(ArtifactError, match="embeddings of 40"):
            MnnFolder.open(folder)


def test_files_that_mnn_would_find_by_their_names(folder: Path) -> None:
    """context.json is read by MNN when it lies there; a template is parsed again and again."""
    want = logits(folder)
    (folder / "context.json").write_text("[" * 200_000)
    (folder / "deepmnn" / "context.json").write_text("{")
    fields = json.loads((folder / "llm_config.json").read_text())
    fields["jinja"] = {"chat_template": "{% for a in b %}" * 2000 + "{{ " + "(" * 20_000}
    (folder / "llm_config.json").write_text(json.dumps(fields))
    reseal_folder(folder)
    np.testing.assert_array_equal(logits(folder), want)
