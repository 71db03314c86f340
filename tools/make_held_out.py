"""Writes the English text that rounding is judged on: held-out documents that we may ship.

python tools/make_held_out.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from corpus import CACHE, long_enough, novels, rust_books, sqlite_pages

OUT = Path(__file__).parents[1] / "bench" / "accuracy" / "held_out" / "english.txt"
CHARACTERS = 24_000  # of each source


def main(
    out: Annotated[Path, typer.Option(help="File to write.")] = OUT,
    cache: Annotated[Path, typer.Option(help="Where packages are downloaded to.")] = CACHE,
) -> None:
    """Take the first half of held-out documents, at most 8,000 characters of each."""
    texts = []
    for source in (novels, rust_books, sqlite_pages):
        left = CHARACTERS
        for document in long_enough(source(cache)):
            if document.is_held_out and "release" not in document.name and left > 0:
                part = document.text[: min(left, CHARACTERS // 3)]
                texts.append(part.rpartition("\n\n")[0] or part)
                left -= len(part)
    out.write_text("\n\n".join(texts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
