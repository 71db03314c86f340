"""How a model wants to be sampled and when it stops: generation_config.json and config.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepmnn.errors import ConfigError, RequestError
from deepmnn.source.json_file import read_object
from deepmnn.text.sampling_params import SamplingParams

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class GenerationConfig:
    """eos_ids end an answer; params is what the model's makers recommend, greedy by default."""

    eos_ids: frozenset[int]
    params: SamplingParams

    @staticmethod
    def read(directory: Path, config: dict[str, Any]) -> GenerationConfig:
        """From generation_config.json if there is one, else from config.json (`config`).

        Raises ConfigError when a field has the wrong type or is out of range.
        """
        path = directory / "generation_config.json"
        found = read_object(path, ConfigError) if path.is_file() else {}
        eos = found.get("eos_token_id")
        eos_ids = _token_ids(config.get("eos_token_id") if eos is None else eos)
        values = {name: found[name] for name in _SAMPLING if found.get(name) is not None}
        if not found.get("do_sample"):
            return GenerationConfig(eos_ids, SamplingParams())
        try:
            params = SamplingParams(**{"temperature": 1.0, **values})
        except RequestError as error:
            raise ConfigError(f"in {path}, {error.found}", error.expected) from error
        return GenerationConfig(eos_ids, params)


def _token_ids(value: Any) -> frozenset[int]:
    """None, an id or a list of ids."""
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise ConfigError(f"eos_token_id is {value!r:.80}", "a token id or a list of token ids")
    return frozenset(ids)
