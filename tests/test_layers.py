"""CONTRIBUTING.md draws the rooms in the order in which they may import one another."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "deepmnn"
ENTRANCES = {"__init__.py", "__main__.py"}
"""Stand before the rooms and may import from any of them."""


def rooms() -> list[str]:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (line,) = re.findall(r"^    (errors → .*\n +→ .*)$", text, re.M)
    return re.split(r"\s+→\s+", line)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Rooms that a file imports from."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("deepmnn."))


def test_every_file_has_a_room_and_every_room_files() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE]
    files += [path for path in PACKAGE.glob("*.py") if path.name not in ENTRANCES]
    assert {room_of(path) for path in files} == set(rooms())


def test_a_room_imports_only_from_rooms_before_it() -> None:
    order = rooms()
    seen = set()
    for number, room in enumerate(order):
        files = [*(PACKAGE / room).rglob("*.py"), *PACKAGE.glob(f"{room}.py")]
        found = {other for file in files for other in imported(file)}
        assert not found & set(order[number + 1 :]), room
        seen |= found
    assert seen >= {"graph", "backends", "engine"}
