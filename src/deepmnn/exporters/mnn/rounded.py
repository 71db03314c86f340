"""A checkpoint on its way to MNN's codes: what is left for `export` is to write them.

The model is rotated, where it can be (quant/rotated_source.py): its activations are rounded to 8
bits as it runs, its weights now, and neither has large numbers in few columns any more. Samples
show how large the columns are that no rotation reaches, and smooth them (smoothed_source.py).
Codes of 4 bits are chosen by a calibration (conversion/calibrate.py), codes of 8 are good enough to
nearest. `export` gets an artifact of the float32 numbers that the codes stand for, and finds the
same codes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from deepmnn.artifact.directory import storage_errors
from deepmnn.artifact.target import real_path
from deepmnn.artifact.workspace import Workspace
from deepmnn.conversion.activations import column_sizes
from deepmnn.conversion.calibration_set import CalibrationSet, has_tokenizer
from deepmnn.conversion.carry_out import Converted, carry_out, choose
from deepmnn.conversion.convert import plan_conversion
from deepmnn.conversion.plan import Plan, plan
from deepmnn.conversion.write import Progress
from deepmnn.exporters.mnn.weights import LEAST_BLOCK, Storing
from deepmnn.formats import F32
from deepmnn.graph.ir import Weight
from deepmnn.graph.levels import MAX_LEVEL
from deepmnn.quant.blocks import BITS, Blocks
from deepmnn.quant.rotated_source import RotatedSource, is_rotatable
from deepmnn.quant.smoothed_source import DOWN, SmoothedSource
from deepmnn.source.random import RandomSource
from deepmnn.text.samples import COUNT

_FLOATS = "fp32"
_SMOOTHING = 32
"""Samples that tell the sizes of columns."""


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
) -> Iterator[Converted]:
    """A checkpoint for an `export` with these bits and block size; gone when that is done.

    Its plan is of the model before codes of 4 bits were chosen.

    Takes four bytes of disk for each weight meanwhile, in a temporary directory beside the target.

    Args:
        source, optimize_level, config: as `convert` has them.
        target: what `export` is going to write.
        bits, block_size: as `export` has them.
        calibration: a file, True or False, as `convert` has it. None: the set that comes with
            deepmnn, for a checkpoint with a tokenizer.
        samples: of the calibration, at most.
        progress: called after every step.

    Raises as `convert`.
    """
    storing = Storing(bits=bits, block=block_size)
    made = plan_conversion(source, _FLOATS, optimize_level, config=config, progress=progress)
    chosen = _choose(made, calibration, samples)
    if is_rotatable(made.naive):
        made = plan(RotatedSource(made.source), made.recipe, optimize_level)
    rounder = Blocks(lambda weight: _block_size(storing, weight))
    place = real_path(target)
    with ExitStack() as stack:
        with storage_errors(place):
            folder = stack.enter_context(Workspace(place)).new
        if chosen is not None:
            smoothed = SmoothedSource(made.source, _sizes(made, chosen, folder, progress))
            made = plan(smoothed, made.recipe, optimize_level)
        gptq = chosen if rounder.formats(made.weights) else None
        out = folder / "artifact"
        done = carry_out(made, out, gptq, progress=progress, rounder=rounder, state=place)
        yield replace(done, plan=made)


def _choose(
    made: Plan, wanted: str | os.PathLike[str] | bool | None, samples: int
) -> CalibrationSet | None:
    if wanted is None:
        wanted = not isinstance(made.source, RandomSource) and has_tokenizer(made.source)
    return choose(made, wanted, samples)


def _sizes(
    made: Plan, chosen: CalibrationSet, folder: Path, progress: Progress | None
) -> dict[str, F32]:
    """Of what down-projections read: a few samples tell."""
    samples = chosen.ids(made.source)[:_SMOOTHING]
    with TemporaryDirectory(dir=folder) as directory:
        return column_sizes(made, f".{DOWN}.weight", samples, Path(directory), progress)


def _block_size(storing: Storing, weight: Weight) -> int:
    """Of a weight that gets codes of 4 bits; 0: it does not, or it is looked up."""
    if storing.bits_of(weight) != BITS:
        return 0
    size = storing.block_size(weight)
    return size if size >= LEAST_BLOCK else 0
