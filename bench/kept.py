"""What kept formats cost in speed: each beside the format of deepmnn that has nearly as many bytes.

    python -m bench.kept [SHAPE] [--layers N] [--format NAME ...] > kept.md

SHAPE is a name of bench/configs or the path of a config.json; codes and scales are random. Every
matrix is in one format, the head and the embedding too. The models are kept in --work while it
runs.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from bench.peers.cold import files_of, nbytes
from bench.peers.models import Shape, find_shapes
from bench.peers.results import Column
from bench.variants import (
    CASES,
    errors_end,
    measure,
    memory_cell,
    page,
    shortened,
    speed_cell,
    workplace,
)
from rich.console import Console

from deepmnn.conversion.carry_out import carry_out
from deepmnn.conversion.convert import plan_conversion
from deepmnn.conversion.plan import plan
from deepmnn.errors import RequestError
from deepmnn.formats import F32, KeptCodes, named
from deepmnn.quant.recipe import RECIPES, Recipe, Rule
from deepmnn.source.random import generator
from deepmnn.source.source import Source
from deepmnn.source.wrapped import WrappedSource

BYTE = 32
"""What is stored where a scale or a minimum is a byte times a factor."""

COLUMNS = 4096
"""Of the matrix that sizes are compared by."""

OURS = ("w4", "w5", "w6", "w8")
DEFAULT = ["q4_0", "q4_k", "int4_g128", "mxfp4", "q4_1", "q5_0", "q6_k", "q8_0"]
NOTES = """
Size is that of all files. Memory is the peak of the process, mapped weights included; in brackets,
the part that is its own. Speeds are in tokens per second, the median of the rounds; in brackets,
their ratio to those of the format that is named beside it.
"""

console = Console(stderr=True)


class RandomKept(WrappedSource):
    """Random matrices in one kept format, vectors from another source."""

    def __init__(self, source: Source, format: str) -> None:
        super().__init__(source)
        self._format = format

    def kept_format(self, name: str) -> str | None:
        """The format of every matrix."""
        return self._format if len(self.shape(name)) == 2 else None

    def codes(self, name: str) -> KeptCodes | None:
        """Uniform codes; one scale that makes numbers about 1 / sqrt(columns), of mean 0."""
        if not self.kept_format(name):
            return None
        (rows, cols), format = self.shape(name), named(self._format)
        assert format.groups is not None
        codes = generator(0, name).integers(0, 1 << format.bits, (rows, cols), np.uint8)
        step = 1 / (math.sqrt(cols) * float(np.std(format.levels)))
        middle = float(np.mean(format.levels))
        scale, shift = format.groups.scale, format.groups.shift
        numbers = {
            "scales": {"f16": step, "e8m0": 128 + round(math.log2(step))}.get(scale, BYTE),
            "shifts": {"f16": -middle * step, "zero": round(middle)}.get(shift, BYTE),
            "factors": step / BYTE,
        }
        fields = KeptCodes.of(self._format, codes, codes[:, :0]).fields(rows, cols)
        del fields["codes"]
        filled = {part: np.full(of.shape, numbers[part], of.dtype) for part, of in fields.items()}
        if shift == "u8":
            filled["factors"][:, 1::2] = -middle * step / BYTE
        return KeptCodes.of(self._format, codes, **filled)

    def read(self, name: str) -> F32:
        """What the codes stand for, or the other source's vector."""
        codes = self.codes(name)
        if codes is None:
            return self._source.read(name)
        return codes.values()[:, : self.shape(name)[-1]]


def beside(format: str) -> str:
    """The format of deepmnn that has nearly as many bytes."""
    size = named(format).block_nbytes(COLUMNS)
    return min(OURS, key=lambda ours: abs(named(ours).block_nbytes(COLUMNS) / size - 1))


def build(shape: Shape, formats: list[str], folder: Path) -> dict[str, Path]:
    """The model in every format, those of deepmnn that are compared among them."""
    paths = {}
    for format in dict.fromkeys(name for kept in formats for name in (beside(kept), kept)):
        console.print(f"building {format}")
        path = paths[format] = folder / format
        recipe = Recipe(format, (Rule("*", format),)) if format in OURS else RECIPES["w8"]
        made = plan_conversion(shape.path, recipe, random_weights=True)
        if format not in OURS:
            made = plan(RandomKept(made.source, format), recipe)
        carry_out(made, path)
    return paths


def table(
    formats: list[str], paths: Mapping[str, Path], columns: Mapping[str, Column]
) -> list[list[str]]:
    """The head, and a row for each format."""
    head = [
        "",
        "beside",
        "size, GB",
        "memory (own), GB",
        *(f"{case.name}, tok/s" for case in CASES),
    ]
    rows = [head]
    for name in paths:
        base = beside(name) if name in formats else name
        nbytes_of = {each: nbytes(files_of(paths[each])) for each in (name, base)}
        times = f" ({nbytes_of[name] / nbytes_of[base]:.2f} ×)" if name != base else ""
        speeds = [speed_cell(columns[name], columns[base], case) for case in CASES]
        size = f"{nbytes_of[name] / 1e9:.2f}{times}"
        rows.append([name, base if name != base else "", size, memory_cell(columns[name]), *speeds])
    return rows


def main(
    shape: Annotated[str, typer.Argument(help="A name or a config.json.")] = "r1-distill-qwen-1.5b",
    layers: Annotated[int | None, typer.Option(help="Layers to keep; default: all.")] = None,
    format: Annotated[
        list[str] | None, typer.Option(help="A kept format; may be repeated.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Worker threads.")] = 2,
    repeat: Annotated[int, typer.Option(min=1, help="Rounds.")] = 3,
    work: Annotated[Path, typer.Option(help="Directory of the models.")] = Path("build/kept"),
    timeout: Annotated[float, typer.Option(help="Most seconds for one format and round.")] = 1800,
) -> None:
    """Measure kept formats of one shape; writes Markdown to standard output."""
    with errors_end(console):
        formats = list(format or DEFAULT)
        for name in formats:
            if named(name).groups is None:
                raise RequestError(f"--format {name}", "a kept format (docs/layouts.md)")
        with workplace(work, "kept") as folder:
            wanted = shortened(find_shapes(shape)[0], layers, folder)
            paths = build(wanted, formats, folder)
            vocab_size = wanted.config["vocab_size"]
            columns = measure(paths, CASES, vocab_size, threads, repeat, timeout, console.print)
            rows = table(formats, paths, columns)
            lines = [*page("Kept formats", wanted, threads, repeat, rows), NOTES]
            sys.stdout.write("\n".join(lines))


if __name__ == "__main__":
    typer.run(main)
