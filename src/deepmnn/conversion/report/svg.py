"""The parts of drawings: text, paths, and the SVG around them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def escaped(text: str) -> str:
    """Text as HTML and SVG show it: what cannot be printed is written out."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return escape("".join(shown), quote=True)


def number(value: float) -> str:
    """A coordinate."""
    return f"{value:.1f}".removesuffix(".0")


def path(places: Sequence[tuple[float, float]]) -> str:
    """The "d" of a line through some places."""
    joined = "L".join(f"{number(across)} {number(down)}" for across, down in places)
    return f"M{joined}" if places else ""


def text(x: float, y: float, said: str, anchor: str) -> str:
    """Words whose "start", "middle" or "end" is at a place."""
    return f'<text x="{number(x)}" y="{number(y)}" text-anchor="{anchor}">{escaped(said)}</text>'


def title(said: str) -> str:
    """What a browser shows where one points at a part."""
    return f"<title>{escaped(said)}</title>"


def drawing(
    width: float, height: float, label: str, parts: Sequence[str], natural: bool = False
) -> str:
    """An SVG image. natural: as large as it says; else as wide as there is room."""
    size = f'width="{number(width)}" height="{number(height)}" ' if natural else ""
    box = f"0 0 {number(width)} {number(height)}"
    head = f'<svg {size}viewBox="{box}" role="img" aria-label="{escaped(label)}">'
    return head + "".join(parts) + "</svg>"
