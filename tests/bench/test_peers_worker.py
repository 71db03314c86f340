"""One engine's process: what is timed, and what the parent learns when it fails."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.peers import worker
from bench.peers.child import ChildError, Peer, call
from bench.peers.deepmnn_cpu import DeepmnnSession
from bench.peers.engine import FULL, QUICK, Case, as_fields, cases_of
from bench.peers.llama_cpp import PIECE, Pieces

import deepmnn
from tiny_artifact import tiny_artifact


class Recorder:
    """A session that notes what it is asked for; its n-th step takes n milliseconds."""

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self.reserved: list[tuple[int, int]] = []
        self.started: list[list[Sequence[int]]] = []
        self.stepped: list[Sequence[int]] = []

    def reserve(self, batch: int, tokens: int) -> None:
        self.reserved.append((batch, tokens))

    def start(self, prompts: Sequence[Sequence[int]]) -> None:
        self.started.append(list(prompts))

    def step(self, tokens: Sequence[int]) -> None:
        self.stepped.append(tokens)
        time.sleep(len(self.stepped) / 1000)


def draw(count: int) -> list[int]:
    return list(range(count))


@pytest.mark.parametrize(("tokens", "runs"), [(7, 4), (512, 4), (513, 3)])
def test_a_prompt_is_timed_after_a_warm_up_unless_it_is_long(tokens: int, runs: int) -> None:
    session = Recorder()
    timing = worker.run_case(session, Case(tokens, batch=2, repeat=3), draw)
    assert len(timing.seconds) == 3
    assert [[len(ids) for ids in prompts] for prompts in session.started] == runs * [2 * [tokens]]
    assert session.stepped == []


def test_every_step_is_timed_but_the_first_ones() -> None:
    session = Recorder()
    timing = worker.run_case(session, Case(5, batch=3, steps=4), draw)
    assert session.reserved == [(3, 5 + 4 + worker.WARM_UP_STEPS)]
    assert len(session.started) == 1
    assert [len(tokens) for tokens in session.stepped] == 6 * [3]
    assert len(timing.seconds) == 4
    assert all(n / 1000 <= s < 1 for n, s in zip(range(3, 7), timing.seconds, strict=True))


def test_what_an_engine_cannot_batch_is_missing() -> None:
    session = Recorder(most=2)
    assert worker.run_case(session, Case(5, batch=3, steps=1), draw).missing == "no batching"
    assert worker.run_case(session, Case(5, batch=2, steps=1), draw).missing == ""
    assert [len(prompts) for prompts in session.started] == [2]


def test_cases_survive_json_and_have_names_of_their_own() -> None:
    for cases in (FULL, QUICK):
        assert tuple(cases_of(as_fields(cases))) == cases
        assert len({case.name for case in cases}) == len(cases)


def test_memory_is_what_the_system_counts() -> None:
    _, before = worker.memory()
    held = bytearray(os.urandom(1 << 26))
    peak, own = worker.memory()
    assert own - before == pytest.approx(len(held), rel=0.1)
    assert peak >= own


@pytest.mark.parametrize("lengths", [[3], [3, 5, 1], [PIECE + 7, 4], [1000, 1000, 1000, 1000]])
def test_pieces_are_the_prompts_in_order(lengths: list[int]) -> None:
    pieces = Pieces()
    given = list(pieces.start([list(range(n)) for n in lengths]))
    assert all(len(rows) <= PIECE for rows in given)
    rows = [row for piece in given for row in piece]
    for sequence, length in enumerate(lengths):
        own = [row for row in rows if row[2] == sequence]
        assert own == [(i, i, sequence, i == length - 1) for i in range(length)]
    for more in range(3):
        expected = [(9, n + more, sequence, True) for sequence, n in enumerate(lengths)]
        assert pieces.step([9] * len(lengths)) == expected


def test_deepmnn_runs_prompts_and_steps_and_keeps_no_old_rows(tmp_path: Path) -> None:
    session = DeepmnnSession(deepmnn.load(tiny_artifact(tmp_path, quant="w4"), threads=1))
    session.reserve(3, 40)
    for _ in range(5):  # more than fits, if anything old were kept
        session.start([[1, 2, 3] * 10, [4] * 30, [5] * 33])
        for token in range(7):
            session.step([token, token, token])
    assert [table.length for table in session._tables] == [37, 37, 40]
    assert all(table.pending == 0 for table in session._tables)


ENGINE = """
import os, signal, subprocess, sys, time
def version(source):
    print("a greeting")
    os.write(1, b"another, from C\\n")
    return "7"
def build(config, out, needed, source):
    if config.name == "fails":
        print("first words", file=sys.stderr)
        raise ValueError("no such layer")
    if config.name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if config.name == "hangs":
        child = subprocess.Popen(["sleep", "60"])
        (out / "pid").write_text(str(child.pid))
        time.sleep(60)
    if config.name == "silent":
        os._exit(0)
    return str(needed or source)
"""


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Peer:
    package = tmp_path / "engines_of_worker"
    package.mkdir()
    (package / "any.py").write_text(ENGINE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return Peer("engines_of_worker.any", sys.executable, tmp_path)


def build(peer: Peer, tmp_path: Path, name: str, timeout: float = 60) -> object:
    request = {"config": name, "out": str(tmp_path), "needed": None}
    return call(peer, "build", request, timeout, tmp_path / "log")


def test_the_answer_is_apart_from_what_engines_print(peer: Peer, tmp_path: Path) -> None:
    assert call(peer, "version", {}, 60, tmp_path / "log") == "7"
    assert "another, from C" in (tmp_path / "log").read_text()
    assert build(peer, tmp_path, "works") == str(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails", "exit code 1: ValueError: no such layer"),
        ("killed", r"SIGKILL \(out of memory\?\)$"),
        ("silent", "it answered b''"),
    ],
)
def test_a_failure_is_told_in_a_line(peer: Peer, tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ChildError, match=message):
        build(peer, tmp_path, name)


def test_a_worker_that_hangs_is_ended_with_its_children(peer: Peer, tmp_path: Path) -> None:
    with pytest.raises(ChildError, match="no answer within 2 s"):
        build(peer, tmp_path, "hangs", timeout=2)
    child = Path("/proc") / (tmp_path / "pid").read_text() / "stat"
    deadline = time.monotonic() + 10
    while child.exists() and child.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_interpreter_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ChildError, match="nowhere/python: No such file"):
        call(Peer("mnn", str(tmp_path / "nowhere" / "python")), "version", {}, 60, None)
