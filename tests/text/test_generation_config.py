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
