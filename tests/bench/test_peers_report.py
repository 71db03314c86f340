"""From raw times to the page: speeds, ratios, shares, what is missing and what failed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.peers import host, plot, table
from bench.peers.child import Peer
from bench.peers.engine import Case, Cold, Measured, Timing
from bench.peers.host import Host
from bench.peers.limits import Costs, Machine, limit
from bench.peers.models import Shape
from bench.peers.report import Report
from bench.peers.results import as_json, best_peer, column, cost_ratio, ratio, speed
from bench.peers.rounds import Found, Plan

from deepmnn.errors import StorageError

CONFIGS = Path(__file__).parents[2] / "bench" / "configs"
PREFILL, DECODE, BATCH = Case(100, repeat=3), Case(100, steps=4), Case(50, batch=4, steps=2)
CASES = (PREFILL, DECODE, BATCH)
MACHINE = Machine(read_bandwidth=50e9, int8_macs=8e11, f32_macs=2e11)


def measured(rate: float, batching: bool = True, load: float = 1.0) -> Measured:
    """One round of an engine that runs `rate` tokens per second whatever it does."""
    timings = {
        PREFILL.name: Timing([100 / rate, 100 / rate, 900 / rate]),
        DECODE.name: Timing([1 / rate] * 4),
        BATCH.name: Timing([4 / rate] * 2) if batching else Timing(missing="no batching"),
    }
    cold = Cold(4 * load, 3 * load, 1_000) if batching else Cold(missing="9% of its files stay")
    return Measured(load, 3_000_000_000, 1_000_000_000, timings, cold)


def test_prefill_takes_the_median_of_repetitions_and_of_rounds() -> None:
    rounds = [[1.0, 2.0, 9.0], [4.0], [0.5, 0.5]]
    found = speed(Case(8, batch=3), rounds)
    rates = [24 / np.median(times) for times in rounds]
    assert (found.median, found.low, found.high) == (np.median(rates), min(rates), max(rates))
    assert found.step_ms is found.step_sd_ms is None


def test_decode_takes_every_step_and_the_deviation_inside_rounds() -> None:
    rng = np.random.default_rng(0)
    rounds = [offset + rng.random(16) for offset in (1, 5, 3)]
    found = speed(Case(8, batch=16, steps=16), [times.tolist() for times in rounds])
    assert found.median == pytest.approx(16 / rounds[2].mean())
    assert found.high == pytest.approx(16 / rounds[0].mean())
    assert found.step_ms == pytest.approx(1e3 * np.mean(rounds))
    assert found.step_sd_ms == pytest.approx(1e3 * np.sqrt(np.mean(np.var(rounds, axis=1))))


def test_ratios_are_to_the_best_peer_of_each_case() -> None:
    ours = column("deepmnn_cpu", CASES, [measured(300)])
    quick = column("openvino", CASES, [measured(200), measured(100), measured(250)])
    single = column("mnn", CASES, [measured(240, batching=False)])
    columns = [ours, quick, single]
    assert [best_peer(columns, case) for case in CASES] == [single, single, quick]
    assert ratio(columns, "deepmnn_cpu", DECODE) == pytest.approx(300 / 240)
    assert ratio(columns, "openvino", DECODE) == pytest.approx(200 / 240)
    assert ratio(columns, "mnn", DECODE) == 1
    assert ratio(columns, "mnn", BATCH) is None
    assert ratio([ours], "deepmnn_cpu", DECODE) is None
    assert single.missing == {BATCH.name: "no batching"}


def test_seconds_and_bytes_are_compared_with_the_least_of_the_peers() -> None:
    columns = [
        column("deepmnn_cpu", CASES, [measured(1, load=1), measured(1, load=3)]),
        column("mnn", CASES, [measured(1, batching=False, load=1)]),
        column("openvino", CASES, [measured(1, load=4)]),
        column("llama_cpp", CASES, ["gone"]),
    ]
    assert cost_ratio(columns, "deepmnn_cpu", "load_seconds") == 2
    assert cost_ratio(columns, "deepmnn_cpu", "cold_seconds") == pytest.approx(8 / 16)
    assert cost_ratio(columns, "openvino", "peak_nbytes") == 1
    assert cost_ratio(columns, "mnn", "cold_seconds") is None
    assert cost_ratio(columns[:1], "deepmnn_cpu", "load_seconds") is None
    assert columns[0].disk_seconds == pytest.approx(6)
    assert columns[1].cold_missing == "9% of its files stay"


def test_a_round_that_failed_is_told_and_the_others_count() -> None:
    found = column("mnn", CASES, [measured(10), "no answer within 9 s", measured(30)])
    assert found.failure == "no answer within 9 s"
    assert found.speeds[DECODE.name].median == pytest.approx(20)
    nothing = column("mnn", CASES, ["SIGKILL"])
    assert (nothing.speeds, nothing.failure, nothing.load_seconds) == ({}, "SIGKILL", None)


def test_json_has_shares_of_the_limit() -> None:
    columns = [column("deepmnn_cpu", CASES, [measured(300)]), column("mnn", CASES, ["gone"])]
    limits = {case.name: 600.0 for case in CASES}
    found: Any = json.loads(json.dumps(as_json(columns, CASES, limits)))
    ours = found["engines"]["deepmnn_cpu"]["cases"]
    assert [ours[case.name]["share"] for case in CASES] == pytest.approx([0.5] * 3)
    assert ours[DECODE.name]["ratio"] is None
    assert found["engines"]["mnn"]["failure"] == "gone"


def test_the_table() -> None:
    columns = [
        column("deepmnn_cpu", CASES, [measured(300), measured(280)]),
        column("mnn", CASES, [measured(240, batching=False, load=2.5)]),
        column("openvino", CASES, ["exit code 1"]),
    ]
    limits = {PREFILL.name: 1000.0, DECODE.name: 500.0, BATCH.name: 1160.0}
    assert table.table(columns, CASES, limits) == [
        "| tok/s | deepmnn | MNN | deepmnn / best peer | limit |",
        "| --- | --- | --- | --- | --- |",
        "| prefill 100 | **290** 280–300 (29%) | 240 (24%) | 1.21 × MNN | 1000 |",
        "| decode at 100 | **290** 280–300 (58%) | 240 (48%) | 1.21 × MNN | 500 |",
        "| decode at 50, batch 4 | **290** 280–300 (25%) | no batching |  | 1160 |",
        "| step, decode at 100, ms | 3.5 ± 0.0 | 4.2 ± 0.0 |  |  |",
        "| step, decode at 50, batch 4, ms | 13.8 ± 0.0 |  |  |  |",
        "| load, s | 1.00 | 2.50 | 0.40 × MNN |  |",
        "| cold first token, s | 4.00 (disk 3.00) | 9% of its files stay |  |  |",
        "| memory (own), GB | 3.0 (1.0) | 3.0 (1.0) | 1.00 × MNN |  |",
    ]
    assert table.table(columns[2:], CASES, limits) == ["Nothing ran."]


def dense_weights(config: dict[str, Any]) -> int:
    """Matrix elements of one Qwen2 layer, by its paper."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    kv = hidden // heads * config["num_key_value_heads"]
    return hidden * (2 * hidden + 2 * kv + 3 * config["intermediate_size"])


def test_the_limit_is_the_slower_of_memory_and_arithmetic() -> None:
    config = json.loads((CONFIGS / "r1-distill-qwen-1.5b.json").read_text())
    costs, layers = Costs.of(config), config["num_hidden_layers"]
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    body, head = layers * dense_weights(config), vocab * hidden
    attention = 2 * layers * hidden  # per token and cached row: q · k, then times v

    late = hidden * hidden + 3 * hidden * config["intermediate_size"]  # after the last attention
    macs = 512 * (body - late + attention * 256) + late + head
    assert limit(costs, MACHINE, Case(512)) == pytest.approx(512 * 8e11 / macs, rel=1e-3)

    macs = 16 * (body + attention * 160 + head)
    slow = Machine(1e15, 8e11)
    assert limit(costs, slow, Case(128, 16, 64)) == pytest.approx(16 * 8e11 / macs, rel=1e-3)

    bits = 4 + 16 / 256  # codes, and scales of 256 of them
    rows = 2 * layers * hidden // 6 * 2 * 160
    nbytes = (body + head) * bits / 8 + rows
    assert limit(costs, MACHINE, Case(128, 1, 64)) == pytest.approx(50e9 / nbytes, rel=5e-3)
    assert costs.weights_nbytes == pytest.approx((body + head) * bits / 8 + head, rel=0.02)


def test_latent_attention_reads_prompts_with_whole_keys() -> None:
    costs = Costs.of(json.loads((CONFIGS / "deepseek-v2-lite.json").read_text()))
    assert costs.prefill.context_macs == 27 * 16 * (128 + 64 + 128)
    assert costs.decode.context_macs == 27 * 16 * (512 + 64 + 512)
    assert costs.prefill.dense_macs == costs.decode.dense_macs
    assert 8e9 < costs.weights_nbytes < 9e9
    one, sixteen = (limit(costs, MACHINE, Case(128, batch, 64)) for batch in (1, 16))
    assert one < sixteen < 16 * one  # sixteen tokens use more experts than one


def found_and_report(tmp_path: Path, isa: str = "") -> tuple[Found, Report]:
    shape = Shape.read(CONFIGS / "r1-distill-qwen-1.5b.json")
    peers = [Peer("deepmnn_cpu", "python"), Peer("mnn", "python"), Peer("openvino", "python")]
    plan = Plan([shape], peers, CASES, 2, 1, 60.0, "python", isa)
    versions = {"deepmnn_cpu": "0.1.0", "mnn": "3.6.1", "openvino": None}
    rounds = {shape.name: {"deepmnn_cpu": [measured(30)], "mnn": ["SIGSEGV"]}}
    found = Found(versions, [Machine(40e9, 7e11, 2e11), Machine(50e9, 6e11, 1e11)], rounds)
    return found, Report(tmp_path, plan, {shape.name: Costs.of(shape.config)}, 0.1)


def test_the_page_names_what_is_missing_and_what_failed(tmp_path: Path) -> None:
    found, report = found_and_report(tmp_path)
    report.save(found)
    page = (tmp_path / "peers.md").read_text()
    assert "- OpenVINO GenAI: missing, see bench/README.md\n" in page
    assert "- MNN (3.6.1): " in page
    assert "\n- MNN: SIGSEGV\n" in page
    limits = "reads 50.0 GB/s, 700 G int8 and 200 G f32 multiply-accumulates/s"
    assert f"| limits | {limits} |\n" in page
    assert page.startswith("# deepmnn beside its peers\n")
    fields = json.loads((tmp_path / "peers.json").read_text())
    assert fields["raw"]["rounds"]["r1-distill-qwen-1.5b"]["mnn"] == ["SIGSEGV"]
    assert Measured.of(fields["raw"]["rounds"]["r1-distill-qwen-1.5b"]["deepmnn_cpu"][0])
    assert {path.suffix for path in tmp_path.iterdir()} <= {".md", ".json", ".svg"}


def test_the_page_says_where_and_how_it_was_made(tmp_path: Path) -> None:
    found, report = found_and_report(tmp_path, "avx2")
    report.save(found)
    page = (tmp_path / "peers.md").read_text()
    assert page.startswith("# deepmnn beside its peers, limited to AVX2\n")
    for name in ("date", "processor", "cores", "memory", "system", "instruction set", "threads"):
        assert f"\n| {name} | " in page
    assert table.NOTES in page
    fields = json.loads((tmp_path / "peers.json").read_text())
    assert fields["host"]["memory_nbytes"] > 0
    assert fields["isa"] == "avx2"


def test_the_machine_is_read_from_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "processor : 0\nmodel name\t: A CPU\nflags\t: fpu avx2 avx512f\n\nmodel name : B\n"
    (tmp_path / "cpuinfo").write_text(text)
    for cpu, siblings in enumerate(("0-1", "0-1", "2-3", "2-3")):
        place = tmp_path / f"cpu{cpu}" / "topology"
        place.mkdir(parents=True)
        (place / "thread_siblings_list").write_text(siblings)
    monkeypatch.setattr(host, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(host, "CPUS", tmp_path)
    found = Host.now()
    assert (found.processor, found.features, found.cores) == ("A CPU", ("avx2", "avx512f"), 2)
    monkeypatch.setattr(host, "CPUINFO", tmp_path / "none")
    monkeypatch.setattr(host, "CPUS", tmp_path / "none")
    assert Host.now().processor
    assert Host.now().cores == Host.now().hardware_threads


def test_a_report_that_cannot_be_written(tmp_path: Path) -> None:
    found, report = found_and_report(tmp_path / "nowhere")
    with pytest.raises(StorageError, match="nowhere: No such file"):
        report.save(found)


@pytest.mark.skipif(not plot.is_installed(), reason="matplotlib is not installed")
def test_the_picture_has_a_bar_for_each_speed(tmp_path: Path) -> None:
    from xml.etree import ElementTree

    found, report = found_and_report(tmp_path)
    _, columns, limits = report.figures(found)
    plot.plot(tmp_path / "one.svg", columns, CASES, limits)
    ElementTree.parse(tmp_path / "one.svg")
    assert (tmp_path / "one.svg").stat().st_size > 5000
