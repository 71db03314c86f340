"""A checkpoint on its way to MNN's codes: what is left for `export` is to write them.

The model is rotated, where it can be (quant/rotated_source.py): its activations are rounded to 8
bits as it runs, its weights now, and neither has large numbers in few columns any more. Codes of 4
bits are chosen by a calibration (conversion/calibrate.py), codes of 8 are good enough to nearest.
`export` gets an artifact of the float32 numbers that the codes stand for, and finds the same codes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from deepmnn.artifact.directory import storage_errors
from deepmnn.artifact.target import real_path
from deepmnn.artifact.workspace import Workspace
from deepmnn.conversion.calibrate import Calibration
from deepmnn.conversion.calibration_set import CalibrationSet, has_tokenizer
from deepmnn.conversion.carry_out import carry_out, choose
from deepmnn.conversion.convert import plan_conversion
from deepmnn.conversion.plan import Plan, plan
from deepmnn.conversion.write import Progress
from deepmnn.errors import RequestError, Words
from deepmnn.exporters.mnn.weights import LEAST_BLOCK, Storing
from deepmnn.graph.ir import Weight
from deepmnn.graph.levels import MAX_LEVEL
from deepmnn.quant.blocks import BITS, Blocks
from deepmnn.quant.rotated_source import RotatedSource, is_rotatable
from deepmnn.source.random import RandomSource
from deepmnn.text.samples import COUNT

_FLOATS = "fp32"


@dataclass(frozen=True)
class Rounded:
    """What `export` is to read.

    Attributes:
        path: an artifact.
        plan: what it was written by.
        calibration: what its matrices were rounded by; None: `export` rounds each to nearest.
    """

    path: Path
    plan: Plan
    calibration: Calibration | None


@contextmanager
def rounded(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    bits: int,
    block_size: int | None = None,
    *,
    optimize_level: int = MAX_LEVEL,
    config: str | os.PathLike[str] | None = None,
    calibration: str | os.PathLike[str] | bool | None = None,
    samples: int = COUNT,
    progress: Progress | None = None,
) -> Iterator[Rounded]:
    """A checkpoint for an `export` with these bits and block size; gone when that is done.

    Takes four bytes of disk for each weight meanwhile, in a temporary directory beside the target.

    Args:
        source, optimize_level, config: as `convert` has them.
        target: what `export` is going to write.
        bits, block_size: as `export` has them.
        calibration: a file, True or False, as `convert` has it. None: the set that comes with
            deepmnn, for codes of 4 bits of a checkpoint with a tokenizer.
        samples: of the calibration, at most.
        progress: called after every step.

    Raises as `convert`, RequestError for a calibration of 8 bits.
    """
    storing = Storing(bits=bits, block=block_size)
    made = plan_conversion(source, _FLOATS, optimize_level, config=config, progress=progress)
    if is_rotatable(made.naive):
        made = plan(RotatedSource(made.source), made.recipe, optimize_level)
    chosen = _choose(made, bits, calibration, samples)
    rounder = Blocks(lambda weight: _block_size(storing, weight))
    place = real_path(target)
    with ExitStack() as stack:
        with storage_errors(place):
            out = stack.enter_context(Workspace(place)).new / "artifact"
        done = carry_out(made, out, chosen, progress=progress, rounder=rounder, state=place)
        yield Rounded(done.path, made, done.calibration)


def _choose(
    made: Plan, bits: int, wanted: str | os.PathLike[str] | bool | None, samples: int
) -> CalibrationSet | None:
    few = bits == BITS
    if wanted is None:
        drawn = isinstance(made.source, RandomSource)
        wanted = few and not drawn and has_tokenizer(made.source)
    elif wanted is not False and not few:
        raise RequestError(
            f"a calibration of codes of {bits} bits",
            Words(f"bits={BITS}", f"{BITS} bits"),
            "Codes of 8 bits are rounded to nearest.",
        )
    return choose(made, wanted, samples)


def _block_size(storing: Storing, weight: Weight) -> int:
    """Of a weight that gets codes of 4 bits; 0: it does not, or it is looked up."""
    if storing.bits_of(weight) != BITS:
        return 0
    size = storing.block_size(weight)
    return size if size >= LEAST_BLOCK else 0
