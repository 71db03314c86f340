"""Fuzzes one reader, guided by coverage (atheris), or blindly.

    cd tests; python -m fuzz NAME --runs 100000

Inputs that reach something new stay in build/fuzz/NAME, where the next run goes on. One that is
mishandled is written to build/fuzz/NAME.crash-...: what it shows is fixed, and it goes to
tests/fuzz/corpus/NAME. The last line says what was tried and how much of it was read without error.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib
import json
import math
import os
import pkgutil
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np

from fuzz import native
from fuzz.harness import CORPUS, Trial, limit_process
from fuzz.targets import TARGETS, target_class

BUILD = Path(__file__).parents[2] / "build" / "fuzz"
ROOMS = ("graph", "source", "models", "quant", "backends.cpu", "text", "artifact", "exporters")
"""Packages of deepmnn whose coverage guides."""

SCRATCH = "/dev/shm"
"""Files of a run that nobody keeps lie in memory."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=[*TARGETS, *native.TARGETS])
    parser.add_argument("--runs", type=int, default=-1, help="inputs to try; default: no end")
    parser.add_argument("--seconds", type=int, default=0, help="time to spend; default: no end")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--blind", action="store_true", help="known inputs, then RUNS random ones")
    parser.add_argument("--build", type=Path, default=BUILD, help=f"default: {BUILD}")
    given = parser.parse_args()
    place = SCRATCH if Path(SCRATCH).is_dir() else None
    with tempfile.TemporaryDirectory(prefix="deepmnn-fuzz-", dir=place) as folder:
        python = blind if given.blind else guided
        run = in_core if given.name in native.TARGETS else python
        run(given, Path(folder))


def blind(given: argparse.Namespace, folder: Path) -> None:
    """The seeds, the corpus, then seeds with one to three mutations."""
    target = target_class(given.name)(folder)
    inputs = [*target.seeds, *(path.read_bytes() for path in corpus(given.name))]
    limit_process()
    trial = Trial(target)
    for data in inputs:
        saved(given, trial, data)
    for number in range(given.runs):
        rng = np.random.default_rng([given.seed, number])
        data = inputs[int(rng.integers(len(inputs)))]
        for _ in range(int(rng.integers(1, 4))):
            data = target.mutate(rng, data)
        saved(given, trial, data)
    report(trial.done, trial.accepted)


def saved(given: argparse.Namespace, trial: Trial, data: bytes) -> None:
    """Tries an input, which is left behind if that fails or ends the process."""
    given.build.mkdir(parents=True, exist_ok=True)
    path = given.build / f"{given.name}.crash-{hashlib.sha1(data).hexdigest()}"
    path.write_bytes(data)
    trial.attempt(data)
    path.unlink()


def corpus(name: str) -> list[Path]:
    """The inputs that are kept for a target."""
    folder = CORPUS / name
    return sorted(folder.iterdir()) if folder.is_dir() else []


def guided(given: argparse.Namespace, folder: Path) -> None:
    """What coverage leads to."""
    import atheris

    target = target_class(given.name)(folder)
    instrument(atheris.instrument_func)
    corpora = [given.build / given.name, folder / "seeds"]
    longest = keep(corpora, [*target.seeds, *(path.read_bytes() for path in corpus(given.name))])
    limit_process()
    trial = Trial(target)
    end = time.monotonic() + given.seconds if given.seconds else math.inf

    def attempt(data: bytes) -> None:
        trial.attempt(data)
        if trial.done == given.runs or time.monotonic() > end:
            report(trial.done, trial.accepted)
            shutil.rmtree(folder)
            os._exit(0)  # libFuzzer's own end runs no Python

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        if seed % 2:
            return bytes(atheris.Mutate(data, most))
        return target.mutate(np.random.default_rng(seed), data)[:most]

    # Trial looks at time and memory.
    options = {"timeout": 300, "rss_limit_mb": 0, **libfuzzer(given, max(2 * longest, 4096))}
    flags = [f"-{name}={value}" for name, value in options.items()]
    command = [sys.argv[0], *flags, *map(str, corpora)]
    atheris.Setup(command, attempt, custom_mutator=mutate)
    atheris.Fuzz()


def in_core(given: argparse.Namespace, folder: Path) -> None:
    """A fuzzer of the C++ core; blindly, it tries what is known."""
    corpora, files = [given.build / given.name, folder / "seeds"], folder / "files"
    (folder / "models").mkdir()
    files.mkdir()
    known = [path.read_bytes() for path in corpus(given.name)]
    keep(corpora, [*native.seeds(given.name, folder / "models"), *known])
    runs = 0 if given.blind else given.runs
    options = {"runs": runs, "max_total_time": given.seconds}
    options |= libfuzzer(given, native.TARGETS[given.name])
    report(native.run(native.build(given.name), files, corpora, options))


def keep(corpora: list[Path], inputs: list[bytes]) -> int:
    """Makes the folders of inputs that were found and of the first ones; → the longest of these."""
    for path in corpora:
        path.mkdir(parents=True, exist_ok=True)
    for data in inputs:
        (corpora[1] / hashlib.sha1(data).hexdigest()).write_bytes(data)
    return max(map(len, inputs))


def libfuzzer(given: argparse.Namespace, longest: int) -> dict[str, object]:
    """Flags for either fuzzer."""
    return {
        "seed": given.seed,
        "max_len": longest,
        "reload": 0,
        "artifact_prefix": f"{given.build}/{given.name}.",
    }


def report(done: int, accepted: int | None = None) -> None:
    """The last line."""
    print(json.dumps({"done": done, "accepted": accepted}), flush=True)


def instrument(instrument_func: Callable[[FunctionType], Any]) -> None:
    """Counts what the functions of ROOMS reach. An editable install has a loader of its own, under
    which atheris cannot instrument imports.
    """
    for room in ROOMS:
        package = importlib.import_module(f"deepmnn.{room}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    rooms = tuple(f"deepmnn.{room}." for room in ROOMS)
    for function in gc.get_objects():
        if isinstance(function, FunctionType) and f"{function.__module__}.".startswith(rooms):
            instrument_func(function)


if __name__ == "__main__":
    main()
