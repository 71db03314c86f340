"""How a model wants to be sampled and when it stops: generation_config.json and config.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepmnn.errors import ConfigError, RequestError, shown
from deepmnn.text.sampling_params import SamplingParams
from deepmnn.text.text_files import TextFiles

FILE = "generation_config.json"

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class GenerationConfig:
    """What the model's makers say of its answers.

    Attributes:
        eos_ids: eos_token_id of generation_config.json or, when it has none, of config.json: these
            tokens end an answer, as in transformers. See answer_end.py for the others.
        config_eos_ids: eos_token_id of config.json.
        params: what they recommend, greedy by default.
    """

    eos_ids: frozenset[int]
    config_eos_ids: frozenset[int]
    params: SamplingParams

    @staticmethod
    def read(source: str | Path | TextFiles, config: dict[str, Any]) -> GenerationConfig:
        """From generation_config.json if there is one, else from config.json (`config`).

        Values that others write for "off" are read so: a top_k of -1, 0 or null, a top_p of null.
        A top_p or temperature of 0 leaves the most likely token, and is greedy.

        Args:
            source: the model's directory, or those of its files that belong to it.
            config: the fields of config.json.

        Raises ConfigError when a field has the wrong type or is out of range.
        """
        files = source if isinstance(source, TextFiles) else TextFiles(source)
        found = files.fields(FILE, ConfigError)
        where = str(files.directory / FILE)
        own = _token_ids(found.get("eos_token_id"), where)
        fallback = _token_ids(config.get("eos_token_id"), "config.json")
        try:
            params = _sampling(found)
        except RequestError as error:
            raise ConfigError(f"in {where}, {error.found}", error.expected) from error
        return GenerationConfig(own or fallback, fallback, params)


def _sampling(found: dict[str, Any]) -> SamplingParams:
    """The sampling fields of generation_config.json. Raises RequestError."""
    values = {name: found[name] for name in _SAMPLING if found.get(name) is not None}
    do_sample = found.get("do_sample")
    if do_sample is not None and not isinstance(do_sample, bool):
        # bool("false") would sample.
        raise RequestError(f"do_sample is {shown(do_sample)}", "true or false")
    top_k = values.get("top_k")
    if isinstance(top_k, float) and top_k.is_integer():
        values["top_k"] = top_k = int(top_k)
    if top_k == -1:
        values["top_k"] = 0
    top_p = values.get("top_p")
    only_best = isinstance(top_p, int | float) and not isinstance(top_p, bool) and top_p == 0
    if not do_sample or only_best:
        # transformers penalises greedy answers, too.
        penalty = values.get("repetition_penalty", 1.0)
        return SamplingParams(repetition_penalty=penalty)
    return SamplingParams(**{"temperature": 1.0, **values})


def _token_ids(value: Any, where: str) -> frozenset[int]:
    """An id or a list of ids; null and negative numbers, such as -1, stand for none."""
    ids = [i for i in (value if isinstance(value, list) else [value]) if i is not None]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise ConfigError(
            f"eos_token_id in {where} is {shown(value)}", "a token id or a list of token ids"
        )
    return frozenset(i for i in ids if i >= 0)
