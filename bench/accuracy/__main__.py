"""Accuracy for the bytes that weights take: deepmnn and its peers on one checkpoint.

    python -m bench.accuracy CHECKPOINT [--quant w8 --quant w4] [--peers llama_cpp,openvino]

Run it from the repository's root. bench/README.md says how to install the peers and how to name
their interpreters and folders.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from bench.accuracy.judged import judged
from bench.accuracy.models import OURS, Inputs, Models, checkpoint_key, pieces_key
from bench.accuracy.rows import Judge, Row, float_logits, time_rows
from bench.accuracy.table import as_json, page, save
from bench.accuracy.texts import SAMPLE_TOKENS, Texts, pieces, tokenizer_of
from bench.peers.__main__ import find_peers
from bench.peers.child import ChildError, Peer
from bench.peers.host import Host
from rich.console import Console

from deepmnn import models as architectures
from deepmnn.conversion.bundled import NAME, bundled_checkpoint
from deepmnn.errors import DeepmnnError, RequestError, StorageError
from deepmnn.graph.tensors import tensor_shapes
from deepmnn.source.side_files import read_config

PEERS = ("llama_cpp", "ik_llama", "openvino", "mnn")
RECIPES = list(judged(OURS).RECIPES)
console = Console(stderr=True)


def say(text: str) -> None:
    console.print(text, markup=False, highlight=False)


@contextmanager
def alone(work: Path) -> Iterator[None]:
    """One run at a time in a directory. Raises RequestError or StorageError."""
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = (work / "lock").open("w")
    except OSError as error:
        raise StorageError(f"{work}: {error.strerror}", "a directory to write to") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RequestError(f"another run in {work}", "one at a time, or other --work") from None
        yield


def write_json(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


@dataclass(frozen=True)
class Options:
    """What the command line says of texts and files."""

    files: Sequence[Path]
    calibration: Path | None
    tokens: int
    most: int
    samples: int
    work: Path
    threads: int
    timeout: float


def prepare(checkpoint: Path, peers: Sequence[Peer], options: Options) -> Judge:
    """Reads the texts and runs the float32 model. Raises DeepmnnError or ChildError."""
    texts = Texts.of(checkpoint, options.files, options.calibration)
    tokenizer = tokenizer_of(checkpoint)
    held_out = pieces(tokenizer, texts.held_out, options.tokens, options.most)
    samples = pieces(tokenizer, [texts.calibration], SAMPLE_TOKENS, options.samples)
    work = options.work.resolve() / checkpoint_key(checkpoint)
    work.mkdir(parents=True, exist_ok=True)
    text = work / "calibration.txt"
    text.write_text(texts.calibration, encoding="utf-8")
    inputs = Inputs(checkpoint.resolve(), write_json(work / "calibration.json", samples), text)
    by_name = {peer.name: peer for peer in peers} | {"reference": Peer("reference", sys.executable)}
    models = Models(work, inputs, by_name, options.threads, options.timeout, say)
    asked = write_json(work / "pieces.json", held_out)
    wanted = work / f"float-{pieces_key(asked)}"
    float_logits(models, asked, wanted)
    return Judge(models, read_config(checkpoint / "config.json"), asked, wanted, work)


def rows_of(names: Sequence[str], quant: Sequence[str]) -> list[Row]:
    """Ours first."""
    rows = [Row(OURS, recipe) for recipe in quant]
    return rows + [Row(name, recipe) for name in names for recipe in judged(name).RECIPES]


def main(
    checkpoint: Annotated[str, typer.Argument(help=f"A Hugging Face directory, or {NAME}.")],
    quant: Annotated[
        list[str], typer.Option(help="deepmnn's recipes, or directories of converted models.")
    ] = RECIPES,
    peers: Annotated[str, typer.Option(help="Engines, comma-separated.")] = ",".join(PEERS),
    text: Annotated[list[Path] | None, typer.Option(help="Files to judge on.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="A file to calibrate with.")] = None,
    tokens: Annotated[int, typer.Option(min=2, help="Of a piece to judge on.")] = 384,
    most: Annotated[int, typer.Option(min=1, help="Pieces of each text.")] = 4,
    samples: Annotated[
        int, typer.Option(min=1, help=f"Pieces of {SAMPLE_TOKENS} tokens to calibrate with.")
    ] = 64,
    speed: Annotated[bool, typer.Option(help="Measure prefill and decode, too.")] = False,
    repeat: Annotated[int, typer.Option(min=1, help="Rounds of that.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="Worker threads.")] = 2,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("build/accuracy/accuracy.md"),
    numbers: Annotated[Path, typer.Option("--json", help="The numbers.")] = Path(
        "build/accuracy/accuracy.json"
    ),
    work: Annotated[Path, typer.Option(help="Directory of the models.")] = Path(
        "build/accuracy/work"
    ),
    python: Annotated[
        list[str] | None, typer.Option(help="ENGINE=INTERPRETER that has it.")
    ] = None,
    source: Annotated[list[str] | None, typer.Option(help="ENGINE=CHECKOUT that it needs.")] = None,
    timeout: Annotated[float, typer.Option(help="Most seconds for one step of one row.")] = 3600,
) -> None:
    """Judge deepmnn's recipes and its peers' on a checkpoint; writes a page and its numbers."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the running engine, too
    chosen = [name for name in peers.split(",") if name]
    options = Options(text or (), calibration, tokens, most, samples, work, threads, timeout)
    try:
        known = find_peers(",".join((OURS, *PEERS)), python or (), source or ())
        find_peers(",".join((OURS, *chosen)), (), ())  # names that do not exist
        directory = bundled_checkpoint() if checkpoint == NAME else Path(checkpoint)
        config = read_config(directory / "config.json")
        with alone(work):
            judge = prepare(directory, known, options)
            report = Report(out, numbers, directory, judge, rows_of(chosen, quant), options)
            report.run(config["vocab_size"], repeat if speed else 0)
    except (DeepmnnError, ChildError) as error:
        console.print(str(error), style="red", markup=False)
        raise typer.Exit(1) from None
    say(str(out))


class Report:
    """Fills in the rows; writes the page and its numbers after each."""

    def __init__(
        self,
        out: Path,
        numbers: Path,
        checkpoint: Path,
        judge: Judge,
        rows: list[Row],
        options: Options,
    ) -> None:
        self.out, self.numbers, self.judge, self.rows = out, numbers, judge, rows
        shapes = tensor_shapes(architectures.build(judge.config)).values()
        self.weights = sum(math.prod(shape) for shape in shapes)
        host = Host.now()
        asked = json.loads(judge.pieces.read_text())
        samples = json.loads(judge.models.inputs.calibration.read_text())
        self.title = f"Accuracy and bytes: {checkpoint.resolve().name}"
        self.facts = {
            "date": host.date,
            "processor": f"{host.processor} ({', '.join(host.features)})",
            "weights": f"{self.weights / 1e6:.1f} M",
            "judged on": f"{_count(asked)} in {len(asked)} pieces: {_names(options.files)}",
            "calibrated with": f"{_count(samples)} of other text",
            "load average": f"{os.getloadavg()[0]:.2f}, {options.threads} threads",
            "made by": "`python -m bench.accuracy`; bench/README.md says how to run it",
        }

    def run(self, vocab_size: int, repeat: int) -> None:
        """Raises StorageError."""
        built = []
        for row in self.rows:
            if (model := self.judge.fill(row)) is not None:
                built.append((row, model))
            say(f"{row.name}: {row.missing or row.score}")
            self.save()
        if repeat:
            time_rows(built, self.judge.models, vocab_size, repeat, self.save)
        self.save()

    def save(self) -> None:
        versions = {row.engine: self.judge.versions.get(row.engine) for row in self.rows}
        text = page(self.title, self.facts, self.rows, self.weights, versions)
        save(self.out, text)
        save(self.numbers, as_json(self.facts, self.rows, self.weights, versions))


def _count(pieces: Sequence[Sequence[int]]) -> str:
    return f"{sum(map(len, pieces)):,} tokens"


def _names(files: Sequence[Path]) -> str:
    return ", ".join(path.name for path in files) or "the benchmark's own texts"


if __name__ == "__main__":
    typer.run(main)
