"""Where a calibration keeps what it has done, beside what is being written.

    .NAME.deepmnn-calibration/
        identity        of the plan and the samples; a state of others is thrown away
        *.codes         rounded tensors (calibrated.py)
        stage-0004/     what the next stage reads (spool.py)

It is locked while in use, and removed when the model is written or its numbers are refused.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

from deepmnn.artifact.directory import storage_errors
from deepmnn.artifact.manifest import FORMAT_VERSION
from deepmnn.backends.base import I32
from deepmnn.conversion.plan import Plan
from deepmnn.errors import CheckpointError, RequestError, StorageError

_IDENTITY = "identity"
_VERSION = 2
"""Of how a calibration goes: a state of another one is thrown away, too."""


@contextmanager
def calibration_state(
    out: Path, plan: Plan, samples: Sequence[I32], *others: object
) -> Iterator[Path]:
    """The directory, for what is written to `out` by a plan and samples; gone when that is done.

    others: what else the state depends on, with a `repr` that says all.

    Raises StorageError when it cannot be written, or another process calibrates for `out`.
    """
    directory = out.parent / f".{out.name}.deepmnn-calibration"
    with storage_errors(directory):
        directory.mkdir(exist_ok=True)
        lock = os.open(directory, os.O_RDONLY)
    try:
        _lock(lock, directory)
        _adopt(directory, _identity(plan, samples, others))
        yield directory
        shutil.rmtree(directory, ignore_errors=True)
    except CheckpointError:  # with this state it would be met again
        shutil.rmtree(directory, ignore_errors=True)
        raise
    except RequestError:  # what was found serves another budget
        if os.listdir(directory) == [_IDENTITY]:
            shutil.rmtree(directory, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _lock(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StorageError(
            f"{directory} is in use",
            "one calibration at a time for each output",
            "Wait for the other process, or write elsewhere.",
        ) from None


def _adopt(directory: Path, identity: str) -> None:
    """Throws away what is there, unless it is of the same plan and samples."""
    path = directory / _IDENTITY
    with storage_errors(directory):
        if path.is_file() and path.read_text() == identity:
            return
        for entry in directory.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        path.write_text(identity)


def _identity(plan: Plan, samples: Sequence[I32], others: Sequence[object]) -> str:
    source = plan.source
    digest = blake2b(digest_size=16)
    recipe = plan.recipe.to_json()
    facts = [_VERSION, FORMAT_VERSION, plan.optimize_level, recipe, source.config, repr(others)]
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode("utf-8", "surrogateescape"))
    for name in source.names():
        digest.update(f"{name} {source.shape(name)}".encode("utf-8", "surrogateescape"))
        digest.update(source.sample(name))
    for sample in samples:
        digest.update(len(sample).to_bytes(8, "little") + sample.tobytes())
    return digest.hexdigest()
