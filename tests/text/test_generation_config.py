"""What a model's files recommend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deepmnn import SamplingParams
from deepmnn.errors import ConfigError
from deepmnn.text.generation_config import GenerationConfig


@pytest.mark.parametrize(
    ("content", "eos_ids", "params"),
    [
        ({"eos_token_id": [3, 4]}, {3, 4}, SamplingParams()),
        ({"eos_token_id": 7, "temperature": 0.6}, {7}, SamplingParams()),
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.95},
            {1},
            SamplingParams(temperature=0.6, top_p=0.95),
        ),
        ({"do_sample": True}, {1}, SamplingParams(temperature=1.0)),
    ],
    ids=range(4),
)
def test_generation_config(
    tmp_path: Path, content: Any, eos_ids: set[int], params: SamplingParams
) -> None:
    found = read_generation_config(tmp_path, json.dumps(content))
    assert (found.eos_ids, found.params) == (eos_ids, params)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"eos_token_id": "x"}', '{"do_sample": true, "top_p": 7}']
)
def test_malformed_generation_config(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        read_generation_config(tmp_path, text)


def read_generation_config(directory: Path, text: str) -> GenerationConfig:
    (directory / "generation_config.json").write_text(text)
    return GenerationConfig.read(directory, {"eos_token_id": 1})


def sampling(directory: Path, **fields: Any) -> SamplingParams:
    (directory / "generation_config.json").write_text(json.dumps(fields))
    return GenerationConfig.read(directory, {}).params


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"temperature": 0.0}, {}),
        ({"temperature": 1}, {"temperature": 1.0}),
        ({"temperature": None}, {"temperature": 1.0}),
        ({"top_k": -1}, {"temperature": 1.0}),
        ({"top_k": 0}, {"temperature": 1.0}),
        ({"top_k": None, "top_p": None}, {"temperature": 1.0}),
        ({"top_k": 50.0}, {"temperature": 1.0, "top_k": 50}),
        ({"top_p": 1}, {"temperature": 1.0}),
        ({"top_p": 0.0, "temperature": 0.6}, {}),
        ({"top_p": 0}, {}),
        ({"min_p": None}, {"temperature": 1.0}),
        ({"repetition_penalty": 1}, {"temperature": 1.0}),
        ({"repetition_penalty": None}, {"temperature": 1.0}),
        ({"typical_p": 1.0, "max_length": 20, "num_beams": 4}, {"temperature": 1.0}),
    ],
    ids=str,
)
def test_odd_values_are_read_as_others_do(
    tmp_path: Path, fields: dict[str, Any], wanted: dict[str, Any]
) -> None:
    assert sampling(tmp_path, do_sample=True, **fields) == SamplingParams(
        **({"temperature": 0.0} | wanted)
    )


@pytest.mark.parametrize("do_sample", [False, None])
def test_greedy_reads_the_penalty_alone(tmp_path: Path, do_sample: bool | None) -> None:
    """As transformers does: a recipe for sampling stays unread, whatever is in it."""
    found = sampling(tmp_path, do_sample=do_sample, temperature=-3, top_p="x", top_k=0.5)
    assert found == SamplingParams()
    found = sampling(tmp_path, do_sample=do_sample, repetition_penalty=1.2)
    assert found == SamplingParams(repetition_penalty=1.2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("do_sample", value) for value in ("false", "true", 0, 1, [])),
        *(("temperature", value) for value in (-1, "0.6", True, 1e300)),
        *(("top_p", value) for value in (-0.1, 1.5, "1", False)),
        *(("top_k", value) for value in (-2, 0.5, "5", True)),
        *(("min_p", value) for value in (-1, 2)),
        *(("repetition_penalty", value) for value in (0, -1, "1")),
    ],
)
def test_values_without_a_sense_are_refused_by_name(tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"generation_config.json, {name} is"):
        sampling(tmp_path, **{"do_sample": True, name: value})


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{", b"\xff", b"null", b"[" * 100_000, b'{"top_p": NaN}']
)
def test_a_garbled_file_is_a_config_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "generation_config.json").write_bytes(data)
    with pytest.raises(ConfigError, match=r"generation_config\.json"):
        GenerationConfig.read(tmp_path, {})
