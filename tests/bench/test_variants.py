"""deepmnn's own variants: optimisation levels and formats of weights, on a tiny model."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import typer

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.peers.child import ChildError
from bench.peers.engine import Case, Measured
from bench.peers.models import Shape, find_shapes
from bench.peers.results import Column, column
from typer.testing import CliRunner

from bench import levels, schemes, variants
from deepmnn.errors import RequestError, StorageError
from tiny_artifact import CONFIG, write_config

CASES = (Case(9, repeat=2), Case(4, steps=3))


@pytest.fixture
def shape(tmp_path: Path) -> Shape:
    write_config(tmp_path / "tiny", tokenizer=False)
    return Shape.read(tmp_path / "tiny" / "config.json")


def measured(rate: float) -> dict[str, Any]:
    timings = {
        variants.PREFILL.name: {"seconds": [512 / rate]},
        variants.DECODE.name: {"seconds": [1 / rate] * 3},
    }
    made = {"load_seconds": 1.0, "peak_nbytes": 2_000_000_000, "own_nbytes": 500_000_000}
    return {**made, "timings": timings, "cold": {}}


def columns_of(rates: Mapping[str, float | str]) -> dict[str, Column]:
    return {
        name: column(name, variants.CASES, [r if isinstance(r, str) else Measured.of(measured(r))])
        for name, r in rates.items()
    }


def test_models_run_in_order_then_in_reverse(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[tuple[str, int]]()

    def answer(peer: object, verb: str, request: dict[str, Any], *rest: object) -> dict[str, Any]:
        assert (verb, request["threads"], request["vocab_size"]) == ("measure", 3, 99)
        asked.append((request["model"], request["seed"]))
        if request["model"] == "/two":
            raise ChildError("SIGKILL (out of memory?)")
        return measured(50 + 50 * request["seed"])

    monkeypatch.setattr(variants, "call", answer)
    heard = list[str]()
    paths = {"one": Path("/one"), "two": Path("/two")}
    found = variants.measure(paths, variants.CASES, 99, 3, 2, 60, heard.append)
    assert asked == [("/one", 0), ("/two", 0), ("/two", 1), ("/one", 1)]
    assert heard[0] == "round 1 of 2: one"
    assert found["one"].speeds[variants.DECODE.name].median == pytest.approx(75)
    assert (found["two"].speeds, found["two"].failure) == ({}, "SIGKILL (out of memory?)")


def test_a_model_is_really_measured(tmp_path: Path, shape: Shape) -> None:
    paths = {"w4": tmp_path / "w4"}
    schemes.convert(shape.path, paths["w4"], "w4", random_weights=True)
    found = variants.measure(paths, CASES, CONFIG["vocab_size"], 1, 1, 60, print)["w4"]
    assert found.failure == ""
    assert set(found.speeds) == {case.name for case in CASES}
    assert found.peak_nbytes is not None


def test_fewer_layers_are_another_config(tmp_path: Path) -> None:
    (whole,) = find_shapes("deepseek-v2-lite")
    assert variants.shortened(whole, None, tmp_path) is whole
    short = variants.shortened(whole, 3, tmp_path)
    assert short.name == whole.name
    assert short.config == {**whole.config, "num_hidden_layers": 3}
    assert json.loads(short.path.read_text()) == short.config
    for layers in (0, 28):
        with pytest.raises(RequestError, match=f"--layers {layers}; expected 1 to 27"):
            variants.shortened(whole, layers, tmp_path)


def test_nothing_is_left_in_the_workplace(tmp_path: Path) -> None:
    def interrupted() -> None:
        with variants.workplace(tmp_path / "work", "levels") as folder:
            (folder / "model").mkdir()
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert signal.getsignal(signal.SIGTERM) is before
    assert list((tmp_path / "work").iterdir()) == []
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match="file/work: Not a directory"),
        variants.workplace(tmp_path / "file" / "work", "levels"),
    ):
        pass


def test_the_levels(tmp_path: Path, shape: Shape) -> None:
    paths = levels.build(shape, "w4", tmp_path)
    names = [f"level {level}" for level in range(4)]
    assert list(paths) == names
    rates = dict(zip(names, (100.0, "too slow", 120.0, 145.0), strict=True))
    head, *rows = levels.table(shape.config, paths, columns_of(rates))
    assert head[-2:] == ["prefill 512, tok/s", "decode at 128, tok/s"]
    assert [row[-2:] for row in rows] == [
        ["100", "100"],
        ["too slow", "too slow"],
        ["120 (1.20 ×)", "120 (1.20 ×)"],
        ["145 (1.45 ×)", "145 (1.45 ×)"],
    ]
    assert [row[4] for row in rows] == ["2.00 (0.50)", "", "2.00 (0.50)", "2.00 (0.50)"]
    nodes = [int(row[1].split()[0]) for row in rows]
    layer = [int(row[2]) for row in rows]
    assert nodes[0] > nodes[2] >= nodes[3]
    assert layer[0] > layer[2] >= layer[3] > 0
    assert rows[2][1].endswith(f"(−{1 - nodes[2] / nodes[0]:.0%})")
    activations = [float(row[3]) for row in rows]
    assert activations[3] < activations[0] / 2
    done = list(levels.passes(paths["level 3"]))
    assert any(line.startswith("- fuse_swiglu: ") and " rewrites, " in line for line in done)
    assert levels.last_layer_nodes({**shape.config, "num_hidden_layers": 1}, 0) == 0


def test_the_schemes(tmp_path: Path, shape: Shape) -> None:
    paths = schemes.build(shape, tmp_path)
    rates = {"fp32": 10.0, "bf16": 20.0, "w8": 35.0, "w4": 60.0}
    right = {"fp32": 0.98, "bf16": 0.98, "w8": 0.97, "w4": 0.982}
    head, *rows = schemes.table(paths, columns_of(rates), right)
    assert head[-1] == "right answers"
    assert [row[0] for row in rows] == ["fp32", "bf16", "w8", "w4"]
    assert [row[-1] for row in rows] == [
        "98.0%",
        "98.0% (+0.0)",
        "97.0% (-1.0)",
        "98.2% (+0.2)",
    ]
    assert [row[-2] for row in rows] == ["10.0", "20.0 (2.00 ×)", "35.0 (3.50 ×)", "60.0 (6.00 ×)"]
    head, *rows = schemes.table(paths, columns_of(rates), {})
    assert head[-1] == "decode at 128, tok/s"


@pytest.mark.slow
def test_tiny_r1_is_asked_the_same_problems_in_every_scheme(tmp_path: Path) -> None:
    asked = schemes.problems(3)
    assert asked == schemes.problems(3)
    assert len(schemes.problems(10**6)) > 100
    found = schemes.scores(tmp_path, asked, 2)
    assert list(found) == list(schemes.SCHEMES)
    assert all(0 <= score <= 1 for score in found.values())
    assert schemes.scores(tmp_path, [], 2) == {}


@pytest.mark.parametrize(("script", "rows"), [(levels, 4), (schemes, 4)])
def test_the_page(
    tmp_path: Path, shape: Shape, monkeypatch: pytest.MonkeyPatch, script: Any, rows: int
) -> None:
    names = [f"level {n}" for n in range(4)] if script is levels else list(schemes.SCHEMES)
    fake = columns_of(dict.fromkeys(names, 50.0))
    monkeypatch.setattr(script, "measure", lambda *arguments: fake)
    monkeypatch.setattr(schemes, "scores", lambda *arguments: {})
    app = variants_app(script)
    arguments = [str(shape.path), "--layers", "1", "--work", str(tmp_path / "work")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("# ")
    assert "| shape | config, layers: 1 |" in lines
    assert any(line.startswith("| limits | reads ") for line in lines)
    table = [line for line in lines if line.count("|") > 5]
    assert len(table) == 2 + rows
    assert list((tmp_path / "work").iterdir()) == []
    failed = CliRunner().invoke(app, [str(shape.path), "--layers", "7", "--work", str(tmp_path)])
    assert failed.exit_code == 1
    assert "1 to 2, the layers of config" in failed.stderr


def variants_app(script: Any) -> typer.Typer:
    app = typer.Typer()
    app.command()(script.main)
    return app
