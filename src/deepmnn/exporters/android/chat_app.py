"""What MNN's LLM chat app for Android needs of a model folder.

The app (MNN 3.6.1, apps/Android/MnnLlmChat) lists every folder of /data/local/tmp/mnn_models that
has a config.json. It reads that file with fixed types, hands it to MNN's runtime, which merges
llm_config.json over it and opens the files that the two name; and it takes some folder names for
other kinds of models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepmnn.errors import ArtifactError
from deepmnn.source.json_file import is_plain_name, read_object

_HINT = "Export the model again."

_MISTAKEN = {
    "deepseek-r1": "a model of MNN's own export, whose prompt it writes itself",
    "qnn": "a model for Qualcomm's NPU",
    "stable-diffusion": "an image generator",
    "sana": "an image generator",
}
"""Parts of a folder's name that the app goes by, in small letters, and what it then expects."""

_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(
        (
            "llm_model",
            "llm_weight",
            "backend_type",
            "precision",
            "memory",
            "system_prompt",
            "sampler_type",
            "assistant_prompt_template",
            "penalty_sampler",
        ),
        (str,),
    ),
    **dict.fromkeys(("thread_num", "topK", "n_gram", "max_new_tokens"), (int,)),
    **dict.fromkeys(("use_mmap", "prompt_cache"), (bool,)),
    **dict.fromkeys(
        ("temperature", "topP", "minP", "tfsZ", "typical", "penalty", "ngram_factor"), (int, float)
    ),
    "mixed_samplers": (list,),
    "jinja": (dict,),
}
"""Fields of config.json that the app parses; it fails on another type, and drops other fields."""

_FILES = {
    "llm_config": "llm_config.json",
    "llm_model": "llm.mnn",
    "llm_weight": "llm.mnn.weight",
    "tokenizer_file": "tokenizer.txt",
    "embedding_file": "embeddings_bf16.bin",
}
"""Fields that name a file of the folder, and the names where they are missing."""


def phone_name(name: str) -> str:
    """A model's name as a folder's on the phone: what adb takes, and MNN's chat app as text.

    >>> phone_name("DeepSeek-R1-Distill-Qwen-1.5B")
    'R1-Distill-Qwen-1.5B'
    """
    plain = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).lstrip(".-")
    plain = re.sub("deepseek-(?=r1)", "", plain, flags=re.IGNORECASE)
    for part in _MISTAKEN:
        plain = re.sub(part, lambda m: m[0][0] + "_" + m[0][1:], plain, flags=re.IGNORECASE)
    return plain or "model"


def check_folder(folder: Path) -> None:
    """Checks that MNN's chat app loads `folder`, and runs it as the model that it is.

    Raises ArtifactError that says what the app would stumble over.
    """
    for part, kind in _MISTAKEN.items():
        if part in folder.name.lower():
            name = phone_name(folder.name)
            raise ArtifactError(
                f"the folder's name {folder.name!r}: MNN's chat app takes it for {kind}",
                f"a name without {part!r}",
                f"Rename it to {name}, for example.",
            )
    config = read_object(folder / "config.json", ArtifactError)
    _check_types(config)
    if "system_prompt" not in config:
        raise ArtifactError(
            "config.json has no system_prompt, and MNN's chat app puts in one of its own",
            "a text, which may be empty",
            _HINT,
        )
    model = read_object(_file(folder, config, "llm_config"), ArtifactError)
    _check_model(model)
    merged = {**config, **model}
    for field in _FILES:
        if field != "embedding_file" or "tie_embeddings" not in merged:
            _file(folder, merged, field)


def _check_types(config: Mapping[str, Any]) -> None:
    for field, types in _TYPES.items():
        value = config.get(field)
        wrong = isinstance(value, bool) and bool not in types
        if value is not None and (wrong or not isinstance(value, types)):
            names = " or ".join(kind.__name__ for kind in types)
            raise ArtifactError(f"config.json: {field} is {value!r}", names, _HINT)
    if not all(isinstance(name, str) for name in config.get("mixed_samplers") or ()):
        raise ArtifactError("config.json: mixed_samplers is no list of names", "texts", _HINT)


def _check_model(model: Mapping[str, Any]) -> None:
    for field in ("hidden_size", "layer_nums"):
        value = model.get(field)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ArtifactError(f"llm_config.json: {field} is {value!r}", "1 or more", _HINT)
    if model.get("attention_mask") != "float":
        found = model.get("attention_mask")
        raise ArtifactError(f"llm_config.json: attention_mask is {found!r}", "'float'", _HINT)
    for field in ("is_visual", "is_audio", "has_talker"):
        if model.get(field):
            raise ArtifactError(f"llm_config.json: {field} is set", "a text model", _HINT)


def _file(folder: Path, config: Mapping[str, Any], field: str) -> Path:
    name = config.get(field, _FILES[field])
    if not is_plain_name(name):
        raise ArtifactError(f"{field} is {name!r}", "the name of a file in the folder", _HINT)
    path = folder / str(name)
    if not path.is_file() or path.stat().st_size == 0:
        raise ArtifactError(f"{path} is missing or empty", f"the file that {field} names", _HINT)
    return path
