"""What config.json, or a file beside it, says of a scheme."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from deepmnn.errors import CheckpointError, UnsupportedModelError
from deepmnn.source.codecs.checks import ORIGINAL
from deepmnn.source.json_file import read_object

BLOCKS = ("quantization_config", "compression_config", "quantization")
"""Where config.json speaks of a scheme: transformers, older compressed-tensors, MLX."""

FILES = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}
"""Files beside config.json that do it instead → their scheme."""

_LONG_AGO = {"q_group_size": "group_size", "w_bit": "bits", "method": "quant_method"}
"""Names of fields → those they have in config.json."""

_MOST = 1 << 31


def quantization_of(
    config: Mapping[str, Any], directories: Collection[Path] = ()
) -> Mapping[str, Any] | None:
    """What is said of a scheme; None where nothing is.

    Raises UnsupportedModelError when it is no object, CheckpointError for a file that is no JSON.
    """
    for name in BLOCKS:
        block = config.get(name)
        if block is not None and not isinstance(block, dict):
            raise UnsupportedModelError(
                f"{name} is {block!r:.80}", "an object", "Check config.json."
            )
        if block is not None:
            return _renamed(block)
    for file, scheme in FILES.items():
        for directory in directories:
            if (directory / file).is_file():
                found = read_object(directory / file, CheckpointError)
                return {"quant_method": scheme} | _renamed(found)
    return None


def described(config: Mapping[str, Any], directories: Collection[Path]) -> str:
    """What is known of the scheme of tensors that are no numbers: "" if nothing is."""
    for name in BLOCKS:
        if isinstance(block := config.get(name), dict):
            words = [str(block[key]) for key in ("quant_method", "format", "bits") if key in block]
            return f"config.json: {name} {' '.join(words)[:80]}"
    found = {file for folder in directories for file in FILES if (folder / file).is_file()}
    return ", ".join(f"{file}: {FILES[file]}" for file in FILES if file in found)


def _renamed(block: Mapping[str, Any]) -> dict[str, Any]:
    return {_LONG_AGO[k]: v for k, v in block.items() if k in _LONG_AGO} | dict(block)


def refuse(found: str, expected: str, hint: str = ORIGINAL) -> UnsupportedModelError:
    """The error for a variant of a scheme that is not read."""
    return UnsupportedModelError(found, expected, hint)


def text(settings: Mapping[str, Any], field: str) -> str | None:
    """A field in small letters; None when it is not there. Raises UnsupportedModelError."""
    value = settings.get(field)
    if value is not None and not isinstance(value, str):
        raise refuse(f"quantization_config.{field} is {value!r:.80}", "a text")
    return None if value is None else value.lower()


def integer(settings: Mapping[str, Any], field: str, allowed: Collection[int] = ()) -> int:
    """A positive field, one of those allowed if any are named. Raises UnsupportedModelError."""
    value = settings.get(field)
    if type(value) is not int or not 0 < value < _MOST or (allowed and value not in allowed):
        expected = ", ".join(map(str, allowed)) if allowed else "a positive size"
        raise refuse(f"quantization_config.{field} is {value!r:.80}", expected)
    return value


def group_columns(settings: Mapping[str, Any]) -> int | None:
    """group_size; None, where it is missing or -1, is the whole row. Raises as `integer`."""
    size = settings.get("group_size")
    return None if size in (None, -1) else integer(settings, "group_size")
