"""Programs whose numbers claim what their bytes do not have, or make a reader slow."""

import dataclasses
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from one_op import one_op
from program_dir import random_weights, write_program
from test_fused_ops import mla

from deepmnn import _core
from deepmnn.backends.base import Batch
from deepmnn.backends.cpu import program as program_module
from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.backends.cpu.program import MAX_NBYTES, encode, read_program
from deepmnn.errors import ArtifactError, DeepmnnError, RequestError
from deepmnn.graph.caches import CacheEntry
from fuzz.mutations import rewrite

CHILD = Path(__file__).with_name("hostile_child.py")
SAID = {
    # (the core, the tables): refused, loaded, or how much longer the text is than the program
    "norms": "loaded 0",
    "tables": "refused 0",
    "outputs": "refused refused",
    "names": "refused 0",
    "caches": "refused 1",
    "dims": "refused refused",
    "shards": "refused refused",
    "weights": "loaded 0",
    "long text": "refused refused",
    "attributes": "loaded 1",
    "numbers": "loaded 0",
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    graph = one_op(lambda b, x: b.rms_norm(x, "norm", 0.1), 8)
    write_program(graph, random_weights(graph).__getitem__, tmp_path)
    return tmp_path


def said(directory: Path, way: str, share: int) -> str:
    done = subprocess.run(
        [sys.executable, CHILD, directory, way, str(share)],
        # What is preloaded for a sanitised core has its own handlers, and takes much memory.
        env=os.environ | {"PYTHONPATH": str(CHILD.parents[1]), "LD_PRELOAD": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


@pytest.mark.parametrize("way", ["norms", "outputs", "names", "caches", "dims", "long text"])
def test_many_of_something(directory: Path, way: str) -> None:
    assert said(directory, way, 20) == SAID[way]


@pytest.mark.slow
@pytest.mark.parametrize("way", SAID)
def test_as_many_as_a_program_may_have(directory: Path, way: str) -> None:
    """A reader that compared all with all would take hours."""
    assert said(directory, way, 1) == SAID[way]


def test_a_file_that_is_too_large(directory: Path) -> None:
    """Nobody looks into it: it has holes, and takes no room."""
    path = directory / "program.bin"
    os.truncate(path, MAX_NBYTES + 1)
    with pytest.raises(ArtifactError, match=f"at most {MAX_NBYTES}"):
        _core.Model(directory, 1)
    with pytest.raises(ArtifactError, match=f"at most {MAX_NBYTES}"):
        read_program(path.read_bytes())


class Marking(program_module._Reader):
    """Remembers where each 32-bit number is: counts, lengths and ids."""

    places: list[int] = []  # noqa: RUF012

    def u32(self) -> int:
        self.places.append(self.at)
        return super().u32()


HUGE = (1, 127, 1 << 16, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)


def test_every_count_length_and_id_claims_more(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The core and the tables agree but for what the tables do not know: what an op needs."""
    graph = one_op(mla(2, 5, 3, 2, 4), 12)
    write_program(graph, random_weights(graph).__getitem__, directory)
    data = (directory / "program.bin").read_bytes()
    monkeypatch.setattr(program_module, "_Reader", Marking)
    Marking.places.clear()
    read_program(data)
    places = list(Marking.places)
    monkeypatch.undo()
    assert len(places) > 100
    refused = 0
    for place in places:
        for number in HUGE:
            damaged = data[:place] + struct.pack("<I", number) + data[place + 4 :]
            rewrite(directory / "program.bin", damaged)
            read = True
            try:
                read_program(damaged)
            except ArtifactError:
                read = False
            try:
                _core.Model(directory, 1)
            except DeepmnnError as error:
                assert isinstance(error, ArtifactError)  # noqa: PT017
                refused += 1
                continue
            assert read, (place, number)
    assert refused > len(places) * len(HUGE) * 0.9


# ---------------------------------------------------------------------------- memory


def step_of(backend: CpuBackend, tokens: int) -> None:
    numbers = np.zeros(tokens, np.int32)
    backend.step(
        backend.new_cache(1, tokens),
        Batch(
            ids=numbers,
            positions=numbers,
            sequence_starts=np.array([0, tokens], np.int32),
            context_lengths=np.array([tokens], np.int32),
            block_tables=np.zeros((1, 1), np.int32),
            logit_rows=numbers,
        ),
    )


def test_activations_that_no_machine_has(directory: Path) -> None:
    path = directory / "program.bin"
    program = read_program(path.read_bytes())
    tokens, rows = 1 << 31, program.arenas[2]
    path.write_bytes(encode(dataclasses.replace(program, arenas=(tokens, 0, rows))))
    with pytest.raises(RequestError, match=f"activations of {(tokens + rows) * 100_000} bytes"):
        step_of(CpuBackend(directory, threads=1), 100_000)


def test_arenas_that_fit_but_not_together(directory: Path) -> None:
    path = directory / "program.bin"
    program = read_program(path.read_bytes())
    available = _core.available_memory()
    tokens = max(1, available >> 30)
    each = int(0.7 * available / tokens) // 64 * 64
    path.write_bytes(encode(dataclasses.replace(program, arenas=(each, each, program.arenas[2]))))
    with pytest.raises(RequestError, match=r"activations of \d+ bytes; .*memory available \(\d+"):
        step_of(CpuBackend(directory, threads=1), tokens)


def test_caches_that_no_machine_has(directory: Path) -> None:
    path = directory / "program.bin"
    program = read_program(path.read_bytes())
    path.write_bytes(encode(dataclasses.replace(program, caches={"huge": CacheEntry(1 << 31)})))
    backend = CpuBackend(directory, threads=1)
    with pytest.raises(RequestError, match=rf"a KV cache of {(1 << 31) * 4 * 32_000} bytes"):
        backend.new_cache(1000, 32)
