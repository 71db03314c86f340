"""An op and a format are named only in the files that CONTRIBUTING.md lists for adding one."""

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from deepmnn.formats import FORMATS
from deepmnn.graph.signatures import SIGNATURES

ROOT = Path(__file__).parents[1]

ELSEWHERE_IN_USE = {
    *("linear", "embedding", "attention"),  # a weight's role, a RoPE scaling, MNN's op
    *("scale", "cache", "rope", "top_k", "normalize"),  # attributes and parameters
    *("add", "mul", "split", "concat", "reshape", "gather"),  # Python's and MNN's words
    *("silu", "sigmoid", "softmax", "moe"),  # values in config.json, a module's name
}
"""Ops whose name is also another word: a search cannot tell which is meant."""

RECIPES = {name for name, format in FORMATS.items() if format.is_quantized}
"""Each has a recipe of its name; where a default recipe stands, the recipe is meant."""
DEFAULT_RECIPES = re.compile(r"quant\b|QUANT|SCHEMES|Option\(|recipe")


def listed(section: str) -> list[str]:
    """The files of a section's table; a folder ends in a slash, <op> stands for any name."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    body = text.split(f"## {section}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", body, re.M)
    return [file for row in rows for file in re.findall(r"`([^`]+)`", row)]


def allowed(file: str, places: Iterable[str]) -> bool:
    patterns = (re.sub(r"<\w+>", "@", place) for place in places)
    return any(
        re.fullmatch(
            re.escape(pattern).replace("@", r"\w+") + (".*" if pattern[-1] == "/" else ""), file
        )
        for pattern in patterns
    )


SOURCES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").splitlines()
    for folder, suffix in (("src", "py"), ("native", "h"), ("native", "cc"))
    for path in (ROOT / folder).rglob(f"*.{suffix}")
    if not path.is_relative_to(ROOT / "native" / "tests")
}
"""Tests and documentation name what they like."""


def found(pattern: str) -> list[tuple[str, str]]:
    """(file, line) of the sources that match."""
    search = re.compile(pattern).search
    return [(file, line) for file, lines in SOURCES.items() for line in lines if search(line)]


@pytest.mark.parametrize("op", sorted(SIGNATURES.keys() - ELSEWHERE_IN_USE))
def test_an_op_is_named_where_contributing_says(op: str) -> None:
    places = [
        *listed("Add a fused op"),
        *("src/deepmnn/graph/builder.py", "src/deepmnn/models/", "native/bindings/kernel_table.cc"),
    ]
    files = {file for file, _ in found(rf"[\"']{op}[\"']")}
    assert files, f"nothing knows {op}"
    assert not [file for file in sorted(files) if not allowed(file, places)]


@pytest.mark.parametrize("name", sorted(n for n, f in FORMATS.items() if f.is_quantized))
def test_a_format_is_named_where_contributing_says(name: str) -> None:
    places = listed("Add a format")
    lines = found(rf"[\"']{name}[\"']|Format::{name}\b")
    assert {file for file, _ in lines} >= {"src/deepmnn/formats.py", "native/kernels/formats.h"}
    wrong = [
        (file, text)
        for file, text in lines
        if not allowed(file, places) and not (name in RECIPES and DEFAULT_RECIPES.search(text))
    ]
    assert not wrong


def test_the_files_that_contributing_lists_exist() -> None:
    for section in ("Add a fused op", "Add a format"):
        for place in listed(section):
            assert "<" in place or (ROOT / place).exists(), place
