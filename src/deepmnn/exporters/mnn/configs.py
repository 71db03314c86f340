"""Checks MNN's two configuration files: every key is known here, with its type and range.

`config.json` is the user's to change, as MNN's documentation tells: how many threads, which
sampler, what the app may generate. `llm_config.json` is as `export` wrote it. MNN merges the second
over the first, trusts both, and has many more keys: some open other files, some crash it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepmnn.errors import ArtifactError
from deepmnn.exporters.mnn.weight_check import FP16_BYTES

Json = dict[str, Any]
_AGAIN = "Export the model again."
_MOST = (1 << 31) - 1
_MAX_TEXT = 1 << 20


@dataclass(frozen=True)
class Allowed:
    """What a value may be, and in words."""

    fits: Callable[[Any], bool]
    words: str


def _whole(low: int, high: int = _MOST) -> Allowed:
    return Allowed(lambda v: type(v) is int and low <= v <= high, f"{low} to {high}")


def _number(low: float, high: float) -> Allowed:
    return Allowed(lambda v: type(v) in (int, float) and low <= v <= high, f"{low:g} to {high:g}")


def _one_of(*values: str) -> Allowed:
    words = " or ".join(map(repr, values))
    return Allowed(lambda v: type(v) is str and v in values, words)


def _list_of(item: Allowed, most: int) -> Allowed:
    return Allowed(
        lambda v: type(v) is list and len(v) <= most and all(map(item.fits, v)),
        f"a list of {item.words}",
    )


_FLAG = Allowed(lambda v: type(v) is bool, "true or false")
_TEXT = Allowed(lambda v: _is_text(v), f"a text of at most {_MAX_TEXT} characters")
_LEVEL = _one_of("low", "normal", "high")
_STEPS = ("penalty", "temperature", "topK", "topP", "minP", "min_p", "tfs", "typical")

SETTINGS: dict[str, Allowed] = {
    "backend_type": _one_of("cpu", "opencl", "metal", "vulkan", "cuda", "npu", "auto"),
    "thread_num": _whole(1, 1024),
    "precision": _LEVEL,
    "memory": _LEVEL,
    "power": _LEVEL,
    "use_mmap": _FLAG,
    "system_prompt": _TEXT,
    "use_template": _FLAG,
    "max_new_tokens": _whole(-1),
    "sampler_type": _one_of("greedy", "mixed", *_STEPS),
    "mixed_samplers": _list_of(_one_of(*_STEPS), 32),
    "temperature": _number(0, 100),
    **dict.fromkeys(("topK", "top_k"), _whole(-1)),
    **dict.fromkeys(("topP", "top_p", "minP", "min_p", "tfsZ", "tfs_z", "typical"), _number(0, 1)),
    **dict.fromkeys(("penalty", "repetition_penalty"), _number(0, 100)),
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), _number(-100, 100)),
    "penalty_window": _whole(0),
    "n_gram": _whole(1, 1024),
    "ngram_factor": _number(0, 100),
    "penalty_sampler": _one_of("greedy", "temperature"),
}
"""Keys of config.json that a user may set. They are for MNN's apps: deepmnn computes as its own
options say, and samples itself."""

_JINJA: dict[str, Allowed] = {
    **dict.fromkeys(("chat_template", "bos", "eos", "note"), _TEXT),
    "context": Allowed(
        lambda v: type(v) is dict and all(w is None or _is_text(w) for w in v.values()),
        "texts",
    ),
}
_MODEL: dict[str, Allowed] = {
    "model_type": _TEXT,
    "hidden_size": _whole(1),
    "layer_nums": _whole(1),
    "attention_mask": _one_of("float"),
    "attention_type": _one_of("full"),
    "is_mrope": Allowed(lambda v: v is False, "false"),
    "max_position_embeddings": _whole(1),
}
_QUANTISED: dict[str, Allowed] = {
    "weight_offset": _whole(0, 1 << 62),
    "alpha_offset": _whole(0, 1 << 62),
    "alpha_size": _whole(1, 1 << 62),
    "quant_bit": Allowed(lambda v: type(v) is int and v in (4, 8), "4 or 8"),
    "quant_block": _whole(1),
    "alpha_dtype": _one_of("fp16"),
}
_HALF: dict[str, Allowed] = {
    "weight_offset": Allowed(lambda v: type(v) is int and v == 0, "0"),
    "quant_bit": Allowed(lambda v: type(v) is int and v == 16, "16"),
}


def check_settings(fields: Json, path: Path, files: Mapping[str, str]) -> None:
    """Raises ArtifactError unless config.json names these files (key → name), and else SETTINGS."""
    expected = {key: _one_of(name) for key, name in files.items()}
    optional = {key: allowed for key, allowed in SETTINGS.items() if key not in expected}
    hint = f"Take it out, or export the model again. What may be set: {', '.join(SETTINGS)}."
    _check(fields, path, expected, optional, hint)


def check_model(fields: Json, path: Path) -> None:
    """Raises ArtifactError unless llm_config.json has the keys that `export` writes, no others."""
    parts = {
        "jinja": Allowed(lambda v: type(v) is dict, "an object"),
        "tie_embeddings": Allowed(lambda v: type(v) is dict, "an object"),
    }
    _check(fields, path, _MODEL, parts, _AGAIN)
    if "jinja" in fields:
        _check(fields["jinja"], path, {}, _JINJA, _AGAIN, "jinja.")
    if "tie_embeddings" in fields:
        tied = fields["tie_embeddings"]
        known = _HALF if tied.get("quant_bit") == 16 else _QUANTISED
        _check(tied, path, known, {}, _AGAIN, "tie_embeddings.")


def check_embedding(model: Json, path: Path, rows: int, nbytes: int, tied: bool) -> None:
    """Raises ArtifactError unless a table of `rows` embeddings is where llm_config.json says.

    Args:
        model: llm_config.json, checked.
        path: that file.
        rows: ids that there are.
        nbytes: of the file that the table lies in.
        tied: whether that is the file of the weights; otherwise the table fills its own.
    """
    width, table = model["hidden_size"], model.get("tie_embeddings", {"quant_bit": 16})
    bits, start = table["quant_bit"], table.get("weight_offset", 0)
    codes, end = rows * width * bits // 8, start + rows * width * bits // 8
    right = width * bits % 8 == 0
    if "alpha_size" in table:
        blocks, rest = divmod(width, table["quant_block"])
        right &= rest == 0 and table["alpha_offset"] == start + codes
        right &= table["alpha_size"] == rows * blocks * FP16_BYTES
        end += table["alpha_size"]
    right &= (start > 0 and end <= nbytes) if tied else (start == 0 and end == nbytes)
    if not right:
        raise ArtifactError(
            f"{path}: tie_embeddings and hidden_size ask for {end} bytes of {nbytes}: "
            f"{table!r:.200}",
            f"a table of {rows} embeddings of {width}",
            _AGAIN,
        )


def _check(
    fields: Json,
    path: Path,
    required: Mapping[str, Allowed],
    optional: Mapping[str, Allowed],
    hint: str,
    prefix: str = "",
) -> None:
    for key in required:
        if key not in fields:
            raise ArtifactError(f"{path}: {prefix}{key} is missing", required[key].words, hint)
    for key, value in fields.items():
        allowed = required.get(key) or optional.get(key)
        if allowed is None:
            raise ArtifactError(
                f"{path}: {prefix + key!r:.80} is {value!r:.80}, a key that deepmnn does not know",
                "only keys that it has checked",
                hint,
            )
        if not allowed.fits(value):
            raise ArtifactError(f"{path}: {prefix}{key} is {value!r:.80}", allowed.words, hint)


def _is_text(value: object) -> bool:
    """Half of a surrogate pair, which JSON can write, is no text."""
    return isinstance(value, str) and len(value) <= _MAX_TEXT and not _has_surrogate(value)


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= char <= "\udfff" for char in text)
