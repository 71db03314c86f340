"""A model by any name, opened as a side of a comparison."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deepmnn import _core
from deepmnn.api.options import BACKENDS, KV_DTYPES
from deepmnn.artifact.cache import hold
from deepmnn.artifact.reader import Artifact
from deepmnn.artifact.restored import RestoredSource
from deepmnn.conversion.kept import converted, is_checkpoint, original
from deepmnn.conversion.plan import choose_formats, naive_graph
from deepmnn.conversion.stage import Stored, stored_from
from deepmnn.conversion.write import Progress
from deepmnn.errors import RequestError, Words
from deepmnn.exporters.mnn.cached import exported_model
from deepmnn.exporters.mnn.folder import MnnFolder, is_exported
from deepmnn.formats import F32, VECTOR
from deepmnn.graph.ir import Graph, Weight
from deepmnn.graph.levels import MAX_LEVEL, optimize, pass_names
from deepmnn.graph.tensors import tensors
from deepmnn.inspect.side import Side
from deepmnn.inspect.sides.staged import StagedSide, by_engine, by_numpy
from deepmnn.measure.reference import EXACT
from deepmnn.quant.recipe import DEFAULT, Recipe, recipe_of
from deepmnn.quant.store import stored_values
from deepmnn.source.source import Source
from deepmnn.text.text_files import SourceFiles, TextFiles
from deepmnn.text.tokenizer import FILE, Tokenizer

TORCH = "torch"
"""The backend that is none of deepmnn's."""

SIDES = (*BACKENDS, TORCH)


@dataclass(frozen=True, kw_only=True)
class SideOptions:
    """How a model is run as a side of a comparison.

    Attributes:
        backend: "cpu", "reference", "mnn" or "torch"; None: "mnn" for an exported folder, else
            "cpu".
        quant: how a checkpoint is converted for "cpu" and "mnn"; None: as `deepmnn.load` does.
        optimize_level: 0 to 3; None: that of a converted model, 3 for a checkpoint on "cpu", 0 on
            "reference". A converted model at another level runs with its numbers in float32.
        disabled: passes that are left out; a converted model then runs as above.
        threads, isa, mla_form, kv_dtype: as of `LoadOptions`.
    """

    backend: str | None = None
    quant: str | Recipe | None = None
    optimize_level: int | None = None
    disabled: frozenset[str] = frozenset()
    threads: int | None = None
    isa: str | None = None
    mla_form: str = "auto"
    kv_dtype: str = "f32"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("backend", self.backend, (None, *SIDES)),
            ("isa", self.isa, (None, *_core.isas())),
            ("kv_dtype", self.kv_dtype, tuple(KV_DTYPES)),
            ("optimize_level", self.optimize_level, (None, *range(MAX_LEVEL + 1))),
        ):
            if value not in known:
                expected = ", ".join(str(each) for each in known if each is not None)
                raise RequestError(f"{name} is {value!r:.40}", f"one of {expected}")
        unknown = sorted(self.disabled.difference(pass_names()))
        if unknown:
            raise RequestError(f"no pass is called {unknown[0]!r:.40}", ", ".join(pass_names()))

    @property
    def as_it_is(self) -> bool:
        """Whether a converted model runs with the graph that it has."""
        return self.optimize_level is None and not self.disabled


@dataclass(frozen=True)
class Subject:
    """An opened model.

    Attributes:
        name: as it was given.
        side: runs it.
        config: the fields of config.json.
        tensors: its numbers under Hugging Face's names; None: MNN's weights are not read back.
        text_files: the tokenizer's and other small files.
        stored: the bytes of a weight of its graph; None: it has no graph of ours.
        level: of optimisation; None likewise.
        options: how it runs; the backend is known.
        quant: how its numbers are stored, as an exported folder says, whose graph does not tell;
            None: the graph does, or they are exact.
    """

    name: str
    side: Side
    config: dict[str, Any]
    tensors: Source | None
    text_files: TextFiles
    stored: Stored | None
    level: int | None
    options: SideOptions
    quant: str | None = None

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self.side.vocab_size

    @property
    def has_tokenizer(self) -> bool:
        """Whether it came with one."""
        return FILE in self.text_files

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises TokenizerError when there is none."""
        return Tokenizer(self.text_files)

    def formats(self, tensor: str) -> set[str]:
        """In which its numbers of a tensor are stored; floats of a checkpoint are what they are."""
        if isinstance(self.tensors, RestoredSource):
            return self.tensors.stored_formats(tensor)
        return self._formats.get(tensor, {VECTOR.name})

    @cached_property
    def _formats(self) -> dict[str, set[str]]:
        """Tensor → the formats of the graph's weights that are made of it."""
        found: dict[str, set[str]] = {}
        graph = self.side.graph if isinstance(self.side, StagedSide) else Graph("")
        for weight in graph.weights.values():
            for tensor in tensors(weight.expr):
                found.setdefault(tensor.name, set()).add(weight.format)
        return found


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


def exact(reference: Subject, like: Subject) -> StagedSide | None:
    """The reference's numbers in float32 on the engine, in a graph whose layers hand on what those
    of another model do; None where its numbers cannot be read.
    """
    if reference.tensors is None or like.level is None:
        return None
    disabled = like.options.disabled
    options = SideOptions(backend="cpu", quant=EXACT, optimize_level=like.level, disabled=disabled)
    return _staged(reference.tensors, options)


def as_written(subject: Subject) -> StagedSide | None:
    """A model's numbers in the level-0 graph, in float32 by numpy; None: they cannot be read."""
    if subject.tensors is None:
        return None
    return _staged(subject.tensors, SideOptions(backend="reference", quant=EXACT, optimize_level=0))


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
    side = staged_side(graph, stored, numbers, options, f"{recipe}, level {level}")
    files = artifact.text_files
    return Subject(name, side, artifact.config, restored, files, stored, level, options)


def _source(name: str, source: Source, options: SideOptions, words: str = "") -> Subject:
    """A checkpoint, in a graph of its own."""
    side = _staged(source, options, words)
    files = SourceFiles(source, Path(name))
    level = _level(options)
    return Subject(name, side, source.config, source, files, stored_from(source), level, options)


def _staged(source: Source, options: SideOptions, words: str = "") -> StagedSide:
    """A checkpoint's numbers in the graph that the options ask for."""
    by_reference = options.backend == "reference"
    recipe = recipe_of(options.quant or (EXACT if by_reference else DEFAULT))
    level = _level(options)
    naive, _ = naive_graph(source)
    keep = None if recipe.name == EXACT else source
    graph, _ = optimize(
        naive,
        level,
        source,
        options.disabled,
        lambda graph: choose_formats(graph, recipe, keep),
    )

    def numbers(weight: Weight) -> F32:
        if recipe.name == EXACT:
            return weight.expr.read(source)
        return stored_values(weight, stored_from(source)(weight))

    without = f" without {', '.join(sorted(options.disabled))}" if options.disabled else ""
    words = f"{words or recipe.name}, level {level}{without}"
    return staged_side(graph, stored_from(source), numbers, options, words)


def _level(options: SideOptions) -> int:
    """At which a checkpoint runs."""
    if options.optimize_level is not None:
        return options.optimize_level
    return 0 if options.backend == "reference" else MAX_LEVEL


def staged_side(
    graph: Graph,
    stored: Stored,
    numbers: Callable[[Weight], F32],
    options: SideOptions,
    words: str,
) -> StagedSide:
    """A graph on the engine, or on the reference.

    Args:
        stored: a weight's bytes, for the engine.
        numbers: a weight's numbers, for the reference.
        words: of the label.
    """
    if options.kv_dtype != "f32":
        words += f", {options.kv_dtype} cache"
    if options.backend == "reference":
        form = "absorbed" if options.mla_form == "absorbed" else "expanded"
        return StagedSide(f"numpy, {words}", graph, by_numpy(numbers, form, options.kv_dtype))
    isa = options.isa or _core.isas()[0]
    threads = options.threads or 0
    how = by_engine(stored, threads, isa, options.mla_form, options.kv_dtype)
    return StagedSide(f"engine {isa}, {words}", graph, how)


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
    return Subject(name, side, folder.config, None, files, None, None, options, quant)
