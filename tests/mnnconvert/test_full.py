"""--quantizeMode FULL_QUANTIZE: samples, ranges, and a loss that transformers confirms."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import deepmnn
from deepmnn.conversion.bundled import bundled_checkpoint
from deepmnn.measure.judge import judge
from deepmnn.measure.predictions import predictions
from deepmnn.measure.texts import built_in_texts, cut
from deepmnn.measure.torch_model import TorchModel
from mnnconvert import verified
from mnnconvert.command import main
from tiny_models import tiny_checkpoint

TEXT = "\n".join(json.dumps({"text": f"What is {n} + {n * 7 % 100}?"}) for n in range(30))


@pytest.fixture(autouse=True)
def little_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "PIECES", 1)
    monkeypatch.setattr(verified, "DEFAULT_TOKENS", 100)


def run(target: Path, *flags: object, model: Path | None = None) -> int:
    source = model or bundled_checkpoint()
    arguments = ["-f", "HF", "--modelFile", source, "--MNNModel", target, *flags]
    return main([*map(str, arguments), "--quantizeMode", "FULL_QUANTIZE"])


@pytest.mark.parametrize("bits", [8, 4])
def test_the_loss_is_what_transformers_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bits: int
) -> None:
    (tmp_path / "a.jsonl").write_text(TEXT)
    flags = ("--calibration", tmp_path / "a.jsonl", "--samples", 20, "--weightQuantBits", bits)
    assert run(tmp_path / "r1.mnn", *flags) == 0
    said = capsys.readouterr().out
    assert f"parameters as {bits} bits" in said
    assert ("rounded by 18 samples" in said) == (bits == 4)  # two are held out
    # Of each layer: what q_a and kv_a, q_b, kv_b and o read, the router and gates, down; the head.
    assert re.search(r"ranges of \d\d activations by 20 samples, \d+ tokens: KL of each", said)
    found = re.search(r"on 200 held-out tokens: loss (.*) nats, (.*); KL (.*) from .* (.*)%", said)
    assert found
    loss, change, kl, same = map(float, found.groups())
    model, exact = deepmnn.load(tmp_path / "r1.mnn"), TorchModel(str(bundled_checkpoint()))
    pieces = [p for text in built_in_texts() for p in cut(model.tokenizer, text, 100, 1)]
    want = judge(predictions(model), pieces, exact.predict)
    assert want.divergence is not None
    assert want.loss_change is not None
    np.testing.assert_allclose(
        [loss, change, kl, same / 100],
        [
            want.model.loss,
            want.loss_change,
            want.divergence.mean,
            want.divergence.same_first_choice,
        ],
        atol=2e-3,
    )
    assert not list(tmp_path.glob(".*"))


def test_wide_ranges_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few values are far from any histogram."""
    (tmp_path / "a.txt").write_text("A word.")
    assert run(tmp_path / "r1.mnn", "--calibration", tmp_path / "a.txt") == 0
    said = capsys.readouterr().out
    bad = re.search(r"(\d+) of them are not below 0.02", said)
    assert bad
    assert len(re.findall(r"layers\.\d.*: KL 0\.\d+, clipped at", said)) == min(5, int(bad[1]))
    assert "it clips no activation" in said


def test_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tokenizer, and text: without them nothing is written."""
    plain = tiny_checkpoint("llama", 0, tmp_path / "hf").path
    assert run(tmp_path / "a.mnn", model=plain) == 1
    assert "tokenizer" in capsys.readouterr().err
    (tmp_path / "empty.jsonl").touch()
    assert run(tmp_path / "a.mnn", "--calibration", tmp_path / "empty.jsonl") == 1
    assert "no text" in capsys.readouterr().err
    assert not list(tmp_path.glob("*a.*"))
