"""What report.json of a converted model tells, which the conversion wrote beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepmnn.artifact.manifest import AGAIN
from deepmnn.artifact.reader import Artifact
from deepmnn.conversion.report.facts import (
    FORMAT_VERSION,
    CalibrationFacts,
    Judged,
    WeightFacts,
)
from deepmnn.conversion.report.recorder import JSON
from deepmnn.errors import ArtifactError, RequestError
from deepmnn.formats import named
from deepmnn.source.json_file import read_object


@dataclass(frozen=True)
class Recorded:
    """What a conversion knew when it was done.

    Attributes:
        source: the name of the checkpoint's directory or file.
        weights: as they are stored, with the errors of rounding.
        calibration, judged: None where there was none.
        source_nbytes: of the checkpoint's tensors.
    """

    source: str
    source_nbytes: int
    weights: tuple[WeightFacts, ...]
    calibration: CalibrationFacts | None
    judged: Judged | None


def recorded(artifact: Artifact) -> Recorded | None:
    """What is written in a converted model; None where it has no report, or one of another version.

    Raises ArtifactError for a damaged one.
    """
    path = artifact.path / JSON
    if JSON not in artifact.manifest["files"]:
        return None
    fields = read_object(path, ArtifactError)
    if fields.get("format_version") != FORMAT_VERSION:
        return None
    try:
        calibration, judged = fields["calibration"], fields["judged"]
        return Recorded(
            _text(fields["source"]),
            int(_number(fields["source_nbytes"])),
            tuple(_weight(weight) for weight in fields["weights"]),
            None if calibration is None else _calibration(calibration),
            None if judged is None else _judged(judged),
        )
    except (KeyError, TypeError, ValueError, OverflowError, RequestError) as fault:
        raise ArtifactError(f"{path} is damaged: {fault!r:.100}", "", AGAIN) from None


def _weight(fields: Mapping[str, Any]) -> WeightFacts:
    layer, error = fields["layer"], fields["error"]
    return WeightFacts(
        name=_text(fields["name"]),
        role=_text(fields["role"]),
        format=named(_text(fields["format"])).name,
        layer=None if layer is None else int(_number(layer)),
        shape=tuple(int(_number(size)) for size in fields["shape"]),
        nbytes=int(_number(fields["nbytes"])),
        origin=_text(fields["origin"]),
        error=None if error is None else _number(error),
    )


def _calibration(fields: Mapping[str, Any]) -> CalibrationFacts:
    samples, tokens, tensors = (
        int(_number(fields[name])) for name in ("samples", "tokens", "tensors")
    )
    return CalibrationFacts(samples, tokens, tensors, tuple(map(_text, fields["scarce"])))


def _judged(fields: Mapping[str, Any]) -> Judged:
    kl, kl_99, same = (_number(fields[name]) for name in ("kl", "kl_99", "same_first_choice"))
    return Judged(int(_number(fields["tokens"])), kl, kl_99, same)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value


def _number(value: object) -> float:
    """null is what is not finite."""
    if value is None:
        return math.inf
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ValueError(f"{value!r:.40} is no figure")
    return value
