"""A model by any name, opened as a side of a comparison."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deepmnn.artifact.cache import hold
from deepmnn.artifact.manifest import PROGRAM
from deepmnn.artifact.reader import Artifact
from deepmnn.artifact.restored import RestoredSource
from deepmnn.backends.cpu.program import read_program
from deepmnn.backends.mnn.backend import check_kv_dtype
from deepmnn.conversion.kept import converted, is_checkpoint, original
from deepmnn.conversion.stage import stored_from
from deepmnn.conversion.write import Progress
from deepmnn.errors import ArtifactError, RequestError, Words
from deepmnn.exporters.mnn.cached import exported_model
from deepmnn.exporters.mnn.folder import MnnFolder, is_exported
from deepmnn.formats import F32, named
from deepmnn.graph.ir import Weight
from deepmnn.inspect.check.program import check_program, graph_of
from deepmnn.inspect.report.recorded import recorded
from deepmnn.inspect.sides.graphs import source_side, staged_side
from deepmnn.inspect.sides.options import TORCH, SideOptions
from deepmnn.inspect.sides.subject import Subject
from deepmnn.measure.reference import EXACT
from deepmnn.quant.store import stored_values
from deepmnn.source.json_file import read_small
from deepmnn.source.source import Source
from deepmnn.text.text_files import SourceFiles, TextFiles


@contextmanager
def opened(
    name: str, options: SideOptions | None = None, progress: Progress | None = None
) -> Iterator[Subject]:
    """Opens a model; it stays where it is meanwhile.

    Args:
        name: a converted model, an exported folder, a checkpoint, or a name of the hub's.
        progress: called while it is downloaded, converted or exported.

    Raises RequestError: the backend cannot run this; and as `deepmnn.load`.
    """
    options = options or SideOptions()
    path, here = Path(name), os.path.lexists(name)
    exported = here and is_exported(path)
    backend = options.backend or ("mnn" if exported else "cpu")
    options = replace(options, backend=backend)
    if backend == "mnn":
        check_kv_dtype(options.kv_dtype)
    if exported:
        _check_exported(name, options)
        with hold(path):
            folder = MnnFolder.open(path)
            yield _folder(name, folder, folder.text_files, options)
    elif backend == "mnn":
        with converted(name, options.quant, progress) as held:
            artifact = Artifact.open(held.path)
            with exported_model(artifact, progress) as kept:
                yield _folder(name, MnnFolder.open(kept.path), artifact.text_files, options)
    elif here and not is_checkpoint(path):
        _check_converted(name, options)
        with hold(path):
            yield _artifact(name, Artifact.open(path), options)
    elif backend == TORCH:
        with original(name, progress) as source:
            yield _torch(name, source, options)
    elif backend == "cpu" and options.as_it_is:
        with converted(name, options.quant, progress) as held:
            yield _artifact(name, Artifact.open(held.path), options)
    else:
        with original(name, progress) as source:
            yield _source(name, source, options)


def default_reference(name: str) -> SideOptions:
    """How a reference runs unless it is said: a checkpoint by PyTorch where that is installed, else
    by numpy; what is converted as it is.
    """
    path, here = Path(name), os.path.lexists(name)
    if here and (is_exported(path) or not is_checkpoint(path)):
        return SideOptions()
    installed = find_spec("torch") is not None and find_spec("transformers") is not None
    return SideOptions(backend=TORCH if installed else "reference")


def _check_exported(name: str, options: SideOptions) -> None:
    """Raises RequestError for what MNN has no say in, or cannot do."""
    if options.backend != "mnn":
        raise RequestError(
            f"{name} is a folder for MNN, the backend is {options.backend!r}",
            Words("backend 'mnn'", "--backend mnn"),
            "Give the converted model that it was exported from.",
        )
    if not options.as_it_is or options.quant is not None:
        raise RequestError(
            f"{name} is a folder for MNN, whose passes and formats are settled",
            "no level, passes or recipe",
            "Export the model again, from one that was converted so.",
        )


def _check_converted(name: str, options: SideOptions) -> None:
    if options.backend == TORCH:
        raise RequestError(
            f"{name} is a converted model, the backend is 'torch'",
            "a checkpoint for PyTorch",
            "Give the checkpoint that it was made of, or another backend.",
        )
    if options.quant is not None:
        raise RequestError(
            f"{name} is converted already", Words("no quant", "no --quant"), "Give the checkpoint."
        )


def _artifact(name: str, artifact: Artifact, options: SideOptions) -> Subject:
    """A converted model as it is, or its numbers in another graph."""
    recipe, restored = artifact.manifest["quant"], RestoredSource(artifact)
    if not options.as_it_is:
        level = options.optimize_level
        if level is None:
            level = artifact.manifest["optimize_level"]
        wanted = replace(options, optimize_level=level, quant=EXACT)
        return _source(name, restored, wanted, f"the numbers of {recipe} in float32")
    graph = artifact.graph()

    def stored(weight: Weight) -> Any:
        return artifact.tensor(weight.name)

    def numbers(weight: Weight) -> F32:
        return stored_values(weight, artifact.tensor(weight.name))

    level = artifact.manifest["optimize_level"]
    known = recorded(artifact)
    is_nearest = known is not None and known.calibration is None
    kinds = {named(weight.format) for weight in graph.weights.values()}
    if is_nearest and any(kind.is_quantized and kind.bits < 8 for kind in kinds):
        recipe = f"{recipe} rounded to nearest"
    side = staged_side(graph, stored, numbers, options, f"{recipe}, level {level}")
    files = artifact.text_files
    program = None
    if options.backend == "cpu":
        artifact.check_program()
        decoded = read_program(read_small(artifact.path / PROGRAM, ArtifactError))
        program = check_program(graph_of(decoded), graph)
    return Subject(
        *(name, side, artifact.config, restored, files, stored, level, options, program),
        is_nearest=is_nearest,
    )


def _source(name: str, source: Source, options: SideOptions, words: str = "") -> Subject:
    """A checkpoint, in a graph of its own."""
    side = source_side(source, options, words)
    files = SourceFiles(source, Path(name))
    level = options.level
    return Subject(name, side, source.config, source, files, stored_from(source), level, options)


def _torch(name: str, source: Source, options: SideOptions) -> Subject:
    from deepmnn.inspect.sides.torch import TorchSide
    from deepmnn.measure.torch_model import TorchModel

    side = TorchSide(TorchModel(name, options.threads))
    files = SourceFiles(source, Path(name))
    return Subject(name, side, source.config, source, files, None, None, options)


def _folder(name: str, folder: MnnFolder, files: TextFiles, options: SideOptions) -> Subject:
    """A folder exported for MNN."""
    from deepmnn.inspect.sides.mnn import MnnSide

    side = MnnSide(folder, options.threads or 0)
    quant = str(folder.manifest["quant"])
    return Subject(name, side, folder.config, None, files, None, None, options, None, quant)
