"""Planted faults that a switch turns off: bisecting names the switch, in few runs."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.backends.reference import cache
from deepmnn.conversion.convert import convert
from deepmnn.conversion.stage import Stage
from deepmnn.errors import RequestError
from deepmnn.exporters.mnn.export import export
from deepmnn.graph.passes import fuse_swiglu
from deepmnn.graph.weights import Interleave
from deepmnn.inspect.bisect.bisect import IN_THE_MODEL, NOTHING, ON_MNN, Bisection, bisect
from deepmnn.inspect.bisect.search import smallest
from deepmnn.inspect.samples import read_samples
from deepmnn.inspect.sides.opened import opened
from deepmnn.inspect.sides.options import SideOptions
from planted import GQA, V2, V3, changed, shaken, source_of, wrong_pairs

NUMPY = SideOptions(backend="reference")


def bisected(
    model: Path, reference: Path, bound: float, ours: SideOptions | None = None, tokens: int = 60
) -> Bisection:
    with ExitStack() as stack:
        a = stack.enter_context(opened(str(model), ours))
        b = stack.enter_context(opened(str(reference), NUMPY))
        return bisect(a, b, read_samples(None, None, a.vocab_size, 128, tokens), bound)


@pytest.mark.parametrize("count", [1, 2, 3, 16, 61, 300])
def test_halving_finds_one_or_two_in_few_runs(count: int) -> None:
    rng = np.random.default_rng(count)
    for size in (1, 2):
        guilty = set(rng.choice(count, min(size, count), replace=False).tolist())
        runs = 0

        def works(off: list[int], guilty: set[int] = guilty) -> bool:
            nonlocal runs
            runs += 1
            return guilty <= set(off)

        assert smallest(range(count), works) == sorted(guilty)
        assert runs <= size * (math.log2(count) + 2)


def test_what_is_spread_has_no_small_set() -> None:
    assert smallest(range(64), lambda off: len(off) > 40) is None


def test_a_sound_model_has_nothing_to_switch_off(tmp_path: Path) -> None:
    source = source_of(tmp_path / "source", V3)
    convert(source, tmp_path / "model", "fp32")
    found = bisected(tmp_path / "model", source, 1e-4)
    assert found.advice == (NOTHING,)
    assert not found.blamed
    assert len(found.trials) == 1


@pytest.mark.parametrize("model_type", [GQA, V2, V3])
def test_a_wrong_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str) -> None:
    source = source_of(tmp_path / "source", model_type)
    monkeypatch.setattr(fuse_swiglu, "Interleave", lambda pair: Interleave(pair[::-1]))
    convert(source, tmp_path / "model", "fp32")
    found = bisected(tmp_path / "model", source, 1e-3)
    assert found.blamed == ("fuse_swiglu",)
    assert found.axes == ("passes",)
    assert found.off is not None
    assert found.off.error < 1e-5
    assert found.on is not None
    assert found.on.error > 1e-3
    assert found.as_it_is.error > 1e-3


@pytest.mark.parametrize("model_type", [GQA, V2, V3])
def test_a_damaged_weight(tmp_path: Path, model_type: str) -> None:
    source = source_of(tmp_path / "source", model_type, hidden_size=72)
    name = "model.layers.1.self_attn.o_proj.weight"
    convert(changed(source, tmp_path / "damaged", {name: shaken}), tmp_path / "model", "w8")
    found = bisected(tmp_path / "model", source, 0.2)
    assert found.blamed == ("linear weights in w8 in layer 1",)


def test_formats_that_are_too_narrow_everywhere(tmp_path: Path) -> None:
    source = source_of(tmp_path / "source", GQA)
    convert(source, tmp_path / "model", "w3")
    found = bisected(tmp_path / "model", source, 1e-3)
    assert found.axes == ("weights",)
    assert len(found.blamed) == 5  # embedding, three layers, head


def test_a_cache_that_breaks_at_a_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the reference, whose cache can be patched, and by the engine."""
    source = source_of(tmp_path / "source", V3)
    convert(source, tmp_path / "model", "fp32")
    round_trip = cache.int8_round_trip

    def wrong(x: np.ndarray, column: int = 0) -> np.ndarray:
        y = round_trip(x, column)
        y[40:] *= 3.0
        return y

    ours = SideOptions(backend="reference", kv_dtype="int8")
    assert not bisected(tmp_path / "model", source, 0.2, ours).blamed
    monkeypatch.setattr(cache, "int8_round_trip", wrong)
    found = bisected(tmp_path / "model", source, 0.2, ours)
    assert found.blamed == ("kv_dtype int8",)
    assert bisected(tmp_path / "model", source, 0.2, ours, tokens=36).advice == (NOTHING,)


def test_the_engines_cache_breaks_at_a_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 40 tokens on, int8 caches have the first block's rows in the second one's place."""
    source = source_of(tmp_path / "source", V2)
    convert(source, tmp_path / "model", "fp32")
    new_cache, step, dtypes = CpuBackend.new_cache, CpuBackend.step, dict[int, str]()

    def noted(
        self: CpuBackend,
        blocks: int,
        block_size: int,
        dtype: str = "f32",
        recent_blocks: int | None = None,
    ) -> Any:
        made = new_cache(self, blocks, block_size, dtype, recent_blocks)
        dtypes[id(made)] = dtype
        return made

    def broken(self: CpuBackend, kv: Any, batch: Any) -> Any:
        if dtypes[id(kv)] == "int8" and batch.context_lengths[0] > 40:
            kv.copy_block(int(batch.block_tables[0, 0]), int(batch.block_tables[0, 1]))
        return step(self, kv, batch)

    ours = SideOptions(kv_dtype="int8")
    assert not bisected(tmp_path / "model", source, 0.2, ours).blamed
    monkeypatch.setattr(CpuBackend, "new_cache", noted)
    monkeypatch.setattr(CpuBackend, "step", broken)
    found = bisected(tmp_path / "model", source, 0.2, ours)
    assert found.blamed == ("kv_dtype int8",)
    assert found.on is not None
    assert bisected(tmp_path / "model", source, 0.2, ours, tokens=36).advice == (NOTHING,)


def test_the_engines_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that is wrong in one layer, and right by numpy."""
    source = source_of(tmp_path / "source", GQA)
    convert(source, tmp_path / "model", "fp32")
    run = Stage.run

    def wrong(self: Stage, samples: Any, inputs: Any) -> Any:
        outputs = run(self, samples, inputs)
        for name in ("layers.1.attention_residual", "layers.1.mlp_residual"):
            if name in outputs:
                outputs[name] = outputs[name] * np.float32(1.1)
        return outputs

    monkeypatch.setattr(Stage, "run", wrong)
    monkeypatch.setattr("deepmnn.inspect.bisect.bisect.by_whole", lambda *_: _raise)
    found = bisected(tmp_path / "model", source, 1e-3, SideOptions(optimize_level=1))
    assert found.blamed == ("the engine's kernels in layer 1",)


def _raise(_: Any) -> Any:
    raise AssertionError


def test_what_no_switch_turns_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(tmp_path / "source", V3)
    wrong_pairs(monkeypatch)
    convert(source, tmp_path / "model", "fp32")
    with ExitStack() as stack:
        a = stack.enter_context(opened(str(tmp_path / "model")))
        b = stack.enter_context(opened(str(source), SideOptions(backend="torch")))
        found = bisect(a, b, read_samples(None, None, a.vocab_size, 128, 60), 1e-3)
    assert found.advice == (IN_THE_MODEL,)


def test_a_bound_that_is_none(tmp_path: Path) -> None:
    source = source_of(tmp_path / "source", GQA)
    with pytest.raises(RequestError, match="positive"):
        bisected(source, source, 0.0, NUMPY)


def test_a_reference_whose_numbers_are_another_models(tmp_path: Path) -> None:
    source = source_of(tmp_path / "source", GQA)
    other = source_of(tmp_path / "other", GQA, vocab_size=101)
    with pytest.raises(RequestError, match="vocabulary"):
        bisected(source, other, 0.1, NUMPY)


def test_mnn_against_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own rounding is a switch where the converted model can run without it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = source_of(tmp_path / "source", GQA)
    convert(source, tmp_path / "model", "w4")
    with ExitStack() as stack:
        a = stack.enter_context(opened(str(tmp_path / "model"), SideOptions(backend="mnn")))
        b = stack.enter_context(opened(str(tmp_path / "model"), SideOptions()))
        found = bisect(a, b, read_samples(None, None, a.vocab_size, 128, 60), 0.01)
    assert found.blamed == ("MNN",)
    export(tmp_path / "model", tmp_path / "folder")
    found = bisected(tmp_path / "folder", source, 1e-4)
    assert found.advice == (ON_MNN,)
