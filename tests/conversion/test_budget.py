"""Budgets: they hold, the recipe that they find replays them, and they say when they cannot."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

import deepmnn
from byte_tokenizer import write_tokenizer
from deepmnn.artifact.manifest import RECIPE
from deepmnn.conversion import budget as budgets
from deepmnn.conversion.budget import CANDIDATES, Budget, check_bytes, squared_error
from deepmnn.conversion.calibration_set import CalibrationSet
from deepmnn.conversion.carry_out import carry_out
from deepmnn.conversion.convert import ConvertReport, convert, plan_conversion
from deepmnn.conversion.held_out import HeldOut, split
from deepmnn.conversion.sensitivity import parts
from deepmnn.errors import RequestError
from deepmnn.quant.divergence import divergence
from deepmnn.quant.recipe import ROLES, Recipe, Rule
from deepmnn.quant.recipe_file import read_recipe
from parity import prompts_for
from tiny_models import CONFIGS, checkpoint_of

TEXT = "\n\n".join(["Rivers carry sand, and sand makes stone. " * 12] * 24)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a mixture of experts with latent attention, and a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("budget")
    tiny = checkpoint_of(
        "deepseek_v3", CONFIGS["deepseek_v3"][0] | {"vocab_size": 271}, folder / "hf"
    )
    write_tokenizer(tiny.path)
    (folder / "text.txt").write_text(TEXT)
    return tiny.path


def converted(checkpoint: Path, out: Path, **options: object) -> ConvertReport:
    text = checkpoint.parent / "text.txt"
    return convert(checkpoint, out, calibration=text, samples=20, **options)  # type: ignore[arg-type]


def weights(artifact: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(artifact.glob("*.safetensors")))


def uniform(checkpoint: Path) -> dict[str, int]:
    return {name: plan_conversion(checkpoint, name).nbytes for name in ("w3", "w4", "w8")}


def test_bytes_are_kept_and_used(checkpoint: Path, tmp_path: Path) -> None:
    sizes = uniform(checkpoint)
    most = (sizes["w4"] + sizes["w8"]) // 2
    made = converted(checkpoint, tmp_path / "out", max_bytes=most)
    assert made.search is not None
    assert 0.95 * most < made.nbytes <= most
    assert made.quant == f"max-bytes {most}"
    points = made.search.points
    assert [p.nbytes for p in points] == sorted(p.nbytes for p in points)
    assert [p.kl for p in points] == sorted((p.kl for p in points), reverse=True)
    assert made.held_out is not None
    again = convert_recipe(checkpoint, tmp_path / "again", made.path / RECIPE)
    assert weights(again.path) == weights(made.path)
    assert again.held_out == made.held_out


def convert_recipe(checkpoint: Path, out: Path, recipe: Path) -> ConvertReport:
    return converted(checkpoint, out, quant=read_recipe(str(recipe)))


def test_bits_per_weight(checkpoint: Path, tmp_path: Path) -> None:
    plan = plan_conversion(checkpoint, "w5")
    bits = 8 * plan.nbytes / plan.parameters
    made = converted(checkpoint, tmp_path / "out", target_bpw=bits)
    assert 0.95 * bits < 8 * made.nbytes / made.parameters <= bits


def test_a_divergence_is_met_with_fewer_bytes_than_w8(checkpoint: Path, tmp_path: Path) -> None:
    w8 = converted(checkpoint, tmp_path / "w8", quant="w8").held_out
    w4 = converted(checkpoint, tmp_path / "w4", quant="w4").held_out
    assert w8 is not None
    assert w4 is not None
    most = float(np.sqrt(w8.mean * w4.mean))
    made = converted(checkpoint, tmp_path / "out", target_kl=most)
    assert made.held_out is not None
    assert made.held_out.mean <= most
    assert made.nbytes < uniform(checkpoint)["w8"]
    rules = yaml.safe_load((made.path / RECIPE).read_text())["rules"]
    assert len({rule["format"] for rule in rules}) > 1
    loaded = deepmnn.load(made.path)
    assert np.isfinite(loaded.logits([1, 2, 3])).all()


@pytest.mark.slow
def test_a_divergence_that_only_the_widest_formats_meet(checkpoint: Path, tmp_path: Path) -> None:
    w8 = converted(checkpoint, tmp_path / "w8", quant="w8").held_out
    assert w8 is not None
    most = 1.1 * (w8.mean + 2 * w8.mean_error)
    made = converted(checkpoint, tmp_path / "out", target_kl=most)
    assert made.held_out is not None
    assert made.held_out.mean + 2 * made.held_out.mean_error <= most


def test_a_divergence_that_cannot_be_met(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="1e-09 is not met") as fault:
        converted(checkpoint, tmp_path / "out", target_kl=1e-9)
    assert "bytes" in str(fault.value)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.deepmnn-calibration" / "costs.json").is_file()  # for another budget


def test_bytes_that_cannot_be_met(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"at least .* all matrices in w3"):
        converted(checkpoint, tmp_path / "out", max_bytes=1000)
    with pytest.raises(RequestError, match=r"target-bpw 1e-09, 0 bytes"):
        converted(checkpoint, tmp_path / "out", target_bpw=1e-9)
    assert not (tmp_path / ".out.deepmnn-calibration").exists()


def test_too_few_bytes_are_refused_before_a_text_is_read(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what is enough, in the words of who asked; and that is enough."""
    made = plan_conversion(checkpoint)
    said = []
    with monkeypatch.context() as patch:
        patch.setattr(CalibrationSet, "ids", None)
        for budget, python, shell in (
            (Budget(max_bytes=1000), "max_bytes=", "--max-bytes "),
            (Budget(bits_per_weight=0.5), "target_bpw=", "--target-bpw "),
        ):
            with pytest.raises(RequestError, match="all matrices in w3") as fault:
                carry_out(made, tmp_path / "out", CalibrationSet(), budget)
            found = re.search(python + r"(\d+(\.\d+)?) or more", str(fault.value))
            assert found is not None
            assert f"{shell}{found[1]} or more" in fault.value.shell
            said.append(float(found[1]))
    least = int(said[0])
    check_bytes(made, Budget(max_bytes=least))
    check_bytes(made, Budget(bits_per_weight=said[1]))
    for too_few in (Budget(max_bytes=least - 1), Budget(bits_per_weight=said[1] - 0.01)):
        with pytest.raises(RequestError, match=f"at least {least:,} for"):
            check_bytes(made, too_few)
    assert converted(checkpoint, tmp_path / "out", max_bytes=least).nbytes == least


def test_more_bytes_than_there_can_be_are_w8(checkpoint: Path, tmp_path: Path) -> None:
    made = converted(checkpoint, tmp_path / "out", target_bpw=1e308)
    rules = yaml.safe_load((made.path / RECIPE).read_text())["rules"]
    found = {rule["format"] for rule in rules if not rule["pattern"].startswith("role:")}
    assert found == {"w8"}


def test_a_model_that_predicts_nothing(checkpoint: Path, tmp_path: Path) -> None:
    """All logits are 0, whatever the formats."""
    copy = tmp_path / "hf"
    shutil.copytree(checkpoint, copy)
    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"][:] = 0
    save_file(tensors, copy / "model.safetensors")
    text = checkpoint.parent / "text.txt"
    made = convert(copy, tmp_path / "out", calibration=text, samples=20, target_kl=0.1)
    assert made.held_out is not None
    assert made.held_out.mean == 0


def test_few_held_out_tokens_judge_nothing(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' * 16)
    with pytest.raises(RequestError, match="4 held-out tokens"):
        convert(checkpoint, tmp_path / "out", calibration=tmp_path / "a.jsonl", target_kl=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_kl": 0.1, "target_bpw": 4.0}, "target_kl and target_bpw"),
        ({"quant": "w4", "max_bytes": 10}, "quant and max_bytes"),
        ({"target_kl": 0.0}, "positive"),
        ({"target_kl": float("nan")}, "positive"),
        ({"target_bpw": -1}, "positive"),
        ({"max_bytes": "3GiB"}, "positive"),
        ({"max_bytes": True}, "positive"),
        ({"target_kl": 0.1, "calibration": False}, "without a calibration"),
        ({"target_kl": 0.1, "samples": 3}, "at least 8"),
        ({"target_kl": 0.1, "random_weights": True}, "random weights"),
    ],
)
def test_budgets_that_make_no_sense(
    checkpoint: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        convert(checkpoint, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_search_that_was_stopped_goes_on(checkpoint: Path, tmp_path: Path) -> None:
    plan = plan_conversion(checkpoint, "w8")
    bits = 0.85 * 8 * plan.nbytes / plan.parameters
    whole = converted(checkpoint, tmp_path / "whole", target_bpw=bits)
    steps: list[str] = []
    stop = [-1]

    def watch(done: int, total: int, what: str) -> None:
        steps.append(what)
        if len(steps) == stop[0]:
            raise KeyboardInterrupt

    converted(checkpoint, tmp_path / "watched", target_bpw=bits, progress=watch)
    in_all = len(steps)
    for stop[0] in (in_all // 5, 4 * in_all // 5):
        steps.clear()
        with pytest.raises(KeyboardInterrupt):
            converted(checkpoint, tmp_path / "out", target_bpw=bits, progress=watch)
    steps.clear()
    stop[0] = -1
    made = converted(checkpoint, tmp_path / "out", target_bpw=bits, progress=watch)
    assert len(steps) < 0.8 * in_all
    assert weights(made.path) == weights(whole.path)
    assert not list(tmp_path.glob(".*"))


def test_held_out_divergence_is_that_of_the_artifact(checkpoint: Path, tmp_path: Path) -> None:
    plan = plan_conversion(checkpoint, "w4")
    samples = [np.array(ids, np.int32) for ids in prompts_for((30, 50), 250)]
    (tmp_path / "state").mkdir()
    found = HeldOut(plan, samples, tmp_path / "state").divergence(plan)
    convert(checkpoint, tmp_path / "w4", "w4", calibration=False)
    exact, rounded = deepmnn.load(checkpoint, quant="fp32"), deepmnn.load(tmp_path / "w4")
    want = np.concatenate(
        [divergence(exact.logits(s.tolist()), rounded.logits(s.tolist())) for s in samples]
    )
    assert found.tokens == 80
    assert found.mean == pytest.approx(want.mean(), rel=0.02)


def test_what_is_held_out() -> None:
    def sizes(count: int) -> Iterator[int]:
        samples = [np.array([index], np.int32) for index in range(count)]
        for group in split(samples):
            yield len(group)
        rounding, held = split(samples)
        assert sorted(int(s[0]) for s in rounding + held) == list(range(count))

    assert {n: tuple(sizes(n)) for n in (1, 7, 8, 100, 500)} == {
        1: (1, 0), 7: (7, 0), 8: (7, 1), 100: (88, 12), 500: (484, 16),
    }  # fmt: skip


def test_a_format_with_more_bits_has_less_error() -> None:
    errors = [squared_error(name) for name in CANDIDATES]
    assert errors == sorted(errors)
    assert errors[0] < 1e-4 < 0.02 < errors[-1] < 0.05


def test_sizes_add_up(checkpoint: Path) -> None:
    plan = plan_conversion(checkpoint, "w8")
    sizes, shares = budgets._sizes(plan, parts(plan.naive))
    assert set(shares.values()) == {1.0}, "nothing is kept"
    fixed = plan.nbytes - sum(sizes[part, "w8"] for part in parts(plan.naive))
    assert 0 < fixed < plan.nbytes / 2
    assert plan.draft_weights
    for name in ("w3", "w5"):
        recipe = Recipe(name, tuple(Rule(f"role:{role}", name) for role in ROLES))
        made = plan_conversion(checkpoint, recipe)
        want = made.nbytes - sum(weight.nbytes for weight in made.draft_weights)
        found = fixed + sum(sizes[part, name] for part in parts(plan.naive))
        found -= sum(weight.nbytes for weight in plan.draft_weights)
        assert found == pytest.approx(want, rel=0.03), "a fused matrix pads its rows once"


def test_names_of_budgets() -> None:
    assert Budget(kl=0.02).name == "target-kl 0.02"
    assert Budget(bits_per_weight=4.5).name == "target-bpw 4.5"
    assert Budget(max_bytes=10).name == "max-bytes 10"
