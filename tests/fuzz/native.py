"""The fuzzers of the C++ core, native/tests/*_fuzzer.cc: building them, and their first inputs.

It needs clang, 18 or newer for every instruction set (`apt-get install clang-19`; an older one
builds the scalar kernels alone). Addresses and undefined behaviour are checked as it runs.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from fuzz.parts import SHARD
from storage import NAMES

TARGETS = {"core": 1 << 17, "program": 1 << 12}
"""Name → bytes of the longest input. The first goes on from what the second reads."""

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "fuzz" / "core-build"
COMPILERS = ("clang++", *(f"clang++-{version}" for version in range(25, 13, -1)))
_ALL_SETS = 18
_DONE = "stat::number_of_executed_units:"


def compiler() -> str | None:
    """The newest clang that is installed."""
    found = [(_version(path), path) for name in COMPILERS if (path := shutil.which(name))]
    return max(found)[1] if found else None


def build(name: str) -> Path:
    """Builds the fuzzers, unless they are up to date; → the one of a target."""
    clang = compiler()
    assert clang is not None
    options = {
        "CMAKE_CXX_COMPILER": clang,
        "DEEPMNN_PYTHON": "OFF",
        "DEEPMNN_FUZZ": "ON",
        "DEEPMNN_SANITIZE": "address,undefined,fuzzer-no-link",
        "DEEPMNN_ISAS": "all" if _version(clang) >= _ALL_SETS else "",
    }
    flags = [f"-D{name}={value}" for name, value in options.items()]
    for command in (
        ["-S", str(ROOT), "-B", str(BUILD), *flags],
        ["--build", str(BUILD), "--parallel", "2"],
    ):
        subprocess.run(["cmake", *command], check=True, stdout=sys.stderr)
    return BUILD / f"{name}_fuzzer"


def seeds(name: str, folder: Path) -> Iterator[bytes]:
    """First inputs of a target: programs of one op, and tiny models; for `core` with their weights,
    and each type of cache and instruction set.
    """
    for number, (program, weights) in enumerate((*_programs(folder), *_models(folder))):
        if name == "program":
            yield program
            continue
        for choice in range(3):
            head = struct.pack("<BI", choice + 4 * (number % 3) + 16 * choice, len(program))
            yield head + program + weights


def _models(folder: Path) -> Iterator[tuple[bytes, bytes]]:
    from fuzz.targets.artifact import PROGRAM, converted_models

    for model in converted_models(folder):
        yield (model / PROGRAM).read_bytes(), (model / SHARD).read_bytes()


def _programs(folder: Path) -> Iterator[tuple[bytes, bytes]]:
    """A kilobyte each, so that many are tried."""
    sys.path.append(str(ROOT / "tests" / "runtime"))
    from one_op import one_op
    from program_dir import SHARD as WEIGHTS
    from program_dir import random_weights, write_program
    from test_fused_ops import gqa, mla, moe, sparse_mla
    from test_malformed import everything
    from test_malformed_compressed import fused, plain

    builds = {name: lambda b, x: b.linear(x, "l", 6) for name in NAMES}
    more = [gqa(2, 1, 4, 4, True), mla(2, 5, 3, 2, 4), moe(3, 1, 4, 2), everything]
    more += [sparse_mla(3, 7, 5, 4, 6, 5, 9, 3), plain, fused]
    for build, format in [*((b, f) for f, b in builds.items()), *((b, "w4") for b in more)]:
        graph = one_op(build, 24 if build in (plain, fused) else 12, format)
        write_program(graph, random_weights(graph).__getitem__, folder / "program")
        yield tuple((folder / "program" / name).read_bytes() for name in ("program.bin", WEIGHTS))


def run(binary: Path, folder: Path, corpora: list[Path], options: dict[str, object]) -> int:
    """Fuzzes; → inputs that were tried. folder: an empty one, for files.

    Raises CalledProcessError for a finding.
    """
    limits = {"timeout": 10, "rss_limit_mb": 1024, "malloc_limit_mb": 128}
    flags = [f"-{name}={value}" for name, value in {**limits, **options}.items()]
    command = [str(binary), "-print_final_stats=1", *flags, *map(str, corpora)]
    sanitizers = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    environment = {**os.environ, **sanitizers, "FUZZ_FOLDER": str(folder)}
    done = 0
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            print(line, end="", file=sys.stderr, flush=True)
            if line.startswith(_DONE):
                done = int(line.removeprefix(_DONE))
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return done


def _version(clang: str) -> int:
    text = subprocess.run([clang, "-dumpversion"], capture_output=True, text=True, check=True)
    return int(text.stdout.split(".")[0])
