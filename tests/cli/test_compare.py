"""`deepmnn compare`: what it prints, its exit codes, its JSON and its page."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from deepmnn.cli import app, compared
from deepmnn.conversion.convert import convert
from tiny_models import checkpoint_of

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
WEIGHT = "model.layers.1.mlp.down_proj.weight"
HOSTILE = "<script>alert(1)</script>\x1b[2J"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`source`, `damaged` with one tensor that is not its, and `model` and `fault` made of them."""
    folder = tmp_path_factory.mktemp("compare")
    checkpoint_of("llama", SHAPE, folder / "source")
    checkpoint_of("llama", SHAPE | {"vocab_size": 67}, folder / "other")
    convert(folder / "source", folder / "model", "w8", calibration=None)
    damage(folder / "source", folder / "damaged")
    convert(folder / "damaged", folder / "fault", "w8", calibration=None)
    return folder


def damage(source: Path, target: Path) -> None:
    from safetensors.numpy import load_file, save_file

    target.mkdir()
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    tensors = load_file(source / "model.safetensors")
    tensors[WEIGHT] = -tensors[WEIGHT]
    save_file(tensors, target / "model.safetensors")


def run(*arguments: object, tokens: int = 24) -> Result:
    command = ["compare", *map(str, arguments), "--tokens", str(tokens), "--threads", "1"]
    return CliRunner().invoke(app, command, env={"COLUMNS": "100"})


def good(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_sound_model_is_said_to_be_sound(models: Path) -> None:
    text = good(models / "model", models / "source")
    assert re.search(r"^.*model: engine \w+, w8, level 3$", text, re.M)
    assert "source: PyTorch, float32" in text
    assert "24 tokens in 1 sample, 2 layers" in text
    layers = re.findall(r"^layer (\d): off by .* %; of its own most in \S+, .* %; KL ", text, re.M)
    assert layers == ["0", "1"]
    assert "nothing that rounding does not explain" in text
    assert re.search(
        r"^KL divergence \S+ nats on average, \S+ at 99 %; same first choice", text, re.M
    )
    assert "Alone, the layers' effects sum to" in text


def test_the_first_value_past_the_bound_is_named(models: Path) -> None:
    text = good(models / "model", models / "source", "--no-effects", "--no-weights")
    assert "KL divergence" in text
    assert "effects" not in text
    assert run(models / "model", models / "source", "--bound", "1e-9").exit_code == 1
    text = good(models / "model", models / "source", "--bound", "10", "--no-effects")
    assert "no value is off by more than 1,000 %" in text


def test_without_a_reference_numpy_or_torch_runs_the_same(models: Path) -> None:
    assert "model: numpy, w8, level 3" in good(models / "model", "--no-effects")
    text = good(models / "source", "--no-effects", "--backend", "reference")
    assert "source: numpy, fp32, level 0" in text
    assert "source: PyTorch, float32" in text


def test_a_terminal_shows_bars(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compared.out, "_force_terminal", True)
    monkeypatch.setattr(compared.out, "_width", 120)
    text = good(models / "model", models / "source")
    assert re.search(r"layer 1 .*█+.* %.*self_attn|mlp", text)
    assert "KL alone" in text


def test_a_fault_is_red_and_the_exit_code_1(models: Path) -> None:
    result = run(models / "fault", models / "source")
    assert result.exit_code == 1
    assert re.search(rf"weight {WEIGHT}: off by 200 %, rounding explains", result.stdout)
    assert "value layers.1.mlp.down_proj: linear: off by 200 %" in result.stdout


def test_json_has_everything_and_only_json(models: Path) -> None:
    found = json.loads(run(models / "fault", models / "source", "--json").stdout)
    assert found["tokens"] == 24
    assert found["values"][-1]["name"] == "logits"
    assert [each["layer"] for each in found["effects"]] == [0, 1, 2]
    assert {each["kind"] for each in found["findings"]} == {"weight", "value"}
    assert math.isclose(
        sum(each["added"] for each in found["effects"]), found["divergence"]["mean"], rel_tol=1e-3
    )
    (origin,) = [v["origin"] for v in found["values"] if v["name"] == "layers.1.mlp.down_proj"]
    assert origin["formats"] == ["w8"]
    assert origin["reads"] == ["layers.1.mlp.mul"]


def test_numbers_that_json_lacks_are_words() -> None:
    assert compared._plain({"a": [math.inf, -math.inf, 1.0], "b": (math.nan, None)}) == {
        "a": ["inf", "-inf", 1.0],
        "b": ["nan", None],
    }


def test_token_ids_are_enough(models: Path, tmp_path: Path) -> None:
    ids = tmp_path / "ids.npy"
    np.save(ids, np.arange(20) % SHAPE["vocab_size"])
    text = good(models / "model", models / "source", "--input", ids, "--no-effects")
    assert "20 tokens in 1 sample" in text
    np.save(ids, np.array([1, 2, SHAPE["vocab_size"]]))
    result = run(models / "model", models / "source", "--input", ids)
    assert result.exit_code == 1
    assert "token ids from 1 to 61; expected 0 to 60" in result.stderr
    result = run(models / "model", models / "source", "--input", "a text")
    assert "the model has no tokenizer; expected token ids" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("model", "other"), "the reference has 67 tokens, the model 61"),
        (("model", "missing"), "missing"),
        (("model", "source", "--reference-kv-dtype", "int8"), "PyTorch runs a checkpoint as it is"),
        (("model", "source", "--without", "nothing"), "no pass is called 'nothing'"),
        (("model", "--mla-form", "round"), "mla_form is 'round'"),
        (("source", "--quant", "w9"), "w9"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    models: Path, arguments: tuple[str, ...], words: str
) -> None:
    names = [models / a if (models / a).exists() or a == "missing" else a for a in arguments]
    result = run(*names)
    assert result.exit_code == 1
    assert words in result.stderr
    assert "Traceback" not in result.output


# --------------------------------------------------------------------- the page


class Page(HTMLParser):
    """Tags that are open at the end, tags, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.said: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def test_the_page_needs_nothing_and_is_escaped(models: Path, tmp_path: Path) -> None:
    named = tmp_path / HOSTILE.replace("/", "_")
    named.symlink_to(models / "fault")
    out = tmp_path / "page.html"
    assert run(named, models / "source", "--html", out).exit_code == 1
    text = out.read_text()
    found = Page(text)
    assert not found.open
    assert not re.search(r"https?:|url\(|@import|<script|\x1b", text)
    assert {tag for tag, _ in found.tags}.isdisjoint({"script", "link", "img", "iframe", "a"})
    words = " ".join(found.said)
    assert "<script>alert(1)<_script>\\x1b[2J against source" in words
    for part in (WEIGHT, "Findings", "Error by depth", "Effect on the predictions"):
        assert part in words
    for part in ("Distributions", "Weights", "layers.1.mlp.down_proj", "by fuse_swiglu"):
        assert part in words


def test_a_page_is_not_replaced_unasked_and_never_half(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "page.html"
    flags = (models / "model", models / "source", "--no-effects", "--no-weights", "--html", out)
    assert good(*flags)
    before = out.read_text()
    assert run(*flags).exit_code == 1
    assert good(*flags, "--overwrite")
    assert out.read_text() == before
    (tmp_path / "notes.html").write_text("mine")
    assert run(*flags[:-1], tmp_path / "notes.html", "--overwrite").exit_code == 1

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    result = run(*flags[:-1], tmp_path / "new.html")
    assert result.exit_code == 1
    assert "No space" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.html", "page.html"]


@pytest.mark.parametrize("name", ["missing.npy", "no/such/text", "missing.txt"])
def test_a_missing_file_is_no_text(models: Path, name: str) -> None:
    result = run(models / "model", models / "source", "--input", name)
    assert result.exit_code == 1
    assert "there is no such file" in result.stderr


def test_a_page_and_bisecting_are_two_things(models: Path, tmp_path: Path) -> None:
    html = tmp_path / "page.html"
    result = run(models / "model", models / "source", "--bisect", "--html", html)
    assert result.exit_code == 2
    assert not html.exists()
