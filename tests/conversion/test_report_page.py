"""The page of a report: whole HTML, alone in the world, whatever a tensor is called."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepmnn.conversion.convert import plan_conversion
from deepmnn.conversion.report.charts import histogram, layer_bars, level_bars
from deepmnn.conversion.report.facts import (
    ActivationFacts,
    CalibrationFacts,
    ExpertFacts,
    Facts,
    Judged,
    LayerFacts,
    LevelFacts,
    Point,
    Search,
    StoredFacts,
    WeightFacts,
)
from deepmnn.conversion.report.page import page
from deepmnn.conversion.report.recorder import Recorder
from deepmnn.conversion.report.scale import Scale
from deepmnn.graph.levels import PassResult
from deepmnn.quant.observers import METHODS, StaticRange
from deepmnn.quant.recipe import Recipe, Rule
from tiny_models import tiny_checkpoint

HOSTILE = (
    "</title></style></svg><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "a\x1b[31m\x00\x9b\u2028\u202eb\udc80",
    "&lt;b&gt; &amp; 'quoted'",
)
VOID = {"meta", "br", "img", "hr", "link", "input"}
ALLOWED = {"html", "head", "meta", "title", "style", "body", "main", "footer", "section", "div"} | {
    *("h1", "h2", "h3", "p", "b", "i", "small", "span", "ul", "li", "details", "summary"),
    *("table", "tr", "th", "td", "figure", "figcaption", "svg", "path", "rect", "circle", "text"),
}


class Page(HTMLParser):
    """Parses strictly: every tag is closed in its order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text.append(data)


def checked(text: str) -> Page:
    """A page that is whole, and asks nobody for anything."""
    text.encode()
    parsed = Page(text)
    names = {name for _, attributes in parsed.tags for name in attributes}
    assert {tag for tag, _ in parsed.tags} <= ALLOWED
    assert not [name for name in names if name.startswith("on")]
    assert not names & {"src", "href", "srcset", "action", "data", "xlink:href"}
    assert not re.search(r"https?:|url\(|@import", text)
    (policy,) = [a["content"] for tag, a in parsed.tags if tag == "meta" and "http-equiv" in a]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    for drawing in re.findall(r"<svg.*?</svg>", text, re.S):
        root = ElementTree.fromstring(drawing)
        for element in root.iter():
            for value in element.attrib.values():
                assert "nan" not in value
                assert "inf" not in value
    return parsed


def activation(name: str, layer: int | None, kl: float) -> ActivationFacts:
    ranges = {method: StaticRange(3.0, kl) for method in METHODS}
    return ActivationFacts(name, layer, (f"{name}.weight",), 10, 1, 4.0, (5, 3, 0, 1), ranges)


def facts(name: str = "plain", layers: int = 3) -> Facts:
    """All that there can be, every text the same."""
    shown = range(layers)
    return Facts(
        deepmnn_version=name,
        source=name,
        model_type=name,
        quant=name,
        recipe={"name": name, "rules": [{"pattern": name, "format": "w4"}]},
        optimize_level=3,
        parameters=1000,
        source_nbytes=2000,
        nbytes=500,
        nodes_level_0=9,
        nodes=4,
        dropped=(name,) * 20,
        unused=(name,),
        passes=(PassResult(name, 1, 9, 4),),
        stored=(StoredFacts(name, "w4", 3, 36, 192, 0.1),),
        layers=tuple(LayerFacts(n, {"w4": 100, "vector": 3}, 0.1, 0.02, 0.001) for n in shown),
        weights=tuple(WeightFacts(name, name, "w4", n, (3, 4), 64, name, 0.1) for n in shown),
        levels=(LevelFacts("w3", (-58, 0, 58), -60.0, 60.0, (1, 5, 0)),),
        calibration=CalibrationFacts(3, 100, 7, (name,)),
        activations=tuple(activation(name, n, kl) for n in shown for kl in (0.001, math.inf)),
        experts=tuple(ExpertFacts(n, (0, 3, 9)) for n in shown),
        judged=Judged(10, 0.1, 0.2, 0.9),
        search=Search(
            tuple(Point(100 * n, 0.1 / (n + 1)) for n in range(layers)),
            Point(100, 0.05),
            {name: 0.1},
        ),
        seconds={name: 1.0},
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_only_text(name: str) -> None:
    parsed = checked(page(facts(name)))
    text = "".join(parsed.text)
    printed = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    assert text.count(printed) >= 12
    assert page(facts(name)).count("<") == page(facts("plain")).count("<")
    facts(name).to_json().decode("ascii")


@pytest.mark.parametrize("layers", [0, 1, 2, 61, 200])
def test_any_number_of_layers(layers: int) -> None:
    checked(page(facts(layers=layers)))


def test_facts_that_are_not_known_are_not_shown() -> None:
    full = facts()
    bare = replace(
        full,
        source="",
        source_nbytes=0,
        dropped=(),
        unused=(),
        passes=(),
        weights=tuple(replace(weight, error=None) for weight in full.weights),
        stored=(),
        layers=tuple(LayerFacts(n, {"f32": 9}, None, None, None) for n in range(3)),
        levels=(),
        calibration=None,
        activations=(),
        experts=(),
        judged=None,
        search=None,
        seconds={},
    )
    parsed = checked(page(bare))
    titles = re.findall(r"<h2>(.*?)</h2>", page(bare))
    assert titles == ["By layer", "Sizes", "Graph"]
    assert "None" not in "".join(parsed.text)


def test_degenerate_numbers() -> None:
    """Zeros, infinities and equal numbers on every axis."""
    search = Search((Point(1, math.inf), Point(1, 0.0), Point(1, 0.0)), Point(1, 0.0), {})
    zero = replace(activation("a", 0, 0.0), largest=0.0, bars=(0, 0))
    layers = tuple(LayerFacts(n, {"w8": 0}, 0.0, 0.0, 0.0) for n in range(2))
    checked(page(replace(facts(), search=search, activations=(zero,), layers=layers)))


def test_a_page_of_a_real_conversion(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("deepseek_v3", 0, tmp_path / "hf")
    weights = tiny.path / "model.safetensors"
    save_file(load_file(weights) | {HOSTILE[0]: torch.zeros(2)}, weights)
    rules = (Rule(HOSTILE[1], "w3"), Rule("*", "w4"))
    plan = plan_conversion(tiny.path, Recipe(HOSTILE[1], rules))
    parsed = checked(page(Recorder(plan.source).facts(plan)))
    assert HOSTILE[0] in parsed.text
    assert HOSTILE[1] in parsed.text


@pytest.mark.parametrize(
    ("low", "high", "is_log"),
    [
        (0, 1, False),
        (0, 3_200_000, False),
        (3.1, 8.2, False),
        (5, 5, False),
        (1e-5, 0.4, True),
        (0.09, 0.13, True),
        (3e-9, 2e4, True),
    ],
)
def test_ticks_are_round_numbers_between_the_ends(low: float, high: float, is_log: bool) -> None:
    scale = Scale(low, high, 10, 90, is_log)
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 7
    assert ticks == sorted(set(ticks))
    for tick in ticks:
        assert low <= tick <= high * (1 + 1e-9)
        assert float(f"{tick:.2g}") == pytest.approx(tick)
    places = [scale(tick) for tick in ticks]
    assert places == sorted(places)
    assert low == high or (scale(low), scale(high)) == (10, 90)


def test_charts_of_nothing() -> None:
    for drawing in (
        layer_bars([], str, "none"),
        histogram([], [], ("", ""), "none"),
        level_bars([], -1, 1, (0,), "none"),
    ):
        ElementTree.fromstring(drawing)
