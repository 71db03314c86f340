"""Errors speak Python to Python and flags to a shell, and every flag and verb they name exists."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import deepmnn
from deepmnn.cli import app
from deepmnn.errors import DeepmnnError, Words, argument
from tiny_artifact import tiny_artifact, write_config

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "deepmnn").rglob("*.py"))
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
VERB = re.compile(r"\bdeepmnn (?:[a-z]+)\b(?! \w+ (?:runs|reads))")
PROSE = {"deepmnn does", "deepmnn reads", "deepmnn again", "deepmnn program", "deepmnn exported"}
"""Sentences, not commands."""

ANOTHER = re.compile(r"\bmlx_lm\.\w+ .*")
"""A command of another program."""

OTHERS = {"exporters/mnn/export.py", "exporters/mnn/tapped.py", "backends/mnn/wheel.py"}
"""Hold the flags of MNN's own converter."""


def verbs() -> dict[str, set[str]]:
    """Command → its flags; "cache list" is a command of two words."""
    found: dict[str, set[str]] = {}

    def add(name: str, command: Any) -> None:
        for sub_name, sub in getattr(command, "commands", {}).items():
            add(f"{name} {sub_name}".strip(), sub)
        flags = {opt for p in command.params for opt in (*p.opts, *p.secondary_opts)}
        found[name] = {flag for flag in flags if flag.startswith("--")} | {"--help"}

    add("", typer.main.get_command(app))
    return found


VERBS = verbs()
FLAGS = set().union(*VERBS.values())


def texts(node: ast.AST) -> Iterator[str]:
    """String constants in a tree, those inside f-strings too."""
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each.value


def docstrings(tree: ast.AST) -> set[int]:
    """Strings that stand alone: documentation."""
    return {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def named(text: str) -> set[str]:
    """What a text says as the command line would."""
    text = ANOTHER.sub("", text)
    return set(FLAG.findall(text)) | (set(VERB.findall(text)) - PROSE)


def wrong(text: str) -> list[str]:
    """Flags and verbs in it that there are not; a flag after a verb must be that verb's."""
    missing = []
    for command in VERB.findall(text):
        if command not in PROSE and command.removeprefix("deepmnn ") not in VERBS:
            missing.append(command)
    for match in FLAG.finditer(text):
        before: list[str] = re.findall(r"deepmnn ([a-z]+)", text[: match.start()])
        known = VERBS.get(before[-1], FLAGS) if before else FLAGS
        if match[0] not in known:
            missing.append(f"{before[-1:]} {match[0]}")
    return missing


def words_calls(tree: ast.AST) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Words"
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_only_words_for_a_shell_name_flags(path: Path) -> None:
    room = str(path.relative_to(ROOT / "src" / "deepmnn"))
    tree = ast.parse(path.read_text())
    shell, python = set[int](), list[str]()
    for call in words_calls(tree):
        assert len(call.args) == 2, "Words(python, shell)"
        python += texts(call.args[0])
        shell |= {id(node) for node in ast.walk(call.args[1])}
        for text in texts(call.args[1]):
            assert not wrong(text), text
    assert not [text for text in python if named(text)]
    helps = {
        id(each)
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg == "metadata"
        for each in ast.walk(node)
    }
    skipped = docstrings(tree) | shell
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        if id(node) in skipped or room in OTHERS:
            continue
        if room.startswith("cli/") or id(node) in helps:
            assert not wrong(node.value), node.value
        else:
            assert not named(node.value), f"{node.value!r} belongs into Words"


def test_the_sweep_can_fail() -> None:
    assert named("Overwrite it with --overwrite.")
    assert named("Run: deepmnn convert X OUT")
    assert not named("Convert the model again with this version of deepmnn.")
    assert wrong("Try --no-such-flag.")
    assert wrong("deepmnn generate --raw") == []
    assert wrong("deepmnn chat --raw")
    assert wrong("deepmnn nothing X")


def commands_of(page: Path) -> Iterator[str]:
    """The lines of a page's code blocks that call deepmnn."""
    for line in page.read_text().splitlines():
        if re.match(r"(?:    |\$ )?\s*deepmnn [a-z]", line):
            yield line.split("#")[0].strip().removeprefix("$ ")


PAGES = [ROOT / "README.md", ROOT / "bench" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_name_commands_that_exist(page: Path) -> None:
    for line in commands_of(page):
        _, verb, *rest = shlex.split(line)
        name = f"{verb} {rest[0]}" if rest and f"{verb} {rest[0]}" in VERBS else verb
        assert name in VERBS, line
        if name != "mnnconvert":
            assert {word.split("=")[0] for word in rest if word.startswith("--")} <= VERBS[name]


# ------------------------------------------------------------------------------ both sides


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted model, `model`, its checkpoint without weights, `source`, and an empty folder."""
    path = tmp_path_factory.mktemp("messages")
    tiny_artifact(path, quant="w8")
    write_config(path / "bare", tokenizer=False)
    (path / "bare" / "config.json").unlink()
    return path


CASES: dict[str, tuple[Callable[[Path], object], str, str, str]] = {
    "exists": (
        lambda p: deepmnn.convert(p / "source", p / "model", random_weights=True),
        "convert {p}/source {p}/model --random-weights",
        "overwrite=True",
        "--overwrite",
    ),
    "recipe": (
        lambda p: deepmnn.convert(p / "source", p / "o", "w7"),
        "convert {p}/source {p}/o --quant w7",
        "deepmnn.Recipe",
        ".yaml file",
    ),
    "no config": (
        lambda p: deepmnn.convert(p / "bare", p / "o"),
        "convert {p}/bare {p}/o",
        "`config`",
        "--config",
    ),
    "no model": (
        lambda p: deepmnn.load(p / "bare"),
        "generate {p}/bare x",
        "deepmnn.convert(CHECKPOINT, OUT)",
        "deepmnn convert CHECKPOINT OUT",
    ),
    "cache dtype": (
        lambda p: deepmnn.load(p / "model", kv_dtype="f64"),
        "generate {p}/model x --kv-dtype f64",
        "kv_dtype is 'f64'",
        "--kv-dtype is 'f64'",
    ),
    "backend": (
        lambda p: deepmnn.load(p / "model", "reference", isa="avx2"),
        "generate {p}/model x --backend reference --isa avx2",
        "expected backend 'cpu'",
        "expected --backend cpu",
    ),
    "converted": (
        lambda p: deepmnn.load(p / "model", quant="w4"),
        "generate {p}/model x --quant w4",
        "no quant",
        "no --quant",
    ),
    "sampling": (
        lambda p: deepmnn.SamplingParams(top_p=2),
        "generate {p}/model x --top-p 2",
        "top_p is 2",
        "--top-p is 2",
    ),
    "cache": (
        lambda p: deepmnn.load(p / "model", cache_tokens=32).generate("x" * 99),
        "generate {p}/model " + "x" * 99 + " --cache-tokens 32",
        "larger cache_tokens",
        "larger --cache-tokens",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_python_hears_python_and_a_shell_hears_flags(case: str, place: Path) -> None:
    call, command, in_python, in_shell = CASES[case]
    with pytest.raises(DeepmnnError) as raised:
        call(place)
    said = str(raised.value)
    assert in_python in said
    assert not named(said)
    result = CliRunner().invoke(app, shlex.split(command.format(p=place)))
    assert result.exit_code == 1, result.output
    printed = result.stderr.splitlines()[-1]
    assert in_shell in printed
    assert in_python not in printed
    assert not wrong(printed)


def test_words() -> None:
    error = DeepmnnError(argument("kv_dtype", " is 'x'"), Words("a", "b"), "Do that.")
    assert str(error) == "kv_dtype is 'x'; expected a. Do that."
    assert error.shell == "--kv-dtype is 'x'; expected b. Do that."
    assert str(argument("seed")) == "seed"
    assert DeepmnnError("plain").shell == "plain"
