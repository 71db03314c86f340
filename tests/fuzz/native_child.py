"""Loads damaged copies of an artifact in the C++ core and runs a step on those that load.

    python native_child.py ARTIFACT SEED COUNT

In a process of its own, so that a crash is seen as one, and with limited memory, so that what a
file claims is not simply taken. Prints each attempt's number before it, and at the end how many
loaded.
"""

import json
import resource
import struct
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from deepmnn import _core
from deepmnn.backends.cpu import program
from deepmnn.backends.cpu.program import (
    Instruction,
    Program,
    ProgramBuffer,
    ProgramWeight,
    encode,
    format_program,
    read_program,
)
from deepmnn.errors import ArtifactError, DeepmnnError
from fuzz.mutations import mutate_bytes, rewrite

NUMBERS = (-1, 0, 1, 2, 3, 15, 16, 64, 1 << 16, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 40, 1 << 62)
TOKENS = 3
MEMORY = 4 << 30
"""Address space: what the interpreter and numpy map, and some."""

Places = dict[str, list[tuple[Any, Any]]]
"""Kind of field → (container, key) of each."""


def mutate_numbers(rng: np.random.Generator, data: bytes) -> bytes:
    """A well-formed program.bin in which one or two fields say something else."""
    fields, places = read_fields(data)
    before = []
    for _ in range(int(rng.integers(1, 3))):
        kinds = sorted(places)  # every kind of field equally often, however many there are of it
        here = places[kinds[int(rng.integers(len(kinds)))]]
        container, key = here[int(rng.integers(len(here)))]
        other, other_key = here[int(rng.integers(len(here)))]
        before.append((container, key, container[key]))
        container[key] = changed(rng, container[key], other[other_key])
    try:
        return encode(rebuild(fields))
    except (struct.error, ValueError, IndexError):
        return data  # a number that the format cannot hold
    finally:
        for container, key, value in reversed(before):
            container[key] = value


@cache
def read_fields(data: bytes) -> tuple[dict[str, Any], Places]:
    """What a program.bin says, and its leaves. Kept: reading takes longer than a mutation."""
    fields = json.loads(json.dumps(asdict(read_program(data))))
    places: Places = {}
    collect(fields, "", places)
    return fields, places


def changed(rng: np.random.Generator, value: Any, other: Any) -> Any:
    kind = int(rng.integers(4))
    if kind == 0 or isinstance(value, str):
        return other
    if kind == 1:
        return value + int(rng.integers(-2, 3))
    number = NUMBERS[int(rng.integers(len(NUMBERS)))]
    return float(number) if isinstance(value, float) else number


def collect(container: Any, kind: str, places: Places) -> None:
    """Every leaf, sorted by the names on the way to it."""
    for key in list(container) if isinstance(container, dict) else range(len(container)):
        below = f"{kind}.{key}" if isinstance(container, dict) else kind
        if isinstance(container[key], dict | list):
            collect(container[key], below, places)
        else:
            places.setdefault(below, []).append((container, key))


def rebuild(fields: dict[str, Any]) -> Program:
    return Program(
        fields["name"],
        tuple(fields["shards"]),
        tuple(ProgramWeight(**weight) for weight in fields["weights"]),
        fields["caches"],
        tuple(ProgramBuffer(**buffer) for buffer in fields["buffers"]),
        tuple(fields["arenas"]),
        tuple(fields["inputs"]),
        tuple(fields["outputs"]),
        tuple(Instruction(**instruction) for instruction in fields["instructions"]),
    )


def run(path: Path) -> bool:
    """Whether the model loads and a step of it runs."""
    try:
        model = _core.Model(str(path), 1)
        cache = model.new_cache(2, 4)
        for start in (0, TOKENS):
            logits = model.step(
                cache,
                np.arange(TOKENS, dtype=np.int32),
                np.arange(start, start + TOKENS, dtype=np.int32),
                np.array([0, TOKENS], np.int32),
                np.array([start + TOKENS], np.int32),
                np.array([[1, 0]], np.int32),
                np.array([0, TOKENS - 1], np.int32),
            )
            assert logits.shape == (2, model.vocab_size)
    except DeepmnnError:
        return False
    return True


def mutate_words(rng: np.random.Generator, data: bytes) -> bytes:
    """A count, a length or an id claims something else; nothing after it moves."""
    marks = words(data)
    place = marks[int(rng.integers(len(marks)))]
    number = NUMBERS[int(rng.integers(len(NUMBERS)))] % (1 << 32)
    return data[:place] + struct.pack("<I", number) + data[place + 4 :]


@cache
def words(data: bytes) -> list[int]:
    """Where the 32-bit numbers of a program.bin are."""
    places: list[int] = []

    class Marking(program._Reader):
        def u32(self) -> int:
            places.append(self.at)
            return super().u32()

    plain, program._Reader = program._Reader, Marking  # type: ignore[misc]
    try:
        read_program(data)
    finally:
        program._Reader = plain  # type: ignore[misc]
    return places


def show(data: bytes) -> bool:
    """Whether the tables can be read and shown."""
    try:
        assert format_program(read_program(data))
    except ArtifactError:
        return False
    return True


def main(path: Path, seed: int, count: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    rng = np.random.default_rng(seed)
    shard = next(path.glob("*.safetensors"))
    attempts: list[tuple[Path, Callable[[np.random.Generator, bytes], bytes]]] = [
        (path / "program.bin", mutate_bytes),
        (path / "program.bin", mutate_numbers),
        (path / "program.bin", mutate_numbers),
        (path / "program.bin", mutate_words),
        (shard, mutate_bytes),
    ]
    assert run(path)
    loaded = 0
    for number in range(count):
        print(number, flush=True)
        file, mutate = attempts[number % len(attempts)]
        before = file.read_bytes()
        rewrite(file, mutate(rng, before))
        shown, ran = show((path / "program.bin").read_bytes()), run(path)
        assert shown or not ran, "the core takes what the tables refuse"
        loaded += ran
        rewrite(file, before)
    print("loaded", loaded)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
