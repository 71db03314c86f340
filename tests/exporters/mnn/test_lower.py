"""What latent attention caches on MNN, by itself or as told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deepmnn.errors import RequestError
from deepmnn.exporters.mnn import lower
from deepmnn.exporters.mnn.lower import choose_mla_form
from deepmnn.graph.ir import Graph
from deepmnn.graph.levels import optimize
from deepmnn.models import build

PUBLISHED = Path(__file__).parents[2] / "models" / "published"


def published(name: str, level: int = 3, **fields: int) -> Graph:
    """Its graph, of three layers: fusing many takes a while."""
    config = json.loads((PUBLISHED / f"{name}.json").read_text())
    config |= {"num_hidden_layers": 2, "n_routed_experts": 8, "n_group": 1, "topk_group": 1}
    config |= {"num_nextn_predict_layers": 0, **fields}
    return optimize(build(config), level)[0]


@pytest.mark.parametrize(
    ("name", "form", "width"),
    [
        # keys of 128 + 64 and as wide values, per head; 27 layers of 16 heads, 60 or 61 of 128
        ("DeepSeek-V2-Lite", "expanded", 2 * 16 * 192),
        ("DeepSeek-V2", "absorbed", 2 * 128 * 192),
        ("DeepSeek-Coder-V2-Instruct", "absorbed", 2 * 128 * 192),
        ("DeepSeek-V3", "absorbed", 2 * 128 * 192),
        ("DeepSeek-R1", "absorbed", 2 * 128 * 192),
        ("DeepSeek-R1-Distill-Qwen-7B", "", 0),
        ("deepseek-moe-16b-base", "", 0),
    ],
)
def test_auto_is_expanded_while_the_cache_is_small(
    monkeypatch: pytest.MonkeyPatch, name: str, form: str, width: int
) -> None:
    config = json.loads((PUBLISHED / f"{name}.json").read_text())
    graph, layers = published(name), config["num_hidden_layers"]
    # The limit is for all layers; here are two.
    monkeypatch.setattr(lower, "CACHE_LIMIT", lower.CACHE_LIMIT * 2 // layers)
    assert choose_mla_form(graph, "auto") == form
    exact = width * 2 * 4 * 4096
    if form:
        monkeypatch.setattr(lower, "CACHE_LIMIT", exact)
        assert choose_mla_form(graph, "auto") == "expanded"
        monkeypatch.setattr(lower, "CACHE_LIMIT", exact - 1)
        assert choose_mla_form(graph, "auto") == "absorbed"


def test_values_wider_than_keys_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = published("DeepSeek-V2-Lite", v_head_dim=256)
    monkeypatch.setattr(lower, "CACHE_LIMIT", 2 * 2 * 16 * 256 * 4 * 4096)
    assert choose_mla_form(graph, "auto") == "expanded"
    monkeypatch.setattr(lower, "CACHE_LIMIT", lower.CACHE_LIMIT - 1)
    assert choose_mla_form(graph, "auto") == "absorbed"


@pytest.mark.parametrize("wanted", ["expanded", "absorbed"])
def test_as_told(wanted: str) -> None:
    for name in ("DeepSeek-V2-Lite", "DeepSeek-V3"):
        assert choose_mla_form(published(name), wanted) == wanted
    assert choose_mla_form(published("DeepSeek-R1-Distill-Qwen-7B"), wanted) == ""


@pytest.mark.parametrize("level", [0, 1, 2])
def test_below_level_3_it_is_expanded(level: int) -> None:
    for name in ("DeepSeek-V2-Lite", "DeepSeek-V3"):
        graph = published(name, level)
        assert choose_mla_form(graph, "auto") == choose_mla_form(graph, "expanded") == "expanded"
        with pytest.raises(RequestError, match=r"below optimize level 3.*optimize_level=3"):
            choose_mla_form(graph, "absorbed")


@pytest.mark.parametrize("wanted", ["", "x", "Expanded", "latent"])
def test_forms_that_are_none(wanted: str) -> None:
    with pytest.raises(RequestError, match="auto or expanded or absorbed"):
        choose_mla_form(published("DeepSeek-V2-Lite"), wanted)
