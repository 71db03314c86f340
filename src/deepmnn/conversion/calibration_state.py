"""Where a calibration keeps what it has done, beside what is being written.

    .NAME.deepmnn-calibration/
        identity        of the plan and the samples; a state of others is thrown away
        *.codes         rounded tensors (calibrated.py)
        stage-0004/     what the next stage reads (spool.py)

It is locked while in use, and removed when the model is written.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Self

from deepmnn.artifact.directory import storage_errors
from deepmnn.artifact.manifest import FORMAT_VERSION
from deepmnn.backends.base import I32
from deepmnn.conversion.plan import Plan
from deepmnn.errors import StorageError

_IDENTITY = "identity"


class CalibrationState:
    """Context manager. Args: what is being written, from which plan, by which samples.

    Raises StorageError when it cannot be written, or another process calibrates for `out`.
    """

    def __init__(self, out: Path, plan: Plan, samples: Sequence[I32]) -> None:
        self.directory = out.parent / f".{out.name}.deepmnn-calibration"
        self._identity = _identity(plan, samples)
        self._lock = -1

    def __enter__(self) -> Self:
        with storage_errors(self.directory):
            self.directory.mkdir(exist_ok=True)
            self._lock = os.open(self.directory, os.O_RDONLY)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._lock)
                raise StorageError(
                    f"{self.directory} is in use",
                    "one calibration at a time for each output",
                    "Wait for the other process, or write elsewhere.",
                ) from None
            path = self.directory / _IDENTITY
            if not path.is_file() or path.read_text() != self._identity:
                self._clear()
                path.write_text(self._identity)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._lock)

    def discard(self) -> None:
        """The model is written: the state is not needed any more."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _clear(self) -> None:
        for entry in self.directory.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _identity(plan: Plan, samples: Sequence[I32]) -> str:
    source = plan.source
    digest = blake2b(digest_size=16)
    facts = [FORMAT_VERSION, plan.optimize_level, plan.recipe.to_json(), source.config]
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode("utf-8", "surrogateescape"))
    for name in source.names():
        digest.update(f"{name} {source.shape(name)}".encode("utf-8", "surrogateescape"))
        digest.update(source.sample(name))
    for sample in samples:
        digest.update(len(sample).to_bytes(8, "little") + sample.tobytes())
    return digest.hexdigest()
