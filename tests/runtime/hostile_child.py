"""Reads large programs made to be slow or to take memory, within limits, in a process of its own.

    python hostile_child.py DIRECTORY WAY SHARE

DIRECTORY has a program of a norm between an embedding and a head. SHARE 1: as large as a program
may be, or larger; 20: a twentieth of that. Prints what each of the two readers said: the core, and
the tables that `info` shows.
"""

import dataclasses
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from deepmnn import _core
from deepmnn.backends.cpu.program import (
    Instruction,
    Program,
    ProgramBuffer,
    encode,
    format_program,
    read_program,
)
from deepmnn.errors import ArtifactError
from deepmnn.graph.caches import CacheEntry

MEMORY = 6 << 30
"""Address space, of which the interpreter and numpy map a part: far from what is claimed."""


share = 1


def many(count: int) -> range:
    return range(count // share)


def many_norms(program: Program) -> Program:
    """A chain of norms, of which each might write what the next one reads quantised."""
    first, norm, *rest = program.instructions
    buffers, norms = list(program.buffers), []
    before, place = first.outputs[0], program.arenas[0]
    for number in many(150_000):
        offset = place + 64 * (number % 2)
        buffers.append(ProgramBuffer("", "f32", "tokens", (8,), offset))
        norms.append(
            dataclasses.replace(norm, inputs=(before,), outputs=(len(buffers) - 1,), name="")
        )
        before = len(buffers) - 1
    last = dataclasses.replace(norm, inputs=(before,))
    return dataclasses.replace(
        program,
        buffers=tuple(buffers),
        arenas=(place + 128, *program.arenas[1:]),
        instructions=(first, *norms, last, *rest),
    )


def with_op(program: Program, **changes: object) -> Program:
    """The norm's instruction says something else."""
    changed = dataclasses.replace(program.instructions[1], **changes)  # type: ignore[arg-type]
    instructions = (program.instructions[0], changed, *program.instructions[2:])
    return dataclasses.replace(program, instructions=instructions)


def many_tables(program: Program) -> Program:
    """Rotary tables, each another one."""
    first, norm, *rest = program.instructions
    buffers, ropes = list(program.buffers), []
    positions = program.inputs[1]
    for number in many(30_000):
        buffers.append(ProgramBuffer("", "f32", "tokens", (8,), program.arenas[0]))
        attrs = {"heads": 1, "interleaved": 0, "rope_scale": 1.0}
        attrs |= {"inv_freq": (1.0, 0.5, 0.25, float(number))}  # type: ignore[dict-item]
        inputs, outputs = (first.outputs[0], positions), (len(buffers) - 1,)
        ropes.append(
            Instruction("rope", "", inputs, outputs, (), (), (), 0, 0, attrs)  # type: ignore[arg-type]
        )
    return dataclasses.replace(
        program,
        buffers=tuple(buffers),
        arenas=(program.arenas[0] + 64, *program.arenas[1:]),
        instructions=(first, norm, *ropes, *rest),
    )


def many_outputs(program: Program) -> Program:
    names = [f"o{number}" for number in many(200_000)]
    begin = len(program.buffers)
    buffers = [ProgramBuffer(name, "f32", "rows", (1,), -1) for name in names]
    return dataclasses.replace(
        program,
        buffers=program.buffers + tuple(buffers),
        outputs=program.outputs + tuple(range(begin, begin + len(names))),
    )


def long_names(program: Program) -> Program:
    """What is named once is shown for each of many inputs."""
    buffers = (*program.buffers, ProgramBuffer("n" * 4096, "f32", "tokens", (8,), 0))
    inputs = (len(program.buffers),) * len(many(3_000_000))
    return with_op(dataclasses.replace(program, buffers=buffers), inputs=inputs)


def many_caches(program: Program) -> Program:
    """Each of many instructions writes one of many caches."""
    caches = {f"c{number}": CacheEntry(1) for number in many(100_000)}
    norm = dataclasses.replace(program.instructions[1], caches=(len(caches) - 1,))
    instructions = (
        program.instructions[0],
        *[norm for _ in many(100_000)],
        *program.instructions[2:],
    )
    return dataclasses.replace(program, caches=caches, instructions=instructions)


def many_dims(program: Program) -> Program:
    buffer = ProgramBuffer("b", "f32", "tokens", (1,) * len(many(6_000_000)), 0)
    return dataclasses.replace(program, buffers=(*program.buffers, buffer))


def more_than_enough(program: Program) -> Program:
    return dataclasses.replace(program, shards=("s",) * len(many(14_000_000)))


WAYS: dict[str, Callable[[Program], Program]] = {
    "norms": many_norms,
    "tables": many_tables,
    "outputs": many_outputs,
    "names": long_names,
    "caches": many_caches,
    "dims": many_dims,
    "large": more_than_enough,
    "shards": lambda p: dataclasses.replace(p, shards=(*p.shards, *["" for _ in many(6_000_000)])),
    "weights": lambda p: dataclasses.replace(p, weights=p.weights * len(many(100_000))),
    "long text": lambda p: dataclasses.replace(p, name="t" * len(many(30_000_000))),
    "attributes": lambda p: with_op(
        p, attrs=p.instructions[1].attrs | {f"{n}": n for n in many(1_000_000)}
    ),
    "numbers": lambda p: with_op(
        p, attrs=p.instructions[1].attrs | {"numbers": tuple(many(3_000_000))}
    ),
}


def encoded(program: Program) -> bytes:
    """Beyond what `encode` writes, too."""
    from deepmnn.backends.cpu import program as module

    most = module.MAX_NBYTES, module.MAX_SHARDS
    module.MAX_NBYTES = module.MAX_SHARDS = 1 << 62
    try:
        return encode(program)
    finally:
        module.MAX_NBYTES, module.MAX_SHARDS = most


def step(model: _core.Model) -> None:
    row, table = np.zeros(1, np.int32), np.zeros((1, 1), np.int32)
    one = np.ones(1, np.int32)
    ends = np.array([0, 1], np.int32)
    assert np.isfinite(model.step(model.new_cache(1, 4), row, row, ends, one, table, row)).all()


def main(directory: Path, way: str) -> None:
    path = directory / "program.bin"
    data = encoded(WAYS[way](read_program(path.read_bytes())))
    path.write_bytes(data)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    said = []
    try:
        model = _core.Model(directory, 1)
        said.append("loaded")
        step(model)
    except ArtifactError:
        said.append("refused")
    try:
        said.append(f"{len(format_program(read_program(data))) // len(data)}")
    except ArtifactError:
        said.append("refused")
    print(*said)


if __name__ == "__main__":
    share = int(sys.argv[3])
    main(Path(sys.argv[1]), sys.argv[2])
