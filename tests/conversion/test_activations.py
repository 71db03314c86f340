"""Histograms of what matrices multiply, beside transformers' own values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from deepmnn.conversion.activations import histograms
from deepmnn.conversion.convert import plan_conversion
from deepmnn.errors import RequestError
from deepmnn.source.source import Source
from parity import prompts_for
from tiny_models import tiny_checkpoint


def test_the_values_are_those_of_transformers(tmp_path: Path) -> None:
    """As far as w8 weights allow."""
    tiny = tiny_checkpoint("llama", 0, tmp_path / "hf")
    samples = [np.array(ids, np.int32) for ids in prompts_for((9, 30, 1), 90)]
    (tmp_path / "state").mkdir()
    calls: list[int] = []
    plan = plan_conversion(tiny.path, "fp32")
    found = histograms(plan, samples, tmp_path / "state", lambda *call: calls.append(call[0]))
    seen: dict[str, list[torch.Tensor]] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, x, key=key: seen.setdefault(key, []).append(x[0].abs())
        )
        for key, module in tiny.model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    for sample in samples:
        tiny.logits(sample.tolist())
    for hook in hooks:
        hook.remove()
    want = sorted(
        {round(float(torch.cat([x.reshape(-1) for x in v]).max()), 5) for v in seen.values()}
    )
    got = sorted(histogram.largest for histogram in found.values())
    assert len(got) == len(want) == 2 * 4 + 1  # q, o, gate, down of each layer; the head
    np.testing.assert_allclose(got, want, rtol=0.05)
    for histogram in found.values():
        assert (histogram.zeros + histogram.counts.sum()) % 40 == 0
    assert calls == sorted(calls)
    assert len(calls) == 3 * 3


def test_activations_that_are_no_numbers(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("llama", 0, tmp_path / "hf")
    plan = plan_conversion(tiny.path, "fp32")
    source: Source = plan.source
    read = source.read
    source.read = lambda name: read(name) * np.float32(1e30 if "norm" in name else 1)  # type: ignore[method-assign]
    (tmp_path / "state").mkdir()
    with pytest.raises(RequestError, match="NaN or infinity"):
        histograms(plan, [np.array([1, 2], np.int32)], tmp_path / "state")
