"""A profile as it is shown: the trace's format, the page, the command lines."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner

from deepmnn.cli import app
from deepmnn.exporters.mnn.export import export
from deepmnn.inspect.profile import Profile, measure, profile
from deepmnn.inspect.profile.page import page
from deepmnn.inspect.profile.trace import Trace, chrome
from deepmnn.measure.benchmark import Machine
from tiny_artifact import tiny_artifact
from tiny_llm import IDS, load

HOSTILE = "</title></style></svg><script>alert(1)</script>\"'><img src=x onerror=alert(1)>\x1b[31m"
MACHINE = Machine(2, "none", read_bandwidth=1e10, int8_macs=1e11, f32_macs=2e10)
VOID = {"meta", "br", "img", "hr", "link", "input"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that needs no second to be measured."""
    monkeypatch.setattr(measure, "measure_machine", lambda model: MACHINE)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("shown"), quant="w8")


@pytest.fixture(scope="module")
def found(artifact: Path) -> Profile:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "measure_machine", lambda model: MACHINE)
        return profile(load(artifact, "cpu", threads=2), IDS * 3, repeat=12, batch=2, trace=True)


# ---------------------------------------------------------------------------- trace


def test_the_trace_is_what_the_format_says(found: Profile) -> None:
    """The rules of "Trace Event Format", for complete and metadata events."""
    assert found.trace is not None
    made = json.loads(json.dumps(chrome(found.trace, "a model")))
    assert isinstance(made["traceEvents"], list)
    assert made["displayTimeUnit"] in ("ms", "ns")
    threads: dict[int, list[dict[str, Any]]] = {}
    for event in made["traceEvents"]:
        assert event["ph"] in ("X", "M")
        assert isinstance(event["name"], str)
        assert event["name"]
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert isinstance(event["args"], dict)
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name", "thread_sort_index")
            continue
        assert isinstance(event["cat"], str)
        assert event["ts"] >= 0
        assert event["dur"] >= 0
        threads.setdefault(event["tid"], []).append(event)
    assert {0, 1} >= set(threads)
    for events in threads.values():
        open_until: list[float] = []
        for event in events:  # in the order in which they begin, the outer one first
            begin, end = event["ts"], event["ts"] + event["dur"]
            while open_until and open_until[-1] <= begin + 1e-3:
                open_until.pop()
            assert not open_until or end <= open_until[-1] + 1e-3, event
            open_until.append(end)
        times = [event["ts"] for event in events]
        assert times == sorted(times)


def test_the_trace_has_steps_ops_and_what_each_thread_did(found: Profile, artifact: Path) -> None:
    assert found.trace is not None
    nodes = {node.name for node in load(artifact, "cpu").artifact.graph().nodes}
    engine, *workers = found.trace.threads
    steps = [event for event in engine.events if event.name == "engine's step"]
    ops = [event for event in engine.events if event.category == "op"]
    assert {event.name for event in ops} == nodes
    assert len(ops) == len(nodes) * len(steps)
    names = {event.name for event in engine.events}
    assert {"prefill", "decode", "scheduler", "sampler", "batch", "binding", "sampling"} <= names
    assert {"checks", "rope tables", "placing"} <= names
    decode = next(event for event in engine.events if event.name == "decode")
    inside = [s for s in steps if s.begin >= decode.begin and s.end <= decode.end]
    assert len(inside) == measure.TRACE_STEPS
    for thread in workers:
        assert all(event.category == "pieces" for event in thread.events)
        assert {event.name for event in thread.events} <= {"own part", "stolen"}
        assert all(
            event.facts["of"] in nodes | {"rope tables", "sampling"} for event in thread.events
        )
    assert found.trace.lost == 0


def test_a_trace_says_what_it_had_no_room_for(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "TRACE_SPANS", 16)
    made = profile(load(artifact, "cpu", threads=1), IDS, repeat=1, trace=True).trace
    assert made is not None
    assert made.lost > 100
    assert chrome(made, "")["otherData"]["lost_spans"] == made.lost


# ---------------------------------------------------------------------------- page


class Page(HTMLParser):
    """Parses strictly: every tag is closed in its order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.update([tag, *(name for name, _ in attrs)])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.update([tag, *(name for name, _ in attrs)])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_nobody_for_anything(found: Profile) -> None:
    text = page(found)
    parsed = Page(text)
    assert not parsed.names & {"script", "img", "link", "src", "href", "iframe"}
    assert not re.search(r"https?:|url\(|@import", text)
    drawings = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(drawings) == 3, "a roofline and two flame charts"
    for drawing in drawings:
        for element in ElementTree.fromstring(drawing).iter():
            assert not any(re.search("nan|inf", value) for value in element.attrib.values())
    for kind in found.decode.kinds:
        assert kind.op in text
    for owner in found.decode.memory:
        assert owner.name in text


def test_widths_of_the_flame_chart_are_shares(found: Profile) -> None:
    """Of what is directly under the phase: they fill it."""
    drawing = re.findall(r"<svg.*?</svg>", page(found), re.S)[1]
    rects = [e for e in ElementTree.fromstring(drawing).iter() if e.tag == "rect"]
    rows: dict[float, float] = {}
    for rect in rects:
        top = float(rect.attrib["y"])
        rows[top] = rows.get(top, 0.0) + float(rect.attrib["width"]) + 0.6
    tops = sorted(rows)
    assert rows[tops[0]] == pytest.approx(1000)
    assert rows[tops[1]] == pytest.approx(1000, rel=0.01)
    ops = sum(node.share for node in found.prefill.nodes)
    assert rows[tops[3]] == pytest.approx(1000 * ops, rel=0.05)


def test_a_hostile_name_stays_text(found: Profile) -> None:
    kind = replace(found.decode.nodes[0], name=HOSTILE, op=HOSTILE)
    phase = replace(found.decode, nodes=(kind,), kinds=(kind,), layers=(replace(kind, op=""),))
    text = page(replace(found, model=HOSTILE, model_type=HOSTILE, decode=phase, notes=(HOSTILE,)))
    assert not Page(text).names & {"script", "img"}
    assert "\x1b" not in text


def test_other_backends_have_a_page_too(found: Profile) -> None:
    bare = [
        replace(phase, nodes=(), kinds=(), layers=(), threads=(), rss=0, peak_rss=0)
        for phase in found.phases
    ]
    made = replace(found, backend="mnn", prefill=bare[0], decode=bare[1], notes=("a note",))
    text = page(made)
    Page(text)
    assert "a note" in text
    assert Page(page(replace(made, backend="reference", machine=None))).names


# ---------------------------------------------------------------------------- command lines


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["profile", *map(str, arguments)], catch_exceptions=False)


def test_the_verb_prints_what_was_found(artifact: Path, tmp_path: Path) -> None:
    np.array(IDS, np.int32).tofile(tmp_path / "input.bin")
    flags = ["--input", tmp_path / "input.bin", "--repeat", 3, "--batch", 2, "--context", 40]
    html, trace = tmp_path / "out.html", tmp_path / "out.json"
    result = invoke(artifact, *flags, "--html", html, "--trace", trace, "--threads", 2)
    assert result.exit_code == 0, result.output
    for text in ("prefill:", "decode:", "mla_attention", "layer 1", "scheduler", "KV cache"):
        assert text in result.output
    assert "contexts of 41 to 43 tokens" in result.output
    Page(html.read_text())
    assert json.loads(trace.read_text())["traceEvents"]
    assert html.stat().st_mode & 0o077 or not (0o666 & ~0o022) & 0o077


def test_json_is_the_typed_result(artifact: Path) -> None:
    result = invoke(artifact, "--repeat", 2, "--json")
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    for name in ("prefill", "decode"):
        phase = made[name]
        shares = [each["share"] for each in (*phase["nodes"], *phase["parts"])]
        assert sum(shares) == pytest.approx(1)
        assert phase["tokens_per_second"] > 0
        assert {"limits", "busy", "stealing", "waiting", "stolen"} <= set(phase["kinds"][0])
    assert made["machine"]["f32_macs"]


def test_what_cannot_be_written_is_refused_before_anything_runs(
    artifact: Path, tmp_path: Path
) -> None:
    result = invoke(artifact, "--trace", tmp_path / "nowhere" / "out.json")
    assert result.exit_code == 1
    assert "is no directory" in result.output
    kept = tmp_path / "notes.html"
    kept.write_text("mine")
    for flags in (("--html", kept, "--overwrite"), ("--trace", kept, "--overwrite")):
        result = invoke(artifact, *flags)
        assert result.exit_code == 1
        assert "exists" in result.output
        assert kept.read_text() == "mine"


@pytest.mark.parametrize("kind", ["mnn", "converted"])
def test_the_articles_command(artifact: Path, tmp_path: Path, kind: str) -> None:
    """As it is written, in a directory with both files."""
    np.array(IDS, np.int32).tofile(tmp_path / "input.bin")
    if kind == "mnn":
        pytest.importorskip("MNN")
        export(artifact, tmp_path, stem="deepseek")
        model = "deepseek.mnn"
    else:
        model = str(artifact)
    command = [sys.executable, "-m", "mnn_tools", "profile", "--model", model]
    command += ["--input", "input.bin", "--repeat", "100"]
    if kind == "mnn":  # whose threads spin for one another where others need the processors too
        command += ["--threads", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "prefill:" in done.stdout
    assert "decode:" in done.stdout
    assert ("note: MNN runs a step as one call" in done.stdout) == (kind == "mnn")


def test_the_articles_command_says_what_it_lacks() -> None:
    command = [sys.executable, "-m", "mnn_tools", "profile"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--model" in done.stderr


def test_a_trace_may_be_empty() -> None:
    assert chrome(Trace(()), "nothing")["traceEvents"][0]["args"] == {"name": "nothing"}
