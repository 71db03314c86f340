"""The engines' models of one shape, built once and kept."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.peers.child import ROOT, ChildError, Peer, call
from bench.peers.engine import builder, engine, source_of

from deepmnn.errors import ConfigError, RequestError
from deepmnn.source.json_file import read_object

CONFIGS = ROOT / "bench" / "configs"
STAMP = "peers.json"
SPARE_NBYTES = 1 << 30
"""Bytes to leave free on the disk."""


@dataclass(frozen=True)
class Shape:
    """A model's config.json: its name, path and fields."""

    name: str
    path: Path
    config: Mapping[str, Any]

    @staticmethod
    def read(path: Path) -> Shape:
        """Named after the file. Raises ConfigError."""
        return Shape(path.stem, path.resolve(), read_object(path, ConfigError))


def find_shapes(names: str) -> list[Shape]:
    """Names of bench/configs, or paths of config.json files. Raises RequestError."""
    known = {file.stem: file for file in sorted(CONFIGS.glob("*.json"))}
    shapes = []
    for name in names.split(","):
        if not name.endswith(".json") and name not in known:
            expected = f"one of {', '.join(known)}, or the path of a config.json"
            raise RequestError(f"the shape {name!r:.80}", expected)
        shapes.append(Shape.read(known.get(name, Path(name))))
    return shapes


@dataclass(frozen=True)
class Models:
    """Builds models into WORK/SHAPE/BUILDER, each complete or not at all.

    python: the interpreter of builders that are not engines. timeout: seconds for each model.
    say: is told what is built.
    """

    work: Path
    python: str
    timeout: float
    say: Callable[[str], None]

    def of(self, peer: Peer, shape: Shape, nbytes: int) -> Path:
        """The model that an engine loads, built now or earlier. Raises ChildError.

        nbytes: its approximate size on disk.
        """
        return self.build(replace(peer, name=engine(peer.name).BUILDER), shape, nbytes)

    def build(self, peer: Peer, shape: Shape, nbytes: int) -> Path:
        place = self.work / shape.name / peer.name
        config, source = shape.path.read_bytes(), source_of(peer.name).read_bytes()
        stamp = {"config": zlib.crc32(config), "builder": zlib.crc32(source)}
        if (kept := _read_stamp(place, stamp)) is not None:
            return place / kept
        needs, needed = builder(peer.name).NEEDS, None
        if needs:
            needed = str(self.build(Peer(needs, self.python), shape, nbytes))
        self._check_space(nbytes)
        self.say(f"{shape.name}: building for {peer.name}")
        partial = place.with_name(place.name + ".partial")
        for folder in (place, partial):
            shutil.rmtree(folder, ignore_errors=True)
        partial.mkdir(parents=True)
        request = {"config": str(shape.path), "out": str(partial), "needed": needed}
        try:
            made: str = call(
                peer, "build", request, self.timeout, place.with_name(f"{place.name}.log")
            )
            (partial / STAMP).write_text(json.dumps(stamp | {"model": made}))
            partial.rename(place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return place / made

    def _check_space(self, nbytes: int) -> None:
        free = shutil.disk_usage(self.work).free
        if free < nbytes + SPARE_NBYTES:
            raise ChildError(
                f"{self.work} has {free / 1e9:.1f} GB free, the model takes {nbytes / 1e9:.1f} GB"
            )


def _read_stamp(place: Path, wanted: Mapping[str, Any]) -> str | None:
    """The path of the model inside `place`; None unless it holds the wanted one."""
    try:
        found = json.loads((place / STAMP).read_text())
    except (OSError, ValueError):
        return None
    return str(found["model"]) if wanted.items() <= found.items() else None
