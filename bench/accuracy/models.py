"""The models of one checkpoint, built once and kept."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.accuracy.judged import judged, source_of
from bench.peers.child import ChildError, Peer, call

OURS = "deepmnn_cpu"
STAMP = "accuracy.json"
WORKER = "bench.accuracy.worker"


@dataclass(frozen=True)
class Inputs:
    """What models are made from.

    checkpoint: a Hugging Face directory. calibration, calibration_text: files, as in Task.
    """

    checkpoint: Path
    calibration: Path
    calibration_text: Path


def checkpoint_key(checkpoint: Path) -> str:
    """A hash of the checkpoint's config and weights."""
    found = hashlib.sha256()
    for path in sorted([checkpoint / "config.json", *checkpoint.glob("*.safetensors")]):
        found.update(path.name.encode())
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()[:12]


def pieces_key(pieces: Path) -> str:
    """A hash of a file of token ids."""
    return f"{zlib.crc32(pieces.read_bytes()):08x}"


@dataclass(frozen=True)
class Models:
    """Builds models into `work`/MODULE-RECIPE, each complete or not at all.

    peers: every engine by its module's name. timeout: seconds for each model. say: is told what
    is built. deepmnn's own are always built again: their code is what is being judged.
    """

    work: Path
    inputs: Inputs
    peers: Mapping[str, Peer]
    threads: int
    timeout: float
    say: Callable[[str], None]

    def of(self, name: str, recipe: str) -> Path:
        """The recipe's model, built now or earlier. Raises ChildError."""
        place = self.work / re.sub(r"[^\w.]+", "-", f"{name} {recipe}".strip("/"))
        stamp = self.stamp(name)
        if name != OURS and (kept := _read_stamp(place, stamp)) is not None:
            return place / kept
        needed = {made: str(self.of(*made.split(" ", 1))) for made in judged(name).needs(recipe)}
        self.say(f"building {judged(name).TITLE} {recipe}")
        partial = place.with_name(place.name + ".partial")
        for folder in (place, partial):
            shutil.rmtree(folder, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            made = self._build(name, recipe, partial, needed)
            (partial / STAMP).write_text(json.dumps(stamp | {"model": made}))
            partial.rename(place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return place / made

    def _build(self, name: str, recipe: str, out: Path, needed: Mapping[str, str]) -> str:
        request = {
            "recipe": recipe,
            "out": str(out),
            "checkpoint": str(self.inputs.checkpoint),
            "calibration": str(self.inputs.calibration),
            "calibration_text": str(self.inputs.calibration_text),
            "needed": needed,
            "threads": self.threads,
        }
        log = out.with_suffix(".log")
        made: str = call(self.peers[name], "build", request, self.timeout, log, WORKER)
        return made

    def stamp(self, name: str) -> dict[str, Any]:
        """What a kept model of an engine must have been made with."""
        return {
            "calibration": pieces_key(self.inputs.calibration),
            "builder": zlib.crc32(source_of(name).read_bytes()),
        }


def _read_stamp(place: Path, wanted: Mapping[str, Any]) -> str | None:
    """The path of the model inside `place`; None unless it holds the wanted one."""
    try:
        found = json.loads((place / STAMP).read_text())
    except (OSError, ValueError):
        return None
    return str(found["model"]) if wanted.items() <= found.items() else None


def read_logits(
    peer: Peer, model: Path, pieces: Path, out: Path, threads: int, timeout: float
) -> None:
    """Writes the logits of every piece into the empty directory `out`. Raises ChildError."""
    request = {
        "model": str(model),
        "pieces": str(pieces),
        "out": str(out),
        "threads": threads,
    }
    made = call(peer, "logits", request, timeout, None, WORKER)
    if made != (asked := len(json.loads(pieces.read_text()))):
        raise ChildError(f"it answered {made} of {asked} pieces")
