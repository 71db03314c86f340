"""Calibration: what matrices multiply is what transformers has there, and codes follow from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import deepmnn
from byte_tokenizer import write_tokenizer
from deepmnn.artifact.reader import Artifact
from deepmnn.backends.base import I32
from deepmnn.conversion import calibrate as calibrating
from deepmnn.conversion import forward
from deepmnn.conversion.bundled import bundled_checkpoint
from deepmnn.conversion.calibrate import calibrate
from deepmnn.conversion.convert import convert, plan_conversion
from deepmnn.conversion.stage import Stage, stored_from
from deepmnn.conversion.taps import find_taps, steps
from deepmnn.errors import RequestError, StorageError, TokenizerError
from deepmnn.graph.levels import optimize
from deepmnn.graph.stages import stages
from deepmnn.models import build
from deepmnn.quant.correction import correction
from deepmnn.quant.divergence import divergence
from deepmnn.quant.gptq import damping_for, feedback, gptq
from deepmnn.quant.moments import Moments
from deepmnn.quant.rotation import rotate, rotate_moments
from deepmnn.text.samples import built_in, sample_ids
from parity import prompts_for
from tiny_models import CONFIGS, TinyModel, checkpoint_of, tiny_checkpoint

APART = frozenset({"fuse_moe", "fuse_add_norm", "select_rows_early"})


def samples_of(lengths: Sequence[int], vocab_size: int) -> list[I32]:
    return [np.array(ids, np.int32) for ids in prompts_for(lengths, vocab_size)]


def tapped(tiny: TinyModel, samples: list[I32], folder: Path) -> dict[str, Any]:
    """Checkpoint tensor → rows of what it multiplies, computed in float32."""
    graph, _ = optimize(build(tiny.config), 2, None, APART)
    taps = find_taps(graph)
    names = {tap.value for tap in taps.values()} | {tap.indices for tap in taps.values()}
    values: dict[str, Any] = {}
    for part in stages(graph, [name for name in names if name]):
        stage = Stage(part, stored_from(tiny), sum(map(len, samples)), folder)
        values.update(stage.run(samples, {name: values[name] for name in stage.inputs}))
    return {name: tap.rows(values) for name, tap in taps.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_matrices_multiply_what_they_do_in_transformers(name: str, tmp_path: Path) -> None:
    tiny = tiny_checkpoint(name, 0, tmp_path / "hf")
    samples = samples_of((9, 30), 90)
    found = tapped(tiny, samples, tmp_path)
    seen: dict[str, list[np.ndarray]] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, x, key=key: seen.setdefault(key, []).append(x[0].reshape(-1, x[0].shape[-1]))
        )
        for key, module in tiny.model.named_modules()
        if isinstance(module, torch.nn.Linear) and f"{key}.weight" in found
    ]
    for sample in samples:
        tiny.logits(sample.tolist())
    for hook in hooks:
        hook.remove()
    checked = [key for key in seen if ".experts." not in key]
    assert len(checked) >= 4
    for key in checked:
        want = torch.cat(seen[key]).numpy()
        got = found[f"{key}.weight"]
        np.testing.assert_allclose(got, want, atol=1e-5 * float(np.abs(want).max()), err_msg=key)


def test_experts_see_the_tokens_that_chose_them(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("deepseek_v3", 0, tmp_path / "hf")
    found = tapped(tiny, samples_of((40, 35), 90), tmp_path)
    prefix = "model.layers.1.mlp.experts"
    experts, choices = tiny.config["n_routed_experts"], tiny.config["num_experts_per_tok"]
    rows = [found[f"{prefix}.{i}.gate_proj.weight"] for i in range(experts)]
    assert sum(map(len, rows)) == 75 * choices
    for i, x in enumerate(rows):
        gate, up = (tiny.read(f"{prefix}.{i}.{part}_proj.weight") for part in ("gate", "up"))
        want = torch.nn.functional.silu(torch.tensor(x @ gate.T)).numpy() * (x @ up.T)
        got = found[f"{prefix}.{i}.down_proj.weight"]
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, atol=1e-5 * float(np.abs(want).max(initial=1)))


LAYER = "model.layers.1"


def seen_by(tiny: TinyModel, samples: list[I32], modules: Sequence[str]) -> list[np.ndarray]:
    """What modules of transformers' model read, [tokens, width] each."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in modules}
    named = dict(tiny.model.named_modules())
    hooks = [
        named[name].register_forward_pre_hook(
            lambda _, x, name=name: found[name].append(x[0].reshape(-1, x[0].shape[-1]))
        )
        for name in modules
    ]
    for sample in samples:
        tiny.logits(sample.tolist())
    for hook in hooks:
        hook.remove()
    return [torch.cat(rows).numpy() for rows in found.values()]


@pytest.mark.parametrize(
    ("module", "sum", "unrounded"),
    [
        (f"{LAYER}.self_attn.k_proj", None, (LAYER, "lm_head")),
        (f"{LAYER}.mlp.up_proj", None, (f"{LAYER}.mlp", "lm_head")),
        (
            f"{LAYER}.self_attn.o_proj",
            f"{LAYER}.post_attention_layernorm",
            (f"{LAYER}.self_attn.o_proj", f"{LAYER}.mlp", "lm_head"),
        ),
        (f"{LAYER}.mlp.down_proj", "model.norm", (f"{LAYER}.mlp.down_proj", "lm_head")),
        ("lm_head", None, ("lm_head",)),
    ],
)
def test_codes_are_those_of_gptq_after_rounded_layers(
    module: str,
    sum: str | None,
    unrounded: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With an engine of float weights, inputs are those of transformers' model whose matrices are
    rounded so far; `sum` reads what the product is added to.
    """
    monkeypatch.setattr(calibrating, "_ENGINE", "fp32")
    tiny = tiny_checkpoint("llama", 0, tmp_path / "hf")
    samples = samples_of((60, 50, 70), 90)
    (tmp_path / "state").mkdir()
    source, report = calibrate(plan_conversion(tiny.path, "w4"), samples, tmp_path / "state")
    assert (report.tensors, report.tokens, report.scarce) == (15, 180, ())
    modules = [module, sum] if sum else [module]
    exact = seen_by(tiny, samples, modules)
    rounded = replace(tiny, model=deepcopy(tiny.model))
    with torch.no_grad():
        for key, weight in rounded.model.named_parameters():
            if source.has(key, "w4") and not key.startswith(unrounded):
                weight.copy_(torch.from_numpy(source.read(key)))
    x, *sums = seen_by(rounded, samples, modules)
    w = tiny.read(f"{module}.weight")
    if sum:
        missing = exact[1] - sums[0]
        assert float(np.square(missing).mean()) > 1e-6
        seen = Moments(w.shape[1], len(w))
        seen.add(x, missing)
        w = w + correction(seen)
    errors = feedback(rotate_moments(x.T @ x), damping_for(180))
    want, codes = gptq(rotate(w), errors, "w4"), source.codes(f"{module}.weight")
    assert codes is not None
    # Moments are summed in float32: a code on the edge may fall on the other side.
    assert np.mean(codes.levels == want.levels) > 0.98


@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - {"deepseek_v4"}))  # nothing is added there
def test_matrices_are_rounded_after_all_that_they_make_up_for(name: str) -> None:
    graph, _ = optimize(build(CONFIGS[name][0] | {"model_type": name}), 2, None, APART)
    taps = find_taps(graph)
    parts = stages(graph, {value for tap in taps.values() for value in tap.read})
    *_, layer, head = parts
    assert steps(head, {"lm_head.weight": taps["lm_head.weight"]}) == {"lm_head.weight": 0}
    order = steps(layer, {key: tap for key, tap in taps.items() if tap.value in layer.outputs})
    prefix = f"model.layers.{len(parts) - 2}"
    short = {
        key.removeprefix(f"{prefix}.").removesuffix(".weight"): at for key, at in order.items()
    }
    ends = [key for key in short if key.endswith("down_proj") and ".experts." not in key]
    assert all(taps[f"{prefix}.{key}.weight"].sum for key in ("self_attn.o_proj", *ends))
    attention = max(at for key, at in short.items() if key.startswith("self_attn"))
    assert attention == short["self_attn.o_proj"]
    assert attention < min(at for key, at in short.items() if key.startswith("mlp"))
    for key in ends:
        assert [other for other, at in short.items() if at >= short[key]] == [key]


@pytest.mark.parametrize(("name", "read"), [("llama", 3), ("deepseek_v3", 12)])
def test_only_models_with_experts_read_more_than_is_summed_up(
    name: str, read: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrating, "MOST_ROWS", 60)
    tiny = tiny_checkpoint(name, 0, tmp_path / "hf")
    (tmp_path / "state").mkdir()
    samples = samples_of([20] * 12, 90)
    _, report = calibrate(plan_conversion(tiny.path, "w4"), samples, tmp_path / "state")
    assert (report.samples, report.tokens) == (read, 20 * read)


TEXT = "\n\n".join(["Rivers carry sand, and sand makes stone. " * 30] * 6)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Of a mixture of experts, with a tokenizer of bytes."""
    tiny = checkpoint_of(
        "deepseek_v3", CONFIGS["deepseek_v3"][0] | {"vocab_size": 271}, tmp_path / "hf"
    )
    write_tokenizer(tiny.path)
    (tmp_path / "text.txt").write_text(TEXT)
    return tiny.path


def weights(artifact: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(artifact.glob("*.safetensors")))


def test_calibrated_weights_are_nearer_to_the_model(tmp_path: Path) -> None:
    """Of a trained model: inputs of random weights hardly correlate."""
    *some, other = built_in(33)
    lines = [json.dumps({"text": sample.text or str(sample.messages)}) for sample in some]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    exact = deepmnn.load("tiny-r1", quant="fp32")
    ids = sample_ids(other, exact.tokenizer, 256)
    found = {}
    for name, calibration in {"near": tmp_path / "text.jsonl", "far": False}.items():
        report = convert(bundled_checkpoint(), tmp_path / name, "w4", calibration=calibration)
        assert (report.calibration is not None) == (name == "near")
        rounded = deepmnn.load(tmp_path / name)
        found[name] = divergence(exact.logits(ids), rounded.logits(ids)).mean()
    assert found["near"] < 0.8 * found["far"], found


def test_the_same_samples_give_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        convert(checkpoint, tmp_path / name, "w4", calibration=tmp_path / "text.txt", samples=3)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert not list(tmp_path.glob(".*calibration"))


class _StoppedError(Exception):
    pass


def stop_after(steps: int) -> Callable[[int, int, str], None]:
    def progress(done: int, total: int, what: str) -> None:
        nonlocal steps
        steps -= 1
        if steps < 0:
            raise _StoppedError

    return progress


@pytest.mark.parametrize(
    "steps", [0, 7, 22, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 4, 13))]
)
def test_a_calibration_that_was_stopped_goes_on(
    checkpoint: Path, tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "STEP_TOKENS", 600)
    arguments = (checkpoint, tmp_path / "out", "w4")
    text = tmp_path / "text.txt"
    with pytest.raises(_StoppedError):
        convert(*arguments, calibration=text, progress=stop_after(steps))
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.deepmnn-calibration").is_dir()
    done: list[int] = []
    convert(*arguments, calibration=text, progress=lambda at, *_: done.append(at))
    assert not (tmp_path / ".out.deepmnn-calibration").exists()
    convert(checkpoint, tmp_path / "whole", "w4", calibration=text)
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def test_the_state_of_another_calibration_is_not_taken(checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    with pytest.raises(_StoppedError):
        convert(checkpoint, tmp_path / "out", "w4", calibration=text, progress=stop_after(8))
    text.write_text(TEXT.replace("Rivers", "Winds"))
    convert(checkpoint, tmp_path / "out", "w4", calibration=text)
    convert(checkpoint, tmp_path / "whole", "w4", calibration=text)
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def test_one_calibration_at_a_time(checkpoint: Path, tmp_path: Path) -> None:
    def again(done: int, total: int, what: str) -> None:
        convert(checkpoint, tmp_path / "out", "w4", calibration=tmp_path / "text.txt")

    with pytest.raises(StorageError, match="in use"):
        convert(
            checkpoint, tmp_path / "out", "w4", calibration=tmp_path / "text.txt", progress=again
        )


def test_experts_that_few_tokens_reach_are_rounded_to_nearest(
    checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("A short text.")
    report = convert(checkpoint, tmp_path / "out", "w4", calibration=tmp_path / "text.txt")
    assert report.calibration is not None
    experts = 3 * CONFIGS["deepseek_v3"][0]["n_routed_experts"]
    assert len(report.calibration.scarce) == experts
    convert(checkpoint, tmp_path / "nearest", "w4", calibration=False)
    graph = Artifact.open(tmp_path / "out").graph()
    for weight in graph.weights.values():
        stored = [Artifact.open(tmp_path / name).tensor(weight.name) for name in ("out", "nearest")]
        if weight.role in ("expert", "embedding", "vector", "router"):
            assert np.array_equal(*stored), weight.name
        elif weight.role in ("linear", "lm_head") and "layers.2" not in weight.name:
            assert not np.array_equal(*stored), weight.name


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"samples": 0}, "samples"),
        ({"samples": True}, "samples"),
        ({"calibration": "missing.txt"}, "missing.txt"),
        ({"calibration": True, "random_weights": True}, "random weights"),
    ],
)
def test_wrong_arguments(
    checkpoint: Path, tmp_path: Path, arguments: dict[str, Any], match: str
) -> None:
    with pytest.raises(RequestError, match=match):
        convert(checkpoint, tmp_path / "out", "w4", **arguments)
    assert not (tmp_path / "out").exists()


def test_without_a_tokenizer_weights_are_rounded_to_nearest(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("llama", 0, tmp_path / "hf")
    assert convert(tiny.path, tmp_path / "out", "w4").calibration is None
    with pytest.raises(TokenizerError):
        convert(tiny.path, tmp_path / "other", "w4", calibration=True)


def test_text_longer_than_the_context_is_cut(checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    report = convert(checkpoint, tmp_path / "out", "w4", calibration=tmp_path / "text.txt")
    assert report.calibration is not None
    assert report.calibration.tokens == 64 * report.calibration.samples
