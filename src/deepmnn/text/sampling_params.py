"""What one request wants: how its tokens are drawn, and when its answer ends."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field

from deepmnn.errors import RequestError, argument

_LARGEST = 1e6
"""No temperature or penalty is larger, so that logits stay finite in float32."""


@dataclass(frozen=True)
class SamplingParams:
    """What one request wants. The defaults are greedy decoding until the model stops.

    A field's metadata holds its help text on the command line; those without one are no flags.

    Attributes:
        temperature: divides the logits; 0 always takes the most likely token.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches top_p.
        min_p: drop tokens less likely than min_p times the most likely one.
        seed: makes sampling reproducible; None draws a new one.
        max_tokens: the longest answer; None is as long as the context allows.
        stop: text that ends the answer (and is not part of it).
        repetition_penalty: > 1 makes every token seen so far less likely (arXiv:1909.05858).
        presence_penalty: subtracted from the logits of tokens already in the answer.
        frequency_penalty: the same, times how often they are in it.
        ignore_eos: do not stop at the model's end-of-sequence tokens.

    Raises RequestError when a value is out of range.
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
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _number("temperature", self.temperature, 0.0, math.inf)
        _number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("repetition_penalty", self.repetition_penalty, 0.0, math.inf, open_low=True)
        _number("presence_penalty", self.presence_penalty, -math.inf, math.inf)
        _number("frequency_penalty", self.frequency_penalty, -math.inf, math.inf)
        _integer("top_k", self.top_k, 0)
        if self.seed is not None:
            _integer("seed", self.seed, 0)
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1)
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stop, tuple | list) or not all(isinstance(s, str) and s for s in stop):
            raise RequestError(
                argument("stop", f" is {self.stop!r:.80}"), "one or several non-empty strings"
            )
        object.__setattr__(self, "stop", tuple(stop))

    @property
    def has_penalty(self) -> bool:
        """Whether the tokens seen so far change the logits."""
        penalties = (self.presence_penalty, self.frequency_penalty)
        return self.repetition_penalty != 1.0 or any(penalty != 0.0 for penalty in penalties)


def _number(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    low, high = max(low, -_LARGEST), min(high, _LARGEST)
    valid = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    if not valid or (open_low and _float32(value) == low):
        bounds = f"{'(' if open_low else '['}{low:g}, {high:g}]"
        raise RequestError(argument(name, f" is {value!r:.80}"), f"a finite number in {bounds}")


def _float32(value: float) -> float:
    """As the core holds it: the smallest numbers become 0."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


def _integer(name: str, value: int, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise RequestError(argument(name, f" is {value!r:.80}"), f"an integer of at least {low}")
