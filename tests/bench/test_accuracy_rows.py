"""Rows, from building a model in a process of its own to its place in the table."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.accuracy import llama_cpp, mnn
from bench.accuracy.judged import Stored, judged
from bench.accuracy.models import OURS, Inputs, Models, checkpoint_key
from bench.accuracy.rows import Judge, Row, saved
from bench.accuracy.score import Score, score
from bench.accuracy.table import as_json, cheaper, page, table
from bench.accuracy.texts import Texts, pieces, tokenizer_of
from bench.peers.child import Peer
from tests.bench import fake_judged

from deepmnn.conversion.bundled import CHECKPOINT
from deepmnn.errors import RequestError

FAKE = "tests.bench.fake_judged"
PIECES = [[1, 2, 3, 4, 5], [30, 20, 10]]


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    for name in ("checkpoint", "wanted", "work"):
        (tmp_path / name).mkdir()
    for name, value in (("pieces", PIECES), ("calibration", [[7, 8]])):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    for index, ids in enumerate(PIECES):
        np.save(tmp_path / "wanted" / f"{index}.npy", fake_judged.exact(ids))
    inputs = Inputs(tmp_path / "checkpoint", tmp_path / "calibration.json", tmp_path / "text")
    peers = {FAKE: Peer(FAKE, sys.executable)}
    models = Models(tmp_path / "work", inputs, peers, 1, 60, lambda text: None)
    return Judge(models, {}, tmp_path / "pieces.json", tmp_path / "wanted", tmp_path)


def builds(judge: Judge) -> list[str]:
    return (judge.models.inputs.checkpoint / "builds.log").read_text().split()


def test_a_row_is_scored_and_kept(judge: Judge) -> None:
    row = Row(FAKE, "near")
    model = judge.fill(row)
    assert model is not None
    made = json.loads(model.read_text())
    assert made == {"recipe": "near", "needed": ["model.json"], "calibration": [[7, 8]]}
    found = list(fake_judged.logits(model, PIECES, 1, None))
    assert row.score == score(saved(judge.wanted, 2), (np.float32(f) for f in found), PIECES)
    assert row.stored == Stored(300, 10, {"embedding": "table"})
    again = Row(FAKE, "near")
    judge.fill(again)
    assert again == row
    assert builds(judge) == ["base", "near"]


def test_what_the_model_was_made_from_is_shared_and_another_calibration_makes_it_anew(
    judge: Judge,
) -> None:
    for recipe in ("near", "far"):
        judge.fill(Row(FAKE, recipe))
    assert builds(judge) == ["base", "near", "far"]
    judge.models.inputs.calibration.write_text("[[9]]")
    judge.fill(Row(FAKE, "far"))
    assert builds(judge) == ["base", "near", "far", "base", "far"]


def test_other_text_is_scored_anew(judge: Judge) -> None:
    first, second = Row(FAKE, "far"), Row(FAKE, "far")
    judge.fill(first)
    judge.pieces.write_text(json.dumps([ids[::-1] for ids in PIECES]))
    for index, ids in enumerate(PIECES):
        np.save(judge.wanted / f"{index}.npy", fake_judged.exact(ids[::-1]))
    judge.fill(second)
    assert first.score != second.score


@pytest.mark.parametrize(
    ("recipe", "reason"), [("broken", "no such format"), ("nan", "its logits are not finite")]
)
def test_a_row_that_fails_says_why_and_leaves_nothing(
    judge: Judge, recipe: str, reason: str
) -> None:
    row = Row(FAKE, recipe)
    assert judge.fill(row) is None
    assert reason in row.missing
    assert row.score is None
    assert not list(judge.models.work.glob("*.partial"))
    assert row.name in page("title", {}, [row], 100, {FAKE: "1"})


def test_a_peer_that_is_missing_or_refuses_is_not_built(judge: Judge) -> None:
    absent = replace(judge.models, peers={FAKE: Peer(FAKE, "/no/such/python")})
    row = Row(FAKE, "near")
    assert replace(judge, models=absent, versions={}).fill(row) is None
    assert row.missing == "not installed"
    row = Row(FAKE, "near")
    assert replace(judge, config={"refused": {"near": "no experts"}}).fill(row) is None
    assert row.missing == "no experts"
    assert not (judge.models.inputs.checkpoint / "builds.log").exists()


def made(engine: str, recipe: str, nbytes: int, kl: float, **more: Any) -> Row:
    return Row(engine, recipe, Stored(nbytes, nbytes // 10), Score(kl, 9 * kl, 0.5, 7, 80), **more)


ROWS = [
    made(OURS, "w8", 1000, 0.004),
    made(OURS, "w5", 600, 0.02),
    made(OURS, "w4", 500, 0.03),
    made("llama_cpp", "Q8_0", 1000, 0.008),
    made("llama_cpp", "Q4_0", 599, 0.3),
    made("mnn", "3 bits", 499, 1.0),
    Row("openvino", "int8", missing="not installed"),
]


def test_a_peer_stands_beside_the_best_of_ours_that_is_no_larger() -> None:
    assert cheaper(ROWS[3], ROWS) is ROWS[0]
    assert cheaper(ROWS[4], ROWS) is ROWS[2]
    assert cheaper(ROWS[5], ROWS) is None
    lines = table(ROWS, weights=1000)
    names = [line.split(" | ")[0] for line in lines[2:]]
    assert names == [
        "| **deepmnn w8**",
        "| llama.cpp Q8_0",
        "| **deepmnn w5**",
        "| llama.cpp Q4_0",
        "| **deepmnn w4**",
        "| MNN 3 bits",
    ]
    assert lines[3].endswith("| w8: 0.50 × |")
    assert lines[5].endswith("| w4: 0.10 × |")
    assert "| 0.0 | 8.00 | 0.0 | 0.0040 | 0.036 | 50.0% | 7.000 |" in lines[2]


def test_speeds_are_medians_of_rounds() -> None:
    rows = [made(OURS, "w8", 10, 0.1, prefill=[5.0, 100.0, 200.0], decode=[1.0, 2.0])]
    lines = table(rows, weights=10)
    assert "| 100 | 2 |" in lines[2]
    assert len({line.count("|") for line in lines}) == 1


def test_the_numbers_are_all_in_the_json() -> None:
    fields = json.loads(as_json({"date": "now"}, ROWS, 1000, {"mnn": None}))
    assert fields["rows"][1]["score"]["mean_kl"] == 0.02
    assert fields["rows"][-1]["missing"] == "not installed"
    assert math.isclose(fields["weights"], 1000)


@pytest.mark.parametrize("name", [OURS, "llama_cpp", "ik_llama", "openvino", "mnn"])
def test_every_engine_is_complete(name: str) -> None:
    engine = judged(name)
    assert len(set(engine.RECIPES)) == len(engine.RECIPES) > 0
    for recipe in engine.RECIPES:
        for need in engine.needs(recipe):
            other, _, part = need.partition(" ")
            assert callable(judged(other).build)
            assert part
    assert engine.TITLE
    assert engine.NOTE
    assert callable(engine.logits)
    assert callable(engine.stored)


def test_only_what_is_calibrated_needs_the_importance_matrix() -> None:
    assert llama_cpp.needs("float") == ()
    assert llama_cpp.needs("imatrix") == llama_cpp.needs("Q8_0") == ["llama_cpp float"]
    assert llama_cpp.needs("IQ4_XS imatrix") == ["llama_cpp float", "llama_cpp imatrix"]


def test_formats_of_a_gguf_are_summed_up() -> None:
    tensors = {
        "token_embd.weight": ("q4_K", 40),
        "output.weight": ("q6_K", 60),
        "blk.0.ffn_up.weight": ("q4_K", 900),
        "blk.0.ffn_down.weight": ("q5_0", 99),
        "blk.0.attn_norm.weight": ("f32", 1),
    }
    formats = {"embedding": "q4_K", "head": "q6_K", "others": "q4_K 90%, q5_0 10%"}
    assert llama_cpp.summary(tensors) == Stored(1100, 40, formats)


def test_flags_of_mnns_exporter() -> None:
    assert mnn.arguments("4 bits, blocks of 32, HQQ") == [
        *("--quant_bit", "4", "--quant_block", "32", "--embed_bit", "8", "--hqq")
    ]


def test_calibration_and_judged_text_have_no_line_of_weight_in_common() -> None:
    texts = Texts.of(Path("/some/checkpoint"), [], None)
    judged_on = {line for text in texts.held_out for line in text.splitlines() if len(line) > 50}
    assert not judged_on & set(texts.calibration.splitlines())


def test_tiny_r1_has_problems_of_its_own() -> None:
    texts = Texts.of(CHECKPOINT, [], None)
    assert len(texts.held_out) == 1
    assert texts.held_out[0][:200] not in texts.calibration
    ids = pieces(tokenizer_of(CHECKPOINT), texts.held_out, 100, 3)
    assert [len(piece) for piece in ids] == [100] * 3


def test_given_files_replace_the_texts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_bytes(b"\xff\xff")
    texts = Texts.of(tmp_path, [tmp_path / "a.txt"], tmp_path / "a.txt")
    assert texts == Texts(["one"], "one")
    for path in ("b.txt", "c.txt"):
        with pytest.raises(RequestError, match=path):
            Texts.of(tmp_path, [tmp_path / path], None)


def test_too_little_text_is_an_error() -> None:
    with pytest.raises(RequestError, match="no text of 100 tokens"):
        pieces(tokenizer_of(CHECKPOINT), ["1 + 1"], 100, 3)


def test_a_checkpoint_is_known_by_its_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"1")
    first = checkpoint_key(tmp_path)
    assert checkpoint_key(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert checkpoint_key(tmp_path) != first
