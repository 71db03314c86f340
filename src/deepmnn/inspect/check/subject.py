"""What is checked: a checkpoint, a converted model or a folder for MNN, as it computes."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from deepmnn.artifact.cache import hold
from deepmnn.artifact.manifest import PROGRAM
from deepmnn.artifact.reader import Artifact
from deepmnn.backends.cpu.pieces import Pieces, whole
from deepmnn.backends.cpu.program import read_program
from deepmnn.conversion.kept import is_checkpoint, original
from deepmnn.conversion.naive import naive_parts
from deepmnn.conversion.write import Progress
from deepmnn.errors import ArtifactError, GraphError
from deepmnn.exporters.mnn.folder import MnnFolder, is_exported
from deepmnn.formats import F32
from deepmnn.graph.ir import Graph
from deepmnn.graph.levels import MAX_LEVEL, optimize
from deepmnn.graph.verify import verify
from deepmnn.inspect.check.piece import Piece, region
from deepmnn.inspect.check.program import graph_of, locations_of
from deepmnn.models import read_config
from deepmnn.quant.store import store, stored_values
from deepmnn.source.json_file import read_small
from deepmnn.source.source import Source
from deepmnn.text.text_files import SourceFiles, TextFiles

_WEIGHTS = "piece.weights"


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config.json, and those that it leaves out as the model's class has them.

    Raises ConfigError.
    """
    parsed = read_config(config)
    known = {field.name: getattr(parsed, field.name) for field in fields(parsed)}
    del known["rope_parameters"]
    return known | {key: value for key, value in config.items() if value is not None}


class Subject(ABC):
    """A model that the engine runs.

    Attributes:
        config: the fields of config.json, with the defaults of those that it leaves out.
        files: the tokenizer's.
        graph: what it computes.
    """

    config: Mapping[str, Any]
    files: TextFiles
    graph: Graph

    @abstractmethod
    def weight(self, name: str) -> F32:
        """The numbers of a weight of the graph."""

    @abstractmethod
    def place(self, graph: Graph, folder: Path) -> tuple[Mapping[str, Pieces], Sequence[str]]:
        """As `piece.Place`."""

    def piece(
        self, outputs: Sequence[str], begins: Collection[str] = (), mla_form: str = "auto"
    ) -> Piece:
        """The nodes between some values and others, ready to run."""
        return Piece(region(self.graph, outputs, begins), self.place, mla_form)


class Converted(Subject):
    """A converted model: the instructions of its program.bin, on its own weight files.

    Raises ArtifactError when they are no sound graph.

    Attributes:
        artifact: the model.
        program: its program.bin.
    """

    def __init__(self, artifact: Artifact) -> None:
        artifact.check_program()
        self.artifact = artifact
        self.config, self.files = with_defaults(artifact.config), artifact.text_files
        self.program = read_program(read_small(artifact.path / PROGRAM, ArtifactError))
        self.graph = graph_of(self.program)
        try:
            verify(self.graph)
        except GraphError as fault:
            again = "Convert the checkpoint again."
            raise ArtifactError(f"{artifact.path / PROGRAM}: {fault!s:.200}", "", again) from None

    def weight(self, name: str) -> F32:
        """As it is stored."""
        return stored_values(self.graph.weights[name], self.artifact.tensor(name))

    def place(self, graph: Graph, folder: Path) -> tuple[Mapping[str, Pieces], Sequence[str]]:
        """The weight files stay where they are."""
        for shard in self.program.shards:
            (folder / shard).symlink_to((self.artifact.path / shard).resolve())
        return locations_of(self.program), self.program.shards


class Original(Subject):
    """A checkpoint: the graph that a conversion would write, with its weights in float32.

    Attributes:
        source: the checkpoint.
        naive: the graph as the model file builds it.
        tensors: those that it reads, and their shapes.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.config = with_defaults(source.config)
        self.files = SourceFiles(source, source.paths[0] if source.paths else Path())
        naive, _ = naive_parts(source)
        self.naive, self.tensors = naive.main, naive.shapes
        self.graph, _ = optimize(self.naive, MAX_LEVEL)

    def weight(self, name: str) -> F32:
        """Read from the checkpoint."""
        return self.graph.weights[name].expr.read(self.source)

    def place(self, graph: Graph, folder: Path) -> tuple[Mapping[str, Pieces], Sequence[str]]:
        """One file, with the weights of the piece."""
        locations, offset = {}, 0
        with open(folder / _WEIGHTS, "wb") as file:
            for name, weight in graph.weights.items():
                data = store(weight, weight.expr.read(self.source))
                locations[name] = whole(0, offset, data.nbytes)
                file.write(data.data)
                offset += data.nbytes
        return locations, [_WEIGHTS]


@contextmanager
def opened(
    name: str | os.PathLike[str], progress: Progress | None = None
) -> Iterator[Subject | MnnFolder]:
    """The model of that name, as it is: nothing is converted.

    progress: called while a checkpoint of the hub is downloaded.

    Raises as `conversion.kept.original`, ConfigError, and ArtifactError for a damaged program.
    """
    path = Path(name)
    here = os.path.lexists(name)
    if here and is_exported(path):
        with hold(path):
            yield MnnFolder.open(path)
    elif here and not is_checkpoint(path):
        with hold(path):
            yield Converted(Artifact.open(path))
    else:
        with original(name, progress) as source:
            yield Original(source)
