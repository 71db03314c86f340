"""What one request wants: how its tokens are drawn, and when its answer ends."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any

from deepmnn.errors import RequestError, argument, shown
from deepmnn.text.json_schema import checked_schema
from deepmnn.text.token_ids import integer

_LARGEST = 1e6
"""No temperature or penalty is larger, so that logits stay finite in float32."""

MOST_ANSWERS = 128
MOST_LOGPROBS = 20
"""The limits of OpenAI's API, for n and logprobs."""


@dataclass(frozen=True, repr=False)
class SamplingParams:
    """What one request wants. The defaults are greedy decoding until the model stops.

    Numbers of any library are taken (numpy's, too) and kept as Python's. A field's metadata holds
    its help text on the command line; those without one are no flags.

    Attributes:
        temperature: divides the logits; 0 always takes the most likely token.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches top_p.
        min_p: drop tokens less likely than min_p times the most likely one.
        seed: makes sampling reproducible; None draws a new one.
        max_tokens: the longest answer; None, or more than the context holds, is as long as the
            context allows.
        stop: text that ends the answer (and is not part of it).
        repetition_penalty: divides the positive logits of every token in prompt and answer so far,
            and multiplies the negative ones; > 1 makes them less likely (arXiv:1909.05858).
        presence_penalty: subtracted from the logits of tokens already in the answer.
        frequency_penalty: the same, times how often they are in it.
        ignore_eos: do not stop at the model's end-of-sequence tokens. An answer of a json_schema
            ends with its document nevertheless.
        n: answers to one prompt, which is prefilled once. Answer i of them, counted from 0, is
            drawn with seed + i.
        logprobs: for each token of the answer its log probability and those of the `logprobs` most
            likely tokens (`TokenLogprobs`); None gives none. They are the model's own, before
            penalties and what json_schema forbids.
        split_reasoning: takes the reasoning out of the text; False leaves it there, tags included,
            as a plain completion has it.
        json_schema: the answer, behind its reasoning, is a JSON document of this schema; True is
            any object. Takes the extra `serve`. What max_tokens cuts is no whole document.

    Penalties come before the temperature, the repetition penalty first. Raises RequestError when a
    value is out of range.
    """

    temperature: float = field(
        default=0.0, metadata={"help": "0 is greedy; default: the model's own."}
    )
    top_k: int = field(default=0, metadata={"help": "Keep the k most likely tokens."})
    top_p: float = field(
        default=1.0, metadata={"help": "Keep the most likely tokens up to this total probability."}
    )
    min_p: float = field(
        default=0.0, metadata={"help": "Drop tokens below this share of the top probability."}
    )
    seed: int | None = field(default=None, metadata={"help": "Makes sampling reproducible."})
    max_tokens: int | None = field(
        default=None,
        metadata={"help": "Longest answer in tokens; default: what the context holds."},
    )
    stop: str | tuple[str, ...] = field(
        default=(), metadata={"help": "Text that ends the answer; repeatable."}
    )
    repetition_penalty: float = field(
        default=1.0,
        metadata={"help": "Above 1: tokens of prompt and answer get less likely; 1 is none."},
    )
    presence_penalty: float = field(
        default=0.0,
        metadata={"help": "Subtracted from the logits of tokens that the answer has."},
    )
    frequency_penalty: float = field(
        default=0.0, metadata={"help": "The same, for each time that the answer has them."}
    )
    ignore_eos: bool = False
    n: int = 1
    logprobs: int | None = None
    split_reasoning: bool = True
    json_schema: Mapping[str, Any] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        self._number("temperature", 0.0, math.inf)
        self._number("top_p", 0.0, 1.0, open_low=True)
        self._number("min_p", 0.0, 1.0)
        self._number("repetition_penalty", 0.0, math.inf, open_low=True)
        self._number("presence_penalty", -math.inf, math.inf)
        self._number("frequency_penalty", -math.inf, math.inf)
        self._integer("top_k", 0)
        self._integer("n", 1, MOST_ANSWERS)
        for name, low, high in (
            ("seed", 0, None),
            ("max_tokens", 1, None),
            ("logprobs", 0, MOST_LOGPROBS),
        ):
            if getattr(self, name) is not None:
                self._integer(name, low, high)
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stop, tuple | list) or not all(isinstance(s, str) and s for s in stop):
            raise RequestError(
                argument("stop", f" is {shown(self.stop)}"), "one or several non-empty strings"
            )
        self._set("stop", tuple(stop))
        for name in ("ignore_eos", "split_reasoning"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(f"{name} is {shown(getattr(self, name))}", "True or False")
        if self.json_schema is not None:
            self._set("json_schema", checked_schema(self.json_schema, "json_schema"))

    def __repr__(self) -> str:
        """What differs from the defaults."""
        given = [
            f"{each.name}={getattr(self, each.name)!r}"
            for each in fields(self)
            if getattr(self, each.name) != each.default
        ]
        return f"SamplingParams({', '.join(given)})"

    @property
    def has_penalty(self) -> bool:
        """Whether the tokens seen so far change the logits."""
        penalties = (self.presence_penalty, self.frequency_penalty)
        return self.repetition_penalty != 1.0 or any(penalty != 0.0 for penalty in penalties)

    def _number(self, name: str, low: float, high: float, *, open_low: bool = False) -> None:
        """Makes a field a float. Raises RequestError unless it is in range."""
        value = getattr(self, name)
        low, high = max(low, -_LARGEST), min(high, _LARGEST)
        number = _float(value)
        if not low <= number <= high or (open_low and _float32(number) == low):
            bounds = f"{'(' if open_low else '['}{low:g}, {high:g}]"
            raise RequestError(
                argument(name, f" is {shown(value)}"), f"a finite number in {bounds}"
            )
        self._set(name, number)

    def _integer(self, name: str, low: int, high: int | None = None) -> None:
        """Makes a field an int. Raises RequestError unless it is in range."""
        value = getattr(self, name)
        number = integer(value)
        if number is None or number < low or (high is not None and number > high):
            bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
            raise RequestError(argument(name, f" is {shown(value)}"), f"an integer {bounds}")
        self._set(name, number)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # frozen for everybody else


def _float(value: object) -> float:
    """A number of any library as Python's; NaN, which is in no range, for all else."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _float32(value: float) -> float:
    """As the core holds it: the smallest numbers become 0."""
    return float(struct.unpack("f", struct.pack("f", value))[0])
