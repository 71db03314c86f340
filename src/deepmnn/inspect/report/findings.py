"""What was found out about a model, besides what it is."""

from __future__ import annotations

from dataclasses import dataclass

from deepmnn.conversion.report.facts import WeightFacts
from deepmnn.inspect.report.recorded import Recorded
from deepmnn.measure.benchmark import Report as Speeds
from deepmnn.measure.judge import Judgement


@dataclass(frozen=True)
class Judged:
    """The model on texts.

    Attributes:
        texts: what was read.
        reference: what it was compared with; "" for nothing.
        is_language: whether the texts are ones; else token ids at random, of which no model can
            expect anything.
    """

    judgement: Judgement
    texts: str
    reference: str
    is_language: bool = True


@dataclass(frozen=True)
class Findings:
    """All of it may be missing.

    Attributes:
        recorded: what its conversion wrote down.
        errors: its weights with the errors of rounding, as they were measured.
        errors_from: what they were measured against.
        judged: on texts.
        speeds: on this machine.
        memory: bytes of this machine.
    """

    recorded: Recorded | None = None
    errors: tuple[WeightFacts, ...] = ()
    errors_from: str = ""
    judged: Judged | None = None
    speeds: Speeds | None = None
    memory: int | None = None
