"""Charts: what is drawn is where the numbers are, on paper that has room for all of them."""

from __future__ import annotations

import math
import re
from importlib.resources import files
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from deepmnn.conversion.report import charts
from deepmnn.conversion.report.charts import Bar, Distribution, Line, Mark
from deepmnn.formats import FORMATS

NAMES = ("embed", "0", "1", "2", "logits")


def drawn(svg: str) -> ElementTree.Element:
    """Parsed, every number finite and on the paper."""
    root = ElementTree.fromstring(svg)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for element in root.iter():
        for name, value in element.attrib.items():
            assert not re.search(r"nan|inf\b", value), (name, value)
        for name, most in (("cx", width), ("x", width), ("cy", height), ("y", height)):
            assert 0 <= float(element.attrib.get(name, 0)) <= most
    return root


def line(style: str, values: list[float]) -> Line:
    return Line(style, list(enumerate(values)), lambda layer, value: f"{NAMES[layer]}: {value}")


def dots(root: ElementTree.Element, style: str) -> list[tuple[float, float, str]]:
    return [
        (float(e.attrib["cx"]), float(e.attrib["cy"]), e[0].text or "")
        for e in root.iter("circle")
        if style in e.attrib["class"].split()
    ]


def words(root: ElementTree.Element) -> list[str]:
    return [e.text or "" for e in root.iter("text")]


def test_lines_by_depth_are_logarithmic() -> None:
    first, second = line("c0", [1e-6, 1e-4, 1e-2]), line("c1", [1e-5, 1e-5])
    root = drawn(charts.layer_lines([first, second], NAMES, "error", str, 1e-3, charts.WIDE))
    (low, middle, high), flat = dots(root, "c0"), dots(root, "c1")
    assert low[1] - middle[1] == pytest.approx(middle[1] - high[1], abs=0.2)
    assert flat[0][1] == flat[1][1] == pytest.approx((low[1] + middle[1]) / 2, abs=0.2)
    assert middle[0] - low[0] == pytest.approx(high[0] - middle[0], abs=0.2)
    assert [said for *_, said in (low, flat[1])] == ["embed: 1e-06", "0: 1e-05"]
    (bound,) = [e.attrib["d"] for e in root.iter("path") if e.attrib["class"] == "bound"]
    assert float(bound.split()[1].split("H")[0]) == pytest.approx((middle[1] + high[1]) / 2, abs=1)
    assert set(NAMES) <= set(words(root))


def test_what_is_no_number_has_no_place() -> None:
    values = [math.nan, 0.0, math.inf, 0.1, 0.2]
    root = drawn(charts.layer_lines([line("c0", values)], NAMES, "error", str))
    found = {said.split(":")[0]: down for _, down, said in dots(root, "c0")}
    assert found.keys() == {"0", "1", "2", "logits"}
    assert found["0"] > found["2"] > found["logits"] > found["1"]
    bars = [[Bar("c0", value, name)] for value, name in zip(values, NAMES, strict=True)]
    assert len(list(drawn(charts.layer_groups(bars, NAMES, "error", str)).iter("rect"))) == 4
    for svg in (
        charts.layer_lines([line("c0", [])], (), "none", str),
        charts.layer_lines([], 0, "none", str),
        charts.layer_groups([], 0, "none", str),
        charts.row_bars([], str, "none"),
        charts.growth([], [], "none", (str, str), ("", "")),
        charts.distributions([], 0, 1, str, "none"),
        charts.distributions([Distribution("c0", (0, 0), "")], 0, 0, str, "none"),
    ):
        drawn(svg)


def test_long_names_of_an_axis_do_not_touch() -> None:
    names = [f"model.layers.{n}" for n in range(70)]
    root = drawn(charts.layer_lines([line("c0", [0.1, 0.2])], names, "e", str, None, charts.WIDE))
    places = [(float(e.attrib["x"]), e.text or "") for e in root.iter("text")]
    named = [(at, name) for at, name in places if name in names]
    assert len(named) > 5
    for (left, name), (right, _) in pairwise(named):
        assert right - left > len(name) * 6.4


def test_bars_of_a_layer_stand_side_by_side() -> None:
    groups = [[Bar("c0", 1e-4, "a"), Bar("c1", 1e-2, "b")], [Bar("c0", 1e-3, "c")]]
    root = drawn(charts.layer_groups(groups, 2, "error", str, 1e-3))
    bars = {
        e[0].text: {k: float(v) for k, v in e.attrib.items() if k != "class"}
        for e in root.iter("rect")
    }
    assert bars["a"]["x"] + bars["a"]["width"] == pytest.approx(bars["b"]["x"], abs=0.2)
    assert bars["b"]["x"] + bars["b"]["width"] < bars["c"]["x"]
    one, two, between = (bars[name]["y"] for name in "abc")
    assert between == pytest.approx((one + two) / 2, abs=0.2)
    assert len({round(bar["y"] + bar["height"], 0) for bar in bars.values()}) == 1


def outline(path: str) -> list[float]:
    """The heights of an outline's steps, from its floor."""
    floor = float(path.split()[1].split("V")[0])
    return [floor - float(height) for height in re.findall(r"V([\d.]+)h", path)]


@pytest.mark.parametrize("is_log", [False, True])
def test_distributions_lie_over_one_another(is_log: bool) -> None:
    rng = np.random.default_rng(0)
    few, many = rng.standard_normal(10_000), rng.standard_normal(60_000) * 2
    counts = [np.histogram(x, 40, (-8, 8))[0] for x in (few, many)]
    found = [Distribution(f"c{n}", count.tolist(), f"d{n}") for n, count in enumerate(counts)]
    twice = Distribution("c2", (counts[0] * 2).tolist(), "twice as many numbers")
    root = drawn(charts.distributions([*found, twice], -8, 8, str, "both", is_log))
    lines = {e.attrib["class"]: e.attrib["d"] for e in root.iter("path")}
    narrow, wide = (outline(lines[f"line c{n}"]) for n in range(2))
    assert outline(lines["line c2"]) == narrow
    assert len(narrow) == len(wide) == 40
    assert max(narrow) > max(wide)
    for heights, count in zip((narrow, wide), counts, strict=True):
        assert int(np.argmax(heights)) == int(np.argmax(count))
        assert np.all(np.array(heights)[count == 0] == 0)
        assert np.corrcoef(heights, np.log1p(count) if is_log else count)[0, 1] > 0.97
    assert {"d0", "d1"} <= {e.text for e in root.iter("title")}
    assert {"-5.0", "0.0", "5.0"} <= set(words(root))


def test_rows_are_as_long_as_they_are_large() -> None:
    rows = [("large", [Bar("w4", 60, "a"), Bar("w8", 40, "b")]), ("small", [Bar("w8", 50, "c")])]
    root = drawn(charts.row_bars(rows, lambda size: f"{size:g} B", "sizes"))
    bars = {e[0].text: e.attrib for e in root.iter("rect")}
    widths = [float(bars[name]["width"]) for name in "abc"]
    assert widths[0] / widths[1] == pytest.approx(1.5, rel=0.01)
    assert widths[2] == pytest.approx((widths[0] + widths[1]) / 2, abs=0.2)
    assert words(root) == ["large", "100 B", "small", "50 B"]


def test_growth_has_lines_across_it() -> None:
    lines = [Line("c0", [(512, 1e9), (4096, 2e9), (32768, 8e9)], lambda x, y: f"{x}, {y:g}")]
    marks = [Mark(4e9, "this machine")]
    root = drawn(charts.growth(lines, marks, "memory", (str, str), ("context", "memory")))
    at = {said: (across, down) for across, down, said in dots(root, "c0")}
    steps = [at[f"{x}, {y:g}"][0] for x, y in lines[0].points]
    assert steps[1] - steps[0] == pytest.approx(steps[2] - steps[1], abs=0.2)
    (bound,) = [e.attrib["d"] for e in root.iter("path") if e.attrib["class"] == "bound"]
    downs = [down for _, down in at.values()]
    assert float(bound.split()[1].split("H")[0]) == pytest.approx(sum(downs[1:]) / 2, abs=0.2)
    assert {"this machine", "512", "4096", "32768", "context", "memory"} <= set(words(root))


def test_every_format_has_a_colour() -> None:
    style = (files("deepmnn.conversion.report") / "page.css").read_text()
    selectors = re.findall(r"^(\..*?) \{ --own", style, re.M)
    styled = {name.strip(" .") for each in selectors for name in each.split(",")}
    assert set(FORMATS) <= styled
