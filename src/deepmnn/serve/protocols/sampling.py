"""How tokens are to be drawn, as OpenAI's APIs and vLLM name it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from deepmnn.errors import RequestError, shown
from deepmnn.serve.body import Body
from deepmnn.text.sampling_params import MOST_ANSWERS, SamplingParams

MOST_STOPS = 16

StopStrings = Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=MOST_STOPS)]


class Sampling(Body):
    """How tokens are drawn, with OpenAI's names and those that vLLM adds.

    What a client does not give is what the model's generation_config.json recommends.
    """

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=1 << 31)
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    seed: int | None = Field(None, ge=-1, lt=1 << 64)
    stop: Annotated[str, Field(min_length=1)] | StopStrings | None = None
    ignore_eos: bool | None = None
    n: int | None = Field(None, ge=1, le=MOST_ANSWERS)
    logit_bias: dict[str, float] | None = None
    guided_json: dict[str, Any] | None = Field(None, description="vLLM's: as response_format.")
    structured_outputs: dict[str, Any] | None = Field(None, description="vLLM's: `json` only.")
    guided_choice: Any = Field(None, description="Refused.")
    guided_regex: Any = Field(None, description="Refused.")
    guided_grammar: Any = Field(None, description="Refused.")
    grammar: Any = Field(None, description="Refused.")
    stop_token_ids: list[Any] | None = Field(None, description="Refused.")
    min_tokens: int | None = Field(None, ge=0, description="At most 0.")
    continue_final_message: bool | None = Field(None, description="At most false.")

    def sampling(self, recommended: SamplingParams, **more: Any) -> SamplingParams:
        """What the fields ask for, and `more`, which are fields of SamplingParams.

        Raises RequestError.
        """
        if self.logit_bias:
            raise RequestError(
                f"logit_bias is {shown(self.logit_bias)}",
                "none: no token is made likelier by itself",
                "Leave it out, or use response_format to have a form kept.",
            )
        for name in _REFUSED:
            if value := getattr(self, name):
                raise RequestError(
                    f"{name} is {shown(value)}",
                    "none: this server does not do that",
                    "Leave it out, or use response_format with a JSON schema.",
                )
        names = (*_SAMPLED, "seed", "stop", "ignore_eos", "n")
        more["json_schema"] = more.get("json_schema") or self._guided()
        return sampled(recommended, **{name: getattr(self, name) for name in names}, **more)

    def _guided(self) -> Any:
        """The JSON schema in vLLM's fields. Raises RequestError for its other constraints."""
        others = {k: v for k, v in (self.structured_outputs or {}).items() if v is not None}
        schema = others.pop("json", None)
        if others:
            raise RequestError(f"structured_outputs has {shown([*others])}", "json with a schema")
        return self.guided_json or schema


_REFUSED = (
    "guided_choice",
    "guided_regex",
    "guided_grammar",
    "grammar",
    "stop_token_ids",
    "min_tokens",
    "continue_final_message",
)
"""What would change the answer, and is not there: better no answer than another one."""

_SAMPLED = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)


def sampled(recommended: SamplingParams, **given: Any) -> SamplingParams:
    """What the model recommends, with what a client gives; None is not given.

    Values that other servers read as "off" are read so: a top_k or seed of -1. A top_p of 0 leaves
    the most likely token. Raises RequestError.
    """
    wanted = {name: value for name, value in given.items() if value is not None}
    if wanted.get("top_k") == -1:
        wanted["top_k"] = 0
    if wanted.get("seed") == -1:
        del wanted["seed"]
    if wanted.get("top_p") == 0:
        wanted |= {"temperature": 0.0, "top_p": 1.0}
    if isinstance(wanted.get("stop"), list):
        wanted["stop"] = tuple(wanted["stop"])
    return replace(recommended, **wanted)


def joined(texts: Sequence[str]) -> str:
    """Several texts of one speaker as one."""
    return "\n\n".join(text for text in texts if text)
