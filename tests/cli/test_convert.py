"""`deepmnn convert`: PyTorch files, recipes, dry runs; what `info` says of a checkpoint."""

import os
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from deepmnn.artifact.reader import Artifact
from deepmnn.cli import app
from tiny_models import tiny_checkpoint


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """model.pt, and a config.json elsewhere."""
    tiny = tiny_checkpoint("deepseek_v3", 1, tmp_path / "hf")
    torch.save(load_file(tiny.path / "model.safetensors"), tmp_path / "model.pt")
    (tiny.path / "model.safetensors").unlink()
    return tmp_path / "model.pt", tiny.path / "config.json"


def convert(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


def test_a_file_with_a_config(files: tuple[Path, Path], tmp_path: Path) -> None:
    weights, config = files
    result = convert(weights, tmp_path / "out", "--config", config, "--quant", "w4")
    assert result.exit_code == 0, result.output
    assert "deepseek_v3" in result.output
    artifact = Artifact.open(tmp_path / "out")
    assert (artifact.path / "config.json").read_bytes() == config.read_bytes()
    assert {w.format for w in artifact.graph().weights.values()} == {"vector", "f32", "w4", "w8"}


def test_it_ends_with_where_the_report_is(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("llama", 0, tmp_path / "hf")
    out = tmp_path / "a long directory's name, longer than a terminal is wide [bold] or so it is"
    result = convert(tiny.path, out)
    assert result.output.splitlines()[-1] == f"  report {out / 'report.html'}"
    assert (out / "report.html").is_file()
    result = convert(tiny.path, tmp_path / "without", "--no-report")
    assert "report" not in result.output
    assert not list((tmp_path / "without").glob("report.*"))


def test_a_file_without_a_config(files: tuple[Path, Path], tmp_path: Path) -> None:
    result = convert(files[0], tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "config.json is missing" in result.stderr
    assert "--config" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------ plans and recipes


def info(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["info", *map(str, arguments)])


RECIPE = {
    "name": "mine",
    "rules": [
        {"pattern": "model.layers.0.*", "format": "w8"},
        {"pattern": "role:expert", "format": "w4"},
        {"pattern": "*", "format": "bf16"},
    ],
}


def test_a_dry_run_prints_what_would_be_written_and_writes_nothing(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("deepseek_v3", 0, tmp_path / "hf")
    result = convert(tiny.path, tmp_path / "out", "--dry-run")
    assert result.exit_code == 0, result.output
    assert os.listdir(tmp_path) == ["hf"]
    done = convert(tiny.path, tmp_path / "out")
    assert (tmp_path / "out").is_dir()
    for line in done.output.splitlines()[1:4]:  # facts, size, nodes
        assert line in result.output
    for name in ("w8", "f32", "vector", "all"):
        assert f"│ {name} " in result.output
    for line in result.output.splitlines():
        assert line in info(tiny.path).output


def test_a_dry_run_shows_no_formats_that_a_budget_would_not_choose(tmp_path: Path) -> None:
    result = convert("nothing here", tmp_path / "out", "--dry-run", "--target-kl", "0.02")
    assert result.exit_code == 1
    assert "--dry-run and a budget" in result.stderr
    assert "a recipe" in result.stderr


def test_no_calibration_and_one_exclude_each_other(tmp_path: Path) -> None:
    result = convert("tiny-r1", tmp_path / "out", "--no-calibration", "--calibration", "x.txt")
    assert result.exit_code == 1
    assert "--no-calibration and --calibration" in result.stderr


def test_the_bundled_model_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = convert("tiny-r1", "out", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "deepseek_v3" in result.output
    Path("tiny-r1").mkdir()  # a path that exists is a path
    assert convert("tiny-r1", "out", "--dry-run").exit_code == 1


def test_rules_that_choose_nothing_are_named(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("deepseek_v3", 0, tmp_path / "hf")
    rules = [*RECIPE["rules"], {"pattern": "model.layer.0.*", "format": "w4"}]
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"name": "mine", "rules": rules}))
    result = convert(tiny.path, tmp_path / "out", "--recipe", file, "--dry-run")
    assert "rules of the recipe that choose no format: model.layer.0.*" in result.output
    file.write_text(yaml.safe_dump(RECIPE))
    result = convert(tiny.path, tmp_path / "out", "--recipe", file, "--dry-run")
    assert "choose no format" not in result.output


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("deepseek_v3", 0, tmp_path / "hf")
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(RECIPE))
    result = convert(tiny.path, tmp_path / "out", "--recipe", file)
    assert result.exit_code == 0, result.output
    assert "parameters as mine" in result.output
    artifact = Artifact.open(tmp_path / "out")
    assert artifact.manifest["recipe"] == RECIPE
    assert artifact.manifest["quant"] == "mine"
    found = {w.name: w.format for w in artifact.graph().weights.values() if len(w.shape) == 2}
    for name, stored in found.items():
        first = name.startswith("layers.0.")
        expert = ".experts." in name
        router = name.endswith("mlp.gate.weight")
        expected = "f32" if router else "w8" if first else "w4" if expert else "bf16"
        assert stored == expected, name
    assert "as mine" in info(tiny.path, "--quant", file).output
    for command in (
        convert(tiny.path, tmp_path / "2", "--quant", tmp_path),
        info(tiny.path, "--quant", "w7"),
    ):
        assert command.exit_code == 1
        assert "one of fp32, bf16, w8, w6, w5, w4, w3" in command.stderr
        assert command.stderr.count("\n") == 1
    file.write_text(yaml.safe_dump(RECIPE | {"rule": []}))
    result = convert(tiny.path, tmp_path / "2", "--recipe", file)
    assert (result.exit_code, "has the field 'rule'" in result.stderr) == (1, True)
    assert not (tmp_path / "2").exists()
    written = (tmp_path / "out" / "recipe.yaml").read_text()
    assert yaml.safe_load(written) == RECIPE
    both = convert(tiny.path, tmp_path / "2", "--recipe", file, "--quant", "w4")
    assert (both.exit_code, "--quant and --recipe" in both.stderr) == (1, True)
    other = convert(tiny.path, tmp_path / "2", "--recipe", tmp_path / "mine.json")
    assert (other.exit_code, "ends with .yaml" in other.stderr) == (1, True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--max-bytes", "3GB", "--target-kl", "0.1"), "--target-kl and --max-bytes"),
        (("--max-bytes", "3 gigs"), "--max-bytes '3 gigs'; expected bytes, as in 3GiB"),
        (("--max-bytes", "0"), "positive"),
        (("--target-bpw", "4.5", "--quant", "w4"), "--quant and --target-bpw"),
        (("--target-kl", "0.1", "--no-calibration"), "without a calibration"),
    ],
)
def test_budgets_that_make_no_sense(flags: tuple[str, ...], message: str, tmp_path: Path) -> None:
    tiny = tiny_checkpoint("llama", 0, tmp_path / "hf")
    result = convert(tiny.path, tmp_path / "out", *flags)
    assert (result.exit_code, message in result.stderr) == (1, True), result.stderr
    assert not (tmp_path / "out").exists()


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("deepseek_v3", 0, tmp_path / "hf")
    weights = tiny.path / "model.safetensors"
    tensors = {n: t for n, t in load_file(weights).items() if ".layers.2." not in n}
    more = {f"visual.[b]{n}": torch.zeros(2) for n in range(5)}
    save_file(tensors | more, weights)
    for result in (
        info(tiny.path),
        convert(tiny.path, tmp_path / "out", "--dry-run"),
        convert(tiny.path, tmp_path / "out"),
    ):
        assert result.exit_code == 0, result.output
        assert "multi-token prediction" in result.output
        assert "5 tensors of the checkpoint are not read: visual.[b]0, visual.[b]1" in result.output


def test_info_of_a_checkpoint(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("llama", 0, tmp_path / "hf")
    nbytes = sum(t.nbytes for t in load_file(tiny.path / "model.safetensors").values())
    text = info(tiny.path, "--quant", "bf16").output
    assert f"checkpoint      {nbytes / 1000:.1f} kB" in text
    assert "parameters as bf16" in text
    converted = convert(tiny.path, tmp_path / "out")
    assert converted.exit_code == 0
    result = info(tmp_path / "out", "--quant", "w4")
    assert (result.exit_code, "converted already" in result.stderr) == (1, True)
    (tiny.path / "model.safetensors").write_bytes(b"damaged")
    result = info(tiny.path)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "model.safetensors" in result.stderr
    (tiny.path / "model.safetensors").unlink()
    assert "parameters as w8" in info(tiny.path).output, "config.json alone is enough"


def test_sizes_say_which_is_larger(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("llama", 0, tmp_path / "hf")
    stored = sum(t.nbytes for t in load_file(tiny.path / "model.safetensors").values())
    for quant in ("fp32", "bf16", "w8"):
        out = tmp_path / quant
        text = convert(tiny.path, out, "--quant", quant).output
        nbytes = sum(weight.nbytes for weight in Artifact.open(out).graph().weights.values())
        if nbytes == stored:
            assert "as large as the checkpoint" in text
        else:
            word = "smaller" if nbytes < stored else "larger"
            factor = max(nbytes, stored) / min(nbytes, stored)
            assert f", {factor:.2f} x {word} than the checkpoint" in text
    save_file(
        {n: t.bfloat16() for n, t in load_file(tiny.path / "model.safetensors").items()},
        tiny.path / "model.safetensors",
    )
    assert (
        " x larger than the checkpoint"
        in convert(tiny.path, tmp_path / "larger", "--quant", "fp32").output
    )


def test_codes_that_grow_are_told_of_w4(tmp_path: Path) -> None:
    """Act-order's are not kept, and w8 has twice their bits; w4 has as many."""
    act_order = Path(__file__).parents[1] / "source" / "fixtures" / "gptq-deepseek_v3"
    advice = "codes of gptq are not kept, and rounded to more bits than they had: --quant w4 is"
    for quant, found in (("w8", True), ("w4", False), ("bf16", False)):
        text = convert(act_order, tmp_path / quant, "--quant", quant, "--no-calibration").output
        assert (advice in " ".join(text.split())) == found
    assert advice in " ".join(convert(act_order, tmp_path / "no", "--dry-run").output.split())
    awq = act_order.with_name("awq-qwen2")
    assert "--quant w4" not in convert(awq, tmp_path / "awq").output
    plain = tiny_checkpoint("llama", 0, tmp_path / "hf").path
    assert "--quant w4" not in convert(plain, tmp_path / "plain").output


def test_biases_without_a_place_are_told_by_themselves(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("llama", 0, tmp_path / "hf")
    file = tiny.path / "model.safetensors"
    tensors = load_file(file)
    more = {f"model.layers.0.self_attn.{p}_proj.bias": torch.ones(1) for p in "qkvo"}
    save_file(tensors | more | {"visual": torch.ones(2)}, file)
    text = " ".join(convert(tiny.path, tmp_path / "out", "--dry-run").output.split())
    assert (
        "4 biases of the checkpoint have no place in a llama model of this config.json: left out, "
        "as transformers leaves them out: model.layers.0.self_attn."
    ) in text
    assert "1 tensors of the checkpoint are not read: visual" in text
