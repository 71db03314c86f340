"""The whole run, with engines that only pretend: order, reuse, and one failing alone."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.peers import __main__ as program
from bench.peers import rounds
from bench.peers.child import ChildError, Peer
from bench.peers.engine import Case, Measured
from bench.peers.limits import Machine
from bench.peers.models import STAMP, Models, Shape
from bench.peers.rounds import Plan, run

from deepmnn.errors import ConfigError, RequestError

CASES = (Case(3, repeat=2), Case(2, batch=3, steps=2))

ENGINE = """
import json, os, sys
from pathlib import Path
TITLE, SETTINGS, BUILDER, NEEDS = "{name}", "pretended", "pretenders.{builder}", "{needs}"
def version(source):
    return {version!r}
def refuses(config):
    return "too odd" if config["vocab_size"] % 2 else ""
def exceeds(isa, source):
    assert isa == "avx2"
    return "too new" if "{name}" == "sharing" else ""
def build(config, out, needed, source):
    if "{name}" == "unbuilt":
        (out / "half").write_text("half")
        raise ValueError("cannot build")
    (out / "model").write_text("{name} of " + (Path(needed).read_text() if needed else "nothing"))
    return "model"
def load(model, threads, source):
    if "{name}" == "crashing":
        raise MemoryError("too large")
    if "{name}" == "freezing" and sys.argv[1] == "cold":
        raise OSError("too cold")
    assert model.read_text().startswith("{builder} of")
    return Session()
class Session:
    most = None
    def reserve(self, batch, tokens): pass
    def start(self, prompts): assert all(t < 10 for ids in prompts for t in ids)
    def step(self, tokens): pass
"""

VERSION, BASE = "1", "pretenders.base"
PRETENDERS = {
    "base": ("base", "", VERSION),
    "derived": ("derived", BASE, VERSION),
    "sharing": ("base", "", VERSION),
    "crashing": ("base", "", VERSION),
    "freezing": ("base", "", VERSION),
    "unbuilt": ("unbuilt", "", VERSION),
    "absent": ("absent", "", None),
}


@pytest.fixture(autouse=True, scope="module")
def pretenders(tmp_path_factory: pytest.TempPathFactory) -> object:
    place = tmp_path_factory.mktemp("pretenders")
    (place / "pretenders").mkdir()
    for name, (builder, needs, version) in PRETENDERS.items():
        fields = {"name": name, "builder": builder, "needs": needs, "version": version}
        text = ENGINE.format(**fields)
        (place / "pretenders" / f"{name}.py").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(place))
        patch.syspath_prepend(place)
        importlib.invalidate_caches()
        yield


@pytest.fixture(autouse=True, scope="module")
def one_machine(pretenders: object) -> object:
    """A second's measurement, once for all runs."""
    measured: list[Machine] = []

    def machine(plan: Plan, measure: Callable[[Plan], Machine] = rounds._machine) -> Machine:
        if not measured:
            measured.append(measure(plan))
        return measured[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "_machine", machine)
        yield


def shape(tmp_path: Path, name: str = "even", vocab_size: int = 10) -> Shape:
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps({"vocab_size": vocab_size}))
    return Shape.read(path)


def peer(name: str) -> Peer:
    return Peer(f"pretenders.{name}", sys.executable)


def models(tmp_path: Path, heard: list[str]) -> Models:
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    return Models(work, sys.executable, 60, heard.append)


def plan(tmp_path: Path, names: list[str], repeat: int = 1) -> Plan:
    shapes = [shape(tmp_path), shape(tmp_path, "odd", 11)]
    return Plan(shapes, [peer(name) for name in names], CASES, 1, repeat, 60, sys.executable)


SIZES = {"even": 1, "odd": 1}


def test_engines_run_in_order_then_in_reverse(tmp_path: Path) -> None:
    heard, saved = list[str](), list[int]()
    what = plan(tmp_path, ["base", "derived", "absent"], repeat=2)
    made = models(tmp_path, heard)
    found = run(what, made, SIZES, heard.append, lambda f: saved.append(len(f.machines)))
    turns = [line.split(": ")[1] for line in heard if line.startswith("round")]
    assert turns == [f"pretenders.{n}" for n in ("base", "derived", "derived", "base")]
    assert "absent: missing, see bench/README.md" in heard
    assert found.versions["pretenders.absent"] is None
    assert "pretenders.absent" not in found.rounds["even"]
    assert found.rounds["odd"] == {f"pretenders.{n}": ["too odd"] for n in ("base", "derived")}
    for results in found.rounds["even"].values():
        assert len(results) == 2
        for result in results:
            assert isinstance(result, Measured)
            assert [len(t.seconds) for t in result.timings.values()] == [2, 2]
            assert result.load_seconds > 0 < result.own_nbytes <= result.peak_nbytes
    assert saved == [1, 1, 3, 3]  # the machine, once for each shape and round
    assert all(1e9 < machine.read_bandwidth < 1e13 for machine in found.machines)


def test_one_that_fails_stops_no_other(tmp_path: Path) -> None:
    heard = list[str]()
    what = plan(tmp_path, ["crashing", "unbuilt", "base"])
    found = run(what, models(tmp_path, heard), SIZES, heard.append, lambda f: None)
    results = found.rounds["even"]
    assert results["pretenders.crashing"] == ["exit code 1: MemoryError: too large"]
    assert results["pretenders.unbuilt"] == ["no model: exit code 1: ValueError: cannot build"]
    assert isinstance(results["pretenders.base"][0], Measured)


def test_a_cold_start_is_a_process_of_its_own_and_fails_alone(tmp_path: Path) -> None:
    made = models(tmp_path, [])
    found = run(plan(tmp_path, ["base", "freezing"]), made, SIZES, print, lambda f: None)
    base, freezing = (found.rounds["even"][f"pretenders.{n}"][0] for n in ("base", "freezing"))
    assert isinstance(base, Measured)
    assert base.cold.nbytes > 0
    assert bool(base.cold.missing) == (base.cold.seconds is None)  # some systems cannot drop files
    assert isinstance(freezing, Measured)
    if not base.cold.missing:
        assert freezing.cold.missing == "exit code 1: OSError: too cold"
    assert all(timing.seconds for timing in freezing.timings.values())


def test_engines_beyond_the_instruction_set_are_left_out(tmp_path: Path) -> None:
    what = replace(plan(tmp_path, ["sharing", "absent", "base"]), isa="avx2")
    found = run(what, models(tmp_path, []), SIZES, print, lambda f: None)
    assert found.rounds["even"]["pretenders.sharing"] == ["too new"]
    assert isinstance(found.rounds["even"]["pretenders.base"][0], Measured)
    assert found.rounds["odd"]["pretenders.base"] == ["too odd"]


def test_an_instruction_set_holds_for_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPMNN_ISA", "scalar")
    program.hold_to("avx2")
    assert os.environ["DEEPMNN_ISA"] == "avx2"
    program.hold_to("")
    assert "DEEPMNN_ISA" not in os.environ
    with pytest.raises(RequestError, match="--isa 'avx9'; expected one of avx2"):
        program.hold_to("avx9")


def test_models_are_built_once_shared_and_made_of_one_another(tmp_path: Path) -> None:
    heard, even = list[str](), shape(tmp_path)
    made = models(tmp_path, heard)
    derived = made.of(peer("derived"), even, 1)
    assert derived.read_text() == "derived of base of nothing"
    assert made.of(peer("sharing"), even, 1) == made.of(peer("base"), even, 1)
    assert made.of(peer("derived"), even, 1) == derived
    assert [line.split()[-1] for line in heard] == ["pretenders.base", "pretenders.derived"]
    even.path.write_text(json.dumps({"vocab_size": 12}))
    made.of(peer("base"), even, 1)
    assert len(heard) == 3, "another config is another model"


def test_a_failed_build_leaves_nothing_that_passes_for_a_model(tmp_path: Path) -> None:
    made = models(tmp_path, [])
    for _ in range(2):
        with pytest.raises(ChildError, match="cannot build"):
            made.of(peer("unbuilt"), shape(tmp_path), 1)
        left = [path for path in (tmp_path / "work").rglob("*") if path.is_file()]
        assert [path.name for path in left] == ["pretenders.unbuilt.log"]
    assert STAMP not in {path.name for path in left}


def test_a_disk_that_is_too_small_is_told_before_building(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")  # as shutil has it
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(5 * 10**9))
    with pytest.raises(ChildError, match=r"has 5\.0 GB free, the model takes 8\.5 GB"):
        models(tmp_path, []).of(peer("base"), shape(tmp_path), 8_500_000_000)


def test_flags_name_engines(tmp_path: Path) -> None:
    found = program.find_peers("mnn,ik_llama,mnn", ["mnn=/a/python"], [f"ik_llama={tmp_path}"])
    assert found == [Peer("mnn", "/a/python"), Peer("ik_llama", sys.executable, tmp_path)]


@pytest.mark.parametrize(
    ("names", "pythons", "sources", "message"),
    [
        ("mnn,onnx", [], [], "the engine 'onnx'; expected some of deepmnn_cpu, "),
        ("mnn", ["mnn"], [], "--python 'mnn'; expected ENGINE=PATH"),
        ("mnn", ["onnx=python"], [], "--python 'onnx=python'; expected ENGINE=PATH"),
        ("mnn", [], ["mnn=/no/where"], "--source mnn=/no/where; expected a directory"),
    ],
)
def test_wrong_flags(names: str, pythons: list[str], sources: list[str], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        program.find_peers(names, pythons, sources)
    assert message in str(caught.value)


def test_shapes_are_names_or_files(tmp_path: Path) -> None:
    given = shape(tmp_path)
    found = program.find_shapes(f"deepseek-v2-lite,{given.path}")
    assert [s.name for s in found] == ["deepseek-v2-lite", "even"]
    assert found[0].config["kv_lora_rank"] == 512
    with pytest.raises(RequestError, match=r"the shape 'v3'; expected one of deepseek-v2-lite, "):
        program.find_shapes("v3")
    with pytest.raises(ConfigError, match="is missing"):
        program.find_shapes(str(tmp_path / "none.json"))
