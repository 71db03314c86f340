"""A program.bin with a draft part is trusted as little as one without: it is refused, or runs."""

import dataclasses
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from program_dir import SHARD, random_weights, write_program

from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.backends.cpu.program import Program, ProgramPart, encode, read_program
from deepmnn.errors import ArtifactError, DeepmnnError
from deepmnn.graph.builder import GraphBuilder
from fuzz.mutations import rewrite
from parity import Runner

Load = Callable[[bytes], CpuBackend]


def add_layer(b: GraphBuilder, x: str, name: str) -> str:
    """Attention with one head, over a cache of its own."""
    q, k, v = (b.linear(x, f"{name}.{part}", 4) for part in "qkv")
    keys, values = b.cache(k, f"{name}.keys"), b.cache(v, f"{name}.values")
    return b.add(x, b.attention(q, keys, values, f"{name}.attention", 1, 1, 0.5), f"{name}.sum")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    main, draft = GraphBuilder("main"), GraphBuilder("main draft")
    x = add_layer(main, main.embedding(main.ids, "table", 8, 4), "main")
    x = main.output(main.select_rows(x, "rows"), "hidden")
    main.output(main.linear(x, "head", 8, role="lm_head"), "logits")
    state = draft.state("hidden", 4)
    x = draft.add(draft.embedding(draft.ids, "table", 8, 4), state, "both")
    x = draft.output(draft.select_rows(add_layer(draft, x, "draft"), "rows"), "state")
    draft.output(draft.linear(x, "head", 8, role="lm_head"), "logits")
    numbers = random_weights(draft.graph, 1) | random_weights(main.graph)
    folder = tmp_path_factory.mktemp("program")
    write_program(main.graph, numbers.__getitem__, folder, draft=draft.graph)
    return folder


@pytest.fixture(scope="module")
def data(directory: Path) -> bytes:
    return (directory / "program.bin").read_bytes()


@pytest.fixture
def load(directory: Path, tmp_path: Path) -> Load:
    (tmp_path / SHARD).symlink_to(directory / SHARD)

    def load_bytes(changed: bytes) -> CpuBackend:
        rewrite(tmp_path / "program.bin", changed)
        return CpuBackend(tmp_path, threads=1)

    return load_bytes


def run(backend: CpuBackend) -> None:
    """Two steps and what is drafted after each, as far as there is a part for it."""
    runner = Runner(backend, output="hidden")
    for ids in ([1, 2, 3], [4]):
        hidden = runner.step({0: ids})
        if backend.draft_state is not None:
            logits, state = runner.draft({0: ids}, hidden)[0]
            assert (logits.shape, state.shape) == ((len(ids), 8), (len(ids), 4))


def test_the_program_is_fine_as_it_is(load: Load, data: bytes) -> None:
    backend = load(data)
    assert backend.draft_state == "hidden"
    run(backend)


def test_truncated_at_every_byte(load: Load, data: bytes) -> None:
    for length in range(len(data)):
        with pytest.raises(ArtifactError):
            load(data[:length])
        with pytest.raises(ArtifactError):
            read_program(data[:length])


@pytest.mark.parametrize("value", [0x00, 0x01, 0xFF])
def test_every_byte_replaced(load: Load, data: bytes, value: int) -> None:
    refused, places = 0, [at for at, byte in enumerate(data) if byte != value]
    for at in places:
        changed = bytearray(data)
        changed[at] = value
        try:
            run(load(bytes(changed)))
        except (DeepmnnError, KeyError):  # hidden may have another name
            refused += 1
    assert refused > len(places) // 2


def test_random_words(load: Load, data: bytes) -> None:
    rng = random.Random(1)
    for _ in range(1000):
        changed = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(8, len(data) - 8)
            word = rng.choice([0, 1, 2, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
            size = rng.choice([4, 8])
            changed[at : at + size] = struct.pack("<Q", word)[:size]
        try:
            run(load(bytes(changed)))
        except (DeepmnnError, KeyError):
            continue


def edits(program: Program) -> Iterator[tuple[str, Program, str]]:
    """What is wrong, the program, and what an error says."""
    draft, main = program.draft, program.main
    assert draft is not None
    names = [buffer.name for buffer in program.buffers]

    def drafts(**fields: object) -> Program:
        return dataclasses.replace(program, draft=dataclasses.replace(draft, **fields))

    def named(buffer: int, **fields: object) -> Program:
        buffers = list(program.buffers)
        buffers[buffer] = dataclasses.replace(buffers[buffer], **fields)
        return dataclasses.replace(program, buffers=tuple(buffers))

    state = next(at for at in draft.inputs if names[at] == "hidden")
    given, following, logits = main.outputs[0], *draft.outputs
    yield "the same part twice", dataclasses.replace(program, draft=main), "offset -1"
    yield "the main part's inputs", drafts(inputs=main.inputs), "offset -1"
    both = drafts(inputs=(*draft.inputs, *main.inputs))
    yield "the main part's inputs, too", both, "no other part"
    both = drafts(outputs=(*draft.outputs, *main.outputs))
    yield "the main part's outputs, too", both, "one writer"
    yield "the main part's outputs", drafts(outputs=main.outputs), "offset -1"
    yield "no inputs", drafts(inputs=()), "offset -1"
    yield "no outputs", drafts(outputs=()), "offset -1"
    yield "another state", named(state, name="other"), "reads other"
    yield "logits as the state", named(state, name="logits"), "reads logits"
    yield "a narrower state", named(state, shape=(3,)), "width|wide|shape|is \\["
    yield "a state of ints", named(state, dtype="i32"), "i32"
    yield "a state of rows", named(state, dim="rows"), "rows"
    yield "what is given per token", named(given, dim="tokens"), "tokens"
    yield "no state for the next guess", named(following, name="next"), "logits and state"
    yield "no logits", named(logits, name="scores"), "no graph output logits"
    yield "two states", named(logits, name="state"), "several graph outputs"
    first, *others = draft.instructions
    from_main = dataclasses.replace(first, outputs=main.instructions[0].outputs)
    yield "writes for the main part", drafts(instructions=(from_main, *others)), "again"
    reads = dataclasses.replace(others[0], inputs=(main.instructions[0].outputs[0],) * 2)
    yield (
        "reads the main part's",
        drafts(instructions=(first, reads, *others[1:])),
        "written before",
    )


CASES = [
    *("the same part twice", "the main part's inputs", "the main part's inputs, too"),
    *("the main part's outputs, too", "the main part's outputs", "no inputs"),
    *("no outputs", "another state", "logits as the state", "a narrower state"),
    *("a state of ints", "a state of rows", "what is given per token"),
    *("no state for the next guess", "no logits", "two states", "writes for the main part"),
    "reads the main part's",
]


@pytest.mark.parametrize("case", CASES)
def test_parts_that_do_not_fit_are_refused(load: Load, data: bytes, case: str) -> None:
    found = {name: (program, said) for name, program, said in edits(read_program(data))}
    assert list(found) == CASES
    program, said = found[case]
    with pytest.raises(ArtifactError, match=said):
        load(encode(program))


@pytest.mark.parametrize("count", [0, 3, 2**32 - 1])
def test_a_program_has_one_part_or_two(load: Load, data: bytes, count: int) -> None:
    plain = encode(dataclasses.replace(read_program(data), draft=None))
    both = [at for at in range(len(plain)) if plain[:at] == data[:at] and plain[at] != data[at]]
    at = both[0]
    assert data[at : at + 4] == struct.pack("<I", 2)
    changed = data[:at] + struct.pack("<I", count) + data[at + 4 :]
    for read in (load, read_program):
        with pytest.raises(ArtifactError):
            read(changed)


def test_what_the_draft_part_alone_has_may_lie_anywhere(
    load: Load, data: bytes, tmp_path: Path
) -> None:
    """A program whose draft part's cache and weights come first runs with it, and without."""
    program = read_program(data)
    assert program.draft is not None
    weights, caches = len(program.weights), len(program.caches)

    def turned(part: ProgramPart) -> ProgramPart:
        return dataclasses.replace(
            part,
            instructions=tuple(
                dataclasses.replace(
                    each,
                    weights=tuple(weights - 1 - at for at in each.weights),
                    caches=tuple(caches - 1 - at for at in each.caches),
                )
                for each in part.instructions
            ),
        )

    main = turned(program.main)
    changed = dataclasses.replace(
        program,
        weights=program.weights[::-1],
        caches=dict(list(program.caches.items())[::-1]),
        instructions=main.instructions,
        draft=turned(program.draft),
    )
    want = Runner(load(data), output="hidden").step({0: [1, 2, 3]})[0]
    run(load(encode(changed)))
    alone = CpuBackend(tmp_path, threads=1, draft=False)
    for backend in (load(encode(changed)), alone):
        got = Runner(backend, output="hidden").step({0: [1, 2, 3]})[0]
        assert np.array_equal(got, want)
