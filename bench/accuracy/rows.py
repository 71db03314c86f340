"""The rows of the table: each engine's recipes, judged one after another, then timed in turns."""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from bench.accuracy.judged import Stored, judged, source_of
from bench.accuracy.models import OURS, WORKER, Models, read_logits
from bench.accuracy.score import NotFiniteError, Score, score
from bench.peers.child import ChildError, Peer, call
from bench.peers.engine import Case, Measured, as_fields
from numpy.typing import NDArray

PREFILL, DECODE = Case(512, repeat=2), Case(512, steps=64)
TIMED = (PREFILL, DECODE)


@dataclass
class Row:
    """One engine with one recipe.

    prefill, decode: tokens per second, one for each round. missing: why there is no score; slow:
    why there is no speed.
    """

    engine: str
    recipe: str
    stored: Stored | None = None
    score: Score | None = None
    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    missing: str = ""
    untimed: str = ""

    @property
    def name(self) -> str:
        """As in the table."""
        return f"{judged(self.engine).TITLE} {self.recipe}"


@dataclass(frozen=True)
class Judge:
    """Scores models against the float32 model's logits.

    pieces: the file of held-out token ids. wanted: the directory of the float32 model's logits of
    them. scratch: for another model's.
    """

    models: Models
    config: Mapping[str, Any]
    pieces: Path
    wanted: Path
    scratch: Path
    versions: dict[str, str | None] = field(default_factory=dict)

    def version(self, name: str) -> str | None:
        """An engine's version; None where it is missing or does not start."""
        if name not in self.versions:
            try:
                found = call(self.models.peers[name], "version", {}, 300, None, WORKER)
            except ChildError as error:
                self.models.say(f"{name}: {error}")
                found = None
            self.versions[name] = found
        return self.versions[name]

    def fill(self, row: Row) -> Path | None:
        """Fills in sizes and score, or why there are none; returns the model."""
        if self.version(row.engine) is None:
            row.missing = "not installed"
        else:
            row.missing = judged(row.engine).refuses(self.config, row.recipe)
        if row.missing:
            return None
        try:
            model = self.models.of(row.engine, row.recipe)
            row.stored, row.score = self._judge(row, model)
            return model
        except (ChildError, NotFiniteError, ValueError) as error:
            row.missing = str(error)
            return None

    def _judge(self, row: Row, model: Path) -> tuple[Stored, Score]:
        """Kept from an earlier run where neither model, engine nor text have changed."""
        name = row.engine
        text = self.pieces.read_bytes() + source_of(name).read_bytes()
        key = zlib.crc32(text + str(self.version(name)).encode())
        kept = model.with_name(f"{model.name}.score-{key:08x}.json")
        if name != OURS and kept.is_file():
            fields = json.loads(kept.read_text())
            return Stored(**fields["stored"]), Score(**fields["score"])
        self.models.say(f"judging {row.name}")
        peer, timeout = self.models.peers[name], self.models.timeout
        stored = Stored(**call(peer, "stored", {"model": str(model)}, timeout, None, WORKER))
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            out = Path(folder)
            read_logits(peer, model, self.pieces, out, self.models.threads, timeout)
            pieces = json.loads(self.pieces.read_text())
            found = score(saved(self.wanted, len(pieces)), saved(out, len(pieces)), pieces)
        if name != OURS:
            kept.write_text(json.dumps({"stored": asdict(stored), "score": asdict(found)}))
        return stored, found


def saved(folder: Path, count: int) -> Iterator[NDArray[np.float32]]:
    """The logits that a worker wrote, one piece after another."""
    for index in range(count):
        yield np.load(folder / f"{index}.npy")


def float_logits(models: Models, pieces: Path, place: Path) -> None:
    """Writes the float32 model's logits into `place`, unless they are there. Raises ChildError."""
    if place.is_dir():
        return
    models.say("running the float32 model")
    partial = place.with_name(place.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        own = models.peers["reference"]
        checkpoint = models.inputs.checkpoint
        read_logits(own, checkpoint, pieces, partial, models.threads, models.timeout)
        partial.rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def time_rows(
    built: Sequence[tuple[Row, Path]],
    models: Models,
    vocab_size: int,
    repeat: int,
    save: Callable[[], None],
) -> None:
    """Fills in speeds: every model in turn, every second round in reverse."""
    for number in range(repeat):
        for row, model in built[:: -1 if number % 2 else 1]:
            models.say(f"round {number + 1} of {repeat}: {row.name}")
            peer = models.peers[row.engine]
            timed = Peer(judged(row.engine).TIMED, peer.python, peer.source)
            request = {
                "model": str(model),
                "threads": models.threads,
                "vocab_size": vocab_size,
                "seed": number,
                "cases": as_fields(TIMED),
            }
            try:
                answer = call(timed, "measure", request, models.timeout, None)
            except ChildError as error:
                row.untimed = str(error)
                continue
            timings = Measured.of(answer).timings
            prefill, decode = (timings[case.name].seconds for case in TIMED)
            row.prefill.append(PREFILL.tokens / statistics.median(prefill))
            row.decode.append(len(decode) / sum(decode))
            save()
