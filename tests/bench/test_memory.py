"""bench.memory: groups, what a watched program took, what engines print, and a page of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.memory import bigmoe, rounds
from bench.memory.__main__ import PAGE, _limits, _pairs
from bench.memory.deepmnn_run import difference
from bench.memory.disk import BLOCK, bandwidth
from bench.memory.engines import DEFAULT, ENGINES, ends, told, with_read_ahead
from bench.memory.group import Group, GroupError, find
from bench.memory.planner import Expected
from bench.memory.prompt import Prompt, cut, random_prompt
from bench.memory.read_ahead import ReadAheadError, read_ahead, set_read_ahead, setting_of
from bench.memory.report import page, rate
from bench.memory.rounds import NO_LIMIT, Found, Plan, limit_name, same_bits, summed_up
from bench.memory.run import Job, Measured, Phase
from bench.memory.watched import Counters, Watched, watch
from bench.peers.child import ChildError
from bench.serve.vocabulary import write_tokenizer

from deepmnn.errors import RequestError
from deepmnn.measure import disk
from deepmnn.text.tokenizer import Tokenizer

GIB = 1 << 30
STEPS = ((2.5, 3), (5.0, 4), (8.0, 3))
"""When each ended, in seconds, and its token."""


class FakeGroup:
    """A group that any process may join, as full as it is told."""

    def __init__(self, peak: int = 7, kills: int = 0) -> None:
        self.peak, self.kills = peak, kills

    def join(self) -> None:
        """Nothing to join."""


def run(
    code: str, group: FakeGroup | None = None, timeout: float = 20.0, stepping: float = 20.0
) -> Watched:
    """A Python program in a fake group."""
    command = [sys.executable, "-c", code]
    fake: Group = group or FakeGroup()  # type: ignore[assignment]
    return watch(command, fake, ends, timeout, Path.cwd(), stepping=stepping)


def test_both_versions_of_groups_are_found(tmp_path: Path) -> None:
    with pytest.raises(GroupError, match="has no control groups"):
        find(tmp_path)
    (tmp_path / "cgroup.subtree_control").write_text("cpu\n")
    names, base = find(tmp_path)
    assert (names.limit, base) == ("memory.max", tmp_path)
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory"
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "cgroup.procs").touch()
    names, base = find(tmp_path)
    assert (names.limit, base) == ("memory.limit_in_bytes", tmp_path / "memory")


def test_a_group_holds_its_limit_and_tells_what_happened(tmp_path: Path) -> None:
    (tmp_path / "cgroup.subtree_control").write_text("memory")
    group = Group(3 * GIB, tmp_path)
    with group:
        assert (group.path / "memory.max").read_text() == str(3 * GIB)
        (group.path / "memory.peak").write_text("12345\n")
        (group.path / "memory.events").write_text("low 0\noom 4\noom_kill 2\n")
        assert (group.peak, group.kills) == (12345, 2)
        for file in group.path.iterdir():
            file.unlink()
    assert not group.path.exists()


def test_a_phase_ends_with_a_line_and_is_counted() -> None:
    code = (
        "import json, time\n"
        "print('words', flush=True)\n"
        "print(json.dumps({'phase': 'load', 'seconds': 0.5}), flush=True)\n"
        "x = bytearray(1 << 26)\n"
        "print(json.dumps({'phase': 'prefill', 'seconds': 1.5}), flush=True)\n"
        "time.sleep(0.2)"
    )
    found = run(code)
    assert (found.failure, found.peak, found.code) == ("", 7, 0)
    assert found.lines[0] == "words"
    assert told(found.lines).seconds == {"load": 0.5, "prefill": 1.5}
    taken = found.counters["prefill"].since(found.counters["load"])
    assert taken.minor + taken.major > 0


def test_a_program_that_fails_says_why() -> None:
    assert run("raise SystemExit('no room')").failure == "exit code 1 / no room"
    assert run("import os; os.kill(os.getpid(), 9)").failure == "SIGKILL"
    killed = run("import os; os.kill(os.getpid(), 9)", FakeGroup(kills=1))
    assert killed.failure == "killed: the group was out of memory"


def test_a_program_that_takes_too_long_is_ended() -> None:
    code = 'import time; print(\'{"phase": "load", "seconds": 1}\', flush=True); time.sleep(60)'
    found = run(code, timeout=1.0)
    assert found.failure == "ended because it took too long; it came to: load"
    assert found.code == -9


def test_steps_end_when_they_took_long_enough() -> None:
    code = (
        "import time\n"
        "for name in ['load', 'prefill'] + 200 * ['decode']:\n"
        '    print(f\'{{"phase": "{name}", "seconds": 1, "id": 2}}\', flush=True)\n'
        "    time.sleep(0.05)"
    )
    found = run(code, stepping=0.2)
    assert (found.stopped, found.failure) == (True, "")
    assert 2 <= len(told(found.lines[2:]).ids) < 100
    assert found.counters["decode"].seconds - found.counters["prefill"].seconds > 0.2


def test_what_our_programs_print() -> None:
    lines = [
        "a warning",
        '{"phase": "prefill", "seconds": 2.0, "streaming": {"reads": 4}}',
        *(f'{{"phase": "decode", "seconds": {at}, "id": {token}}}' for at, token in STEPS),
        '{"phase" is cut',
    ]
    found = told(lines)
    assert found.seconds == {"prefill": 2.0, "decode": 8.0}
    assert (found.ids, found.own) == ([3, 4, 3], {"prefill": {"reads": 4}})
    assert [ends(line) for line in lines] == [None, "prefill", *["decode"] * 3, None]
    assert difference({"reads": 4}, {"reads": 9, "misses": 2}) == {"reads": 5, "misses": 2}


def test_what_bigmoe_prints() -> None:
    lines = [
        "bmoe: expert streaming ON  n_expert=64 o_direct=1 io_threads=4 cache=3000 MiB shards=1",
        'BMOE_PROGRESS {"step":1,"steps":256,"wall_ms":500.5,"io_ms":1.0}',
        'BMOE_PROGRESS {"step":2,"steps":256,"wall_ms":250.0,"io_ms":1.0}',
        "=== answer ===",
        "prefill: 513 tokens, 20.500 s (25.0 tok/s) | model load 3.250 s | TTFT 23.750 s",
        "moe-cache: 41.0% hit, resident 3000.0 MiB",
    ]
    found = bigmoe.told(lines)
    assert found.seconds == {"decode": 0.7505, "prefill": 20.5, "load": 3.25}
    assert found.steps == 2
    assert found.own["summary"][-1].startswith("moe-cache: 41.0%")
    assert [bigmoe.ends(line) for line in lines[:4]] == ["load", "prefill", "decode", None]
    assert bigmoe.told(lines[:3]).steps == 2


def test_bigmoe_gets_what_the_limit_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bigmoe, "sizes", lambda model: (GIB // 2, 8 * GIB))
    assert bigmoe.cache_words(Path("m"), 4 * GIB) == ["--cache-mb", "3234"]
    assert bigmoe.cache_words(Path("m"), 2 * GIB) == ["--cache-mb", "1186", "--force-cache"]
    assert bigmoe.cache_words(Path("m"), GIB // 2) == ["--cache-mb", "0"]
    assert bigmoe.cache_words(Path("m"), 64 * GIB) == ["--cache-mb", "8192"]
    assert bigmoe.cache_words(Path("m"), NO_LIMIT) == ["--cache-mb", "8192"]


def test_read_ahead_is_set_and_set_back(tmp_path: Path) -> None:
    file = setting_of(tmp_path, tmp_path)
    assert read_ahead(tmp_path, tmp_path) is None

    def held_while_a_run_fails(kib: int | None) -> None:
        with set_read_ahead(tmp_path, kib, tmp_path):
            raise ChildError(f"held {read_ahead(tmp_path, tmp_path)}")

    with pytest.raises(ReadAheadError, match="cannot be read"):
        held_while_a_run_fails(128)
    file.parent.mkdir()
    file.write_text("8192\n")
    for kib, held in ((128, 128), (None, 8192)):
        with pytest.raises(ChildError, match=f"held {held}"):
            held_while_a_run_fails(kib)
        assert read_ahead(tmp_path, tmp_path) == 8192


def test_mapped_engines_run_with_another_read_ahead_too() -> None:
    engines = [engine for engine in ENGINES if engine.name in ("llama_cpp", "bigmoe")]
    names = [engine.name for engine in with_read_ahead(engines, 8192, 128)]
    assert names == ["llama_cpp", "llama_cpp_128k", "bigmoe"]
    assert with_read_ahead(engines, 128, 128) == engines
    other = with_read_ahead(engines, None, 64)[1]
    assert (other.title, other.read_ahead) == ("llama.cpp, read-ahead 64 KiB", 64)
    assert other.base == "llama_cpp"


def test_the_disk_is_measured_where_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "SECONDS", 0.05)
    (tmp_path / "file").write_bytes(bytes(4 * BLOCK))
    assert bandwidth(tmp_path / "file") >= 0
    monkeypatch.setattr(disk, "_open", lambda path: (os.open(path, os.O_RDONLY), False))
    assert bandwidth(tmp_path / "file") == 0  # not past the page cache


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    """Of models with random weights."""
    write_tokenizer(tmp_path, {"eos_token_id": 60000})
    return Tokenizer(tmp_path)


def test_a_prompt_is_ids_and_the_same_as_text(tokenizer: Tokenizer) -> None:
    prompt = random_prompt(tokenizer, 50, 20, seed=3)
    assert (len(prompt.ids), len(prompt.follow), prompt.random) == (50, 20, True)
    assert tokenizer.encode(prompt.text, add_special_tokens=False) == prompt.ids
    assert random_prompt(tokenizer, 50, 20, seed=4) != prompt
    with pytest.raises(RequestError, match="the text has"):
        cut(tokenizer, "short", 2, 50)


def test_phases_are_the_differences_of_counters() -> None:
    counters = {
        "load": Counters(100, 1, 2, 0.5, 5.0),
        "prefill": Counters(300, 4, 6, 2.0, 9.5),
        "decode": Counters(1000, 5, 7, 3.0, 18.0),
    }
    lines = [f'{{"phase": "{name}", "seconds": 4.0}}' for name in ("load", "prefill")]
    lines += [f'{{"phase": "decode", "seconds": 8.0, "id": {token}}}' for token in (1, 2, 1, 1)]
    job = Job(Path("m"), None, "python", Path("ids"), "", 32, 4, 2, GIB, Path("."))
    made = summed_up(job, ENGINES[0], Watched(lines, counters, peak=5))
    assert made.phases["prefill"] == Phase(4.0, 32, 200, 3, 4, 1.5)
    assert made.phases["decode"].read_nbytes == 700
    assert (made.phases["decode"].rate, made.distinct, made.peak_nbytes) == (0.5, 2, 5)
    untold = summed_up(job, ENGINES[0], Watched(lines[2:], counters, peak=5))
    assert untold.phases["prefill"].seconds == 4.5  # between its lines


def test_logits_are_compared_by_their_bytes(tmp_path: Path) -> None:
    one, two = tmp_path / "one.npy", tmp_path / "two.npy"
    assert same_bits(one, two) is None
    np.save(one, np.float32([0.0, 1.0]))
    np.save(two, np.float32([-0.0, 1.0]))
    assert same_bits(one, one) is True
    assert same_bits(one, two) is False


def plan(tmp_path: Path, repeat: int = 2) -> Plan:
    """Of two engines and two limits."""
    chosen = [engine for engine in ENGINES if engine.name in ("deepmnn", "ik_llama")]
    return Plan(
        chosen,
        [2 * GIB, 4 * GIB],
        {"deepmnn": tmp_path / "model", "gguf": tmp_path / "model"},
        {},
        {"ik_llama": ["extra"]},
        Prompt([1, 2, 3], "a b c", [4, 5], random=False),
        4,
        False,
        2,
        repeat,
        True,
        sys.executable,
        tmp_path,
        5.0,
    )


def test_engines_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = list[str]()

    def measure(plan: Plan, engine: object, limit: int) -> Measured:
        order.append(f"{engine.name} {limit // GIB}")  # type: ignore[attr-defined]
        return Measured()

    monkeypatch.setattr(rounds, "measure", measure)
    monkeypatch.setattr(rounds, "_ask_the_planner", lambda plan, found, say: None)
    found = Found()
    rounds.run(plan(tmp_path), found, lambda text: None, lambda found: None)
    forth = ["deepmnn 2", "ik_llama 2", "deepmnn 4", "ik_llama 4"]
    assert order == ["deepmnn 0", *forth, *reversed(forth)]
    assert (tmp_path / "ids").read_text() == "1 2 3 4 5"
    assert len(found.rows[2 * GIB]["ik_llama"]) == 2


def test_a_page_tells_speeds_reads_and_failures(tmp_path: Path) -> None:
    def measured(seconds: float, **fields: object) -> Measured:
        phases = {
            "load": Phase(1.0),
            "prefill": Phase(seconds, 512, 4 * 10**9),
            "decode": Phase(seconds, 256, 10**9, cpu_seconds=seconds),
        }
        return Measured(phases, 2 * GIB, disk=2e9, **fields)  # type: ignore[arg-type]

    found = Found({"deepmnn": "1", "ik_llama": "2"})
    own = {"decode": {"wait_seconds": 3.0, "expert_hits": 30, "expert_misses": 10}}
    found.add(4 * GIB, "deepmnn", measured(4.0, same_bits=True, distinct=200, own=own))
    found.add(4 * GIB, "ik_llama", measured(8.0))
    found.add(2 * GIB, "ik_llama", Measured(failure="killed: the group was out of memory"))
    found.expected[4 * GIB] = Expected(64.0, 80.0, 0.5, 60.0)
    text = page(plan(tmp_path), found, {"date": "today"})
    assert "| decode, tok/s | **64** | 32 | 2.00 × |" in text
    assert "| read per decoded token, MB | 3.9 | 3.9 |  |" in text
    assert "| disk in prefill | 50% | 25% |  |" in text
    assert "| of the bound, decode | 25% |  |  |" in text  # computes for 1 s, reads for 0.5
    assert "| 4 GiB | 128 | 64 (-50%) | 64 | 80 (+25%) | 75% | 50% | 60 (-6%) |" in text
    assert "| same bits | yes |  |  |" in text
    assert "- ik_llama.cpp: killed: the group was out of memory" in text
    assert "| disk, GB/s | 2.00 | 2.00 |  |" in text
    assert text.index("## 2 GiB") < text.index("## 4 GiB")
    assert rate([], "decode") is None


def test_limits_and_pairs_are_read_or_refused() -> None:
    assert _limits("2,3.2GiB") == [2 * GIB, int(3.2 * GIB) // PAGE * PAGE]
    assert [limit_name(limit) for limit in (int(3.2 * GIB), NO_LIMIT)] == ["3.2 GiB", "no limit"]
    for wrong in ("two", "0", ""):
        with pytest.raises(RequestError):
            _limits(wrong)
    assert _pairs(["bigmoe=--io-threads 8"], "option", ("bigmoe",)) == {"bigmoe": "--io-threads 8"}
    with pytest.raises(RequestError):
        _pairs(["other=1"], "option", ("bigmoe",))
    assert set(DEFAULT.split(",")) <= {engine.name for engine in ENGINES}
