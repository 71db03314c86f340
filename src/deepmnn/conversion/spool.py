"""What one stage of a model gives and the next one reads, on disk: a calibration's state.

    stage-0004/              all that stage 4 reads; complete, because it was renamed when it was
        exact-0.f32, ...     values [tokens, width] of all samples, one after another, raw float32
        rounded-0.f32, ...   the same in the model whose earlier layers are rounded
    stage-0005.part/         being written

A calibration that was stopped goes on with the last complete stage.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from deepmnn.artifact.directory import storage_errors
from deepmnn.formats import F32

Stream = Literal["exact", "rounded"]
"""Which model gave a value: the exact one, or the one whose layers so far are rounded."""


class Spool:
    """The values between stages, in `directory`, which exists.

    widths: value → elements of a row.
    """

    def __init__(self, directory: Path, widths: Mapping[str, int]) -> None:
        self.directory = directory
        self._widths = widths
        self._order = {name: index for index, name in enumerate(widths)}

    def last(self) -> int:
        """The last stage whose inputs are complete; stage 0 reads nothing of ours."""
        names = [path.name for path in self.directory.glob("stage-????")]
        return max((int(name[-4:]) for name in names), default=0)

    def read(
        self, stage: int, stream: Stream, names: Sequence[str], first: int, rows: int
    ) -> dict[str, F32]:
        """Rows first .. first + rows of values that a stage reads, or that are appended for it."""
        directory = self._path(stage) if self._path(stage).is_dir() else self._part(stage)
        found = {}
        for name in names:
            width = self._widths[name]
            with storage_errors(directory, "read"):
                data = np.fromfile(
                    self._file(directory, stream, name),
                    np.float32,
                    rows * width,
                    offset=4 * first * width,
                )
            found[name] = data.reshape(rows, width)
        return found

    def begin(self, stage: int) -> None:
        """Starts to write what a stage will read."""
        shutil.rmtree(self._part(stage), ignore_errors=True)
        with storage_errors(self._part(stage)):
            self._part(stage).mkdir()

    def append(self, stage: int, stream: Stream, values: Mapping[str, F32]) -> None:
        """Appends the rows of some samples; a value that no stage reads is left out."""
        for name in self._widths.keys() & values.keys():
            value = values[name]
            with (
                storage_errors(self._part(stage)),
                open(self._file(self._part(stage), stream, name), "ab") as file,
            ):
                np.ascontiguousarray(value, np.float32).tofile(file)

    def commit(self, stage: int) -> None:
        """What a stage reads is complete: what the stage before it read is not needed any more."""
        with storage_errors(self._path(stage)):
            self._part(stage).rename(self._path(stage))
            shutil.rmtree(self._path(stage - 1), ignore_errors=True)

    def _file(self, directory: Path, stream: Stream, name: str) -> Path:
        return directory / f"{stream}-{self._order[name]}.f32"

    def _path(self, stage: int) -> Path:
        return self.directory / f"stage-{stage:04d}"

    def _part(self, stage: int) -> Path:
        return self.directory / f"stage-{stage:04d}.part"
