"""Pieces of pages: sections, cards, tables, numbers for people, and the page around them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.resources import files

from deepmnn.conversion.report.svg import escaped

SHOWN = 12
"""Of long lists; report.json has all."""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def document(title: str, body: str, footer: str, style: str = "") -> str:
    """A whole page: one file without scripts, fonts or links, whatever a stranger's tensor may be
    called.

    body, footer: HTML. style: CSS besides the one that all pages have.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escaped(title)}</title><style>\n{_style()}{style}</style></head>\n<body><main>\n"
        f"{body}<footer>{footer}</footer>\n</main></body></html>\n"
    )


def head(title: str, words: str, figures: Sequence[tuple[str, str]]) -> str:
    """What a page begins with. figures: a figure and what it is."""
    cards = "".join(f"<div><b>{escaped(b)}</b><span>{escaped(s)}</span></div>" for b, s in figures)
    said = f"<p>{escaped(words)}</p>" if words else ""
    return f'<h1>{escaped(title)}</h1>{said}<div class="figures">{cards}</div>\n'


def section(title: str, words: str, body: str) -> str:
    """A titled part of the page; nothing where there is nothing to show."""
    if not body and not words:
        return ""
    said = f"<p>{escaped(words)}</p>" if words else ""
    return f"<section><h2>{escaped(title)}</h2>{said}{body}</section>\n"


def card(title: str, drawn: str, words: str = "", below: str = "") -> str:
    """A chart in a frame, with a title, words above it and a key below."""
    head = f"<h3>{escaped(title)}</h3>" if title else ""
    said = f"<p>{escaped(words)}</p>" if words else ""
    return f'<div class="card">{head}{said}{drawn}{below}</div>'


def key(entries: Iterable[tuple[str, str]]) -> str:
    """What colours mean: (name, class)."""
    parts = (f'<span><i class="{style}"></i>{escaped(name)}</span>' for name, style in entries)
    return f'<div class="key">{"".join(parts)}</div>'


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], styles: dict[int, str] | None = None
) -> str:
    """A table whose first column is text; styles: row → class."""
    head = "".join(f"<th>{escaped(column)}</th>" for column in columns)
    body = []
    for number, row in enumerate(rows):
        style = (styles or {}).get(number)
        cells = "".join(f"<td>{escaped(cell)}</td>" for cell in row)
        body.append(f'<tr class="{style}">{cells}</tr>' if style else f"<tr>{cells}</tr>")
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(body)}</table></div>'


def names(found: Sequence[str]) -> str:
    """The first of many names, and how many more there are."""
    items = "".join(f"<li>{escaped(name)}</li>" for name in found[:SHOWN])
    rest = f"<li>and {len(found) - SHOWN:,} more</li>" if len(found) > SHOWN else ""
    return f"<ul>{items}{rest}</ul>"


def at_layer(what: str, shown: Callable[[float], str]) -> Callable[[int, float], str]:
    """What is said of a layer's figure."""
    return lambda layer, value: f"layer {layer}: {what}{shown(value)}"


def count(number: float) -> str:
    """A number for people: "3.2 M"."""
    for unit in ("", " k", " M", " B"):
        if number < 1000:
            return f"{number:.0f}" if not unit else f"{number:.1f}{unit}"
        number /= 1000
    return f"{number:.1f} T"


def percent(share: float) -> str:
    """A share: "10.7 %"."""
    return f"{share * 100:.3g} %"


def plain(value: float) -> str:
    """A number of two digits, or a whole one."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


@cache
def _style() -> str:
    return files(__package__).joinpath("page.css").read_text()
