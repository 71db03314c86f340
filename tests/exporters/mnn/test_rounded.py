"""Codes chosen by a calibration, judged where they run: a trained model on MNN itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("MNN")

import deepmnn
from byte_tokenizer import write_tokenizer
from deepmnn.backends.mnn.options import MnnOptions
from deepmnn.conversion.bundled import HELD_OUT, bundled_checkpoint
from deepmnn.conversion.convert import convert
from deepmnn.errors import RequestError, TokenizerError
from deepmnn.exporters.mnn.export import export
from deepmnn.exporters.mnn.rounded import rounded
from deepmnn.measure.judge import Judgement, judge
from deepmnn.measure.predictions import predictions
from tiny_models import CONFIGS, checkpoint_of, tiny_checkpoint

CALIBRATION, JUDGED = 60, 20
EXACT = MnnOptions(memory="normal")


def problems() -> list[str]:
    """What tiny-r1 can do: a problem and its answer."""
    lines = map(json.loads, HELD_OUT.read_text().splitlines())
    return [f"{line['question']}\n{line['answer']}" for line in lines]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """texts.jsonl and the float32 model."""
    path = tmp_path_factory.mktemp("rounded")
    texts = [json.dumps({"text": text}) for text in problems()[:CALIBRATION]]
    (path / "texts.jsonl").write_text("\n".join(texts))
    convert(bundled_checkpoint(), path / "exact", "fp32")
    return path


def exported(target: Path, bits: int, **options: Any) -> Path:
    with rounded(bundled_checkpoint(), target, bits, **options) as made:
        return export(made.path, target, bits=bits, block_size=options.get("block_size")).path


def judged(home: Path, folder: Path) -> Judgement:
    """On problems that no calibration has seen; int8 activations, as MNN runs by default."""
    exact, model = deepmnn.load(home / "exact"), deepmnn.load(folder, threads=1)
    texts = problems()[CALIBRATION : CALIBRATION + JUDGED]
    pieces = [exact.tokenizer.encode(text) for text in texts]
    return judge(predictions(model), pieces, predictions(exact))


def kl(home: Path, folder: Path) -> float:
    divergence = judged(home, folder).divergence
    assert divergence is not None
    return divergence.mean


def test_a_calibration_makes_mnn_answer_nearer_to_the_model(home: Path, tmp_path: Path) -> None:
    near = exported(tmp_path / "near", 4, calibration=home / "texts.jsonl")
    far = exported(tmp_path / "far", 4, calibration=False)
    assert (near / "llm.mnn.weight").stat().st_size == (far / "llm.mnn.weight").stat().st_size
    assert kl(home, near) < 0.5 * kl(home, far)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["far", "near"]


def test_activations_of_a_rotated_model_round_well(tmp_path: Path) -> None:
    """MNN rounds what a matrix reads to 8 bits as it runs, with one scale for each token: where one
    column is far larger than others, these lose their bits, but for a rotation.
    """
    fields = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4}
    tiny = checkpoint_of("llama", CONFIGS["llama"][0] | fields, tmp_path / "hf")
    for name in ("input_layernorm", "post_attention_layernorm"):
        for layer in tiny.model.model.layers:
            getattr(layer, name).weight.data[17] = 60.0
    tiny.model.save_pretrained(tmp_path / "large")
    ids = list(range(3, 40))
    want = deepmnn.load(tmp_path / "large", quant="fp32").logits(ids)
    with rounded(tmp_path / "large", tmp_path / "turned", 8) as made:
        export(made.path, tmp_path / "turned", bits=8)
    convert(tmp_path / "large", tmp_path / "plain", "fp32")
    export(tmp_path / "plain", tmp_path / "unturned", bits=8)
    near, far = (
        np.square(deepmnn.load(tmp_path / name, threads=1).logits(ids) - want).mean()
        for name in ("turned", "unturned")
    )
    assert near < 0.3 * far


@pytest.mark.parametrize("size", [32, 128])
def test_the_export_writes_what_was_chosen(home: Path, tmp_path: Path, size: int) -> None:
    """MNN's logits with exact activations are those of the numbers that were handed over."""
    options = {"calibration": home / "texts.jsonl", "samples": 5, "block_size": size}
    with rounded(bundled_checkpoint(), tmp_path / "mnn", 4, **options) as made:
        assert made.calibration is not None
        assert made.calibration.samples == 5
        export(made.path, tmp_path / "mnn", bits=4, block_size=size)
        ids = list(range(3, 60))
        want = deepmnn.load(made.path).logits(ids)
    found = deepmnn.load(tmp_path / "mnn", threads=1, mnn=EXACT).logits(ids)
    # The embedding and MLA's up-projections are rounded by the export, to 8 bits: a token near the
    # border of two experts may go to the other one.
    errors = np.linalg.norm(found - want, axis=1) / np.linalg.norm(want, axis=1)
    assert np.median(errors) < 0.03


class _StoppedError(Exception):
    pass


def stop_after(steps: int) -> Callable[[int, int, str], None]:
    def progress(done: int, total: int, what: str) -> None:
        nonlocal steps
        steps -= 1
        if steps < 0:
            raise _StoppedError

    return progress


def test_a_calibration_that_was_stopped_goes_on(home: Path, tmp_path: Path) -> None:
    options = {"calibration": home / "texts.jsonl", "samples": 20}
    with pytest.raises(_StoppedError):
        exported(tmp_path / "out", 4, **options, progress=stop_after(3))
    left = tmp_path / ".out.deepmnn-calibration"
    assert list(tmp_path.iterdir()) == [left]
    codes = {path.name: path.stat().st_mtime_ns for path in left.glob("*.codes")}
    assert codes
    with pytest.raises(_StoppedError):
        exported(tmp_path / "out", 4, **options, progress=stop_after(5))
    assert codes.items() < {p.name: p.stat().st_mtime_ns for p in left.glob("*.codes")}.items()
    with pytest.raises(_StoppedError):  # other blocks: nothing of it is taken
        exported(tmp_path / "out", 4, **options, block_size=32, progress=stop_after(0))
    assert not codes.keys() & {path.name for path in left.glob("*.codes")}


def test_models_that_are_rounded_to_nearest(tmp_path: Path) -> None:
    """Without a tokenizer, with 8 bits, or on request; a tied head is not rotated either."""
    plain = tiny_checkpoint("llama", 0, tmp_path / "plain")
    with rounded(plain.path, tmp_path / "out", 4) as made:
        assert made.calibration is None
    tied = checkpoint_of("llama", CONFIGS["llama"][1] | {"vocab_size": 271}, tmp_path / "tied")
    write_tokenizer(tied.path)
    for bits, calibration in ((8, None), (4, False)):
        with rounded(tied.path, tmp_path / "out", bits, calibration=calibration) as made:
            assert made.calibration is None
            want, found = tied.logits([3, 5, 8]), deepmnn.load(made.path).logits([3, 5, 8])
            np.testing.assert_allclose(found, want, atol=2e-5 * float(np.abs(want).max()))
    with rounded(tied.path, tmp_path / "out", 4, samples=3) as made:
        assert made.calibration is not None


@pytest.mark.parametrize(
    ("text", "options", "error", "match"),
    [
        (None, {"calibration": "missing.txt"}, RequestError, "missing.txt"),
        ("", {}, RequestError, "no text"),
        ("words", {"bits": 8}, RequestError, "codes of 8 bits"),
        ("words", {"samples": 0}, RequestError, "samples"),
        ("words", {"source": "plain"}, TokenizerError, "tokenizer"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, text: str | None, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    plain = tiny_checkpoint("llama", 0, tmp_path / "plain").path
    if text is not None:
        (tmp_path / "a.txt").write_text(text)
        options = {"calibration": tmp_path / "a.txt", **options}
    source = plain if options.pop("source", "") else bundled_checkpoint()
    before = sorted(tmp_path.iterdir())
    with (
        pytest.raises(error, match=match),
        rounded(source, tmp_path / "out", options.pop("bits", 4), **options),
    ):
        pass
    assert sorted(tmp_path.iterdir()) == before
