"""A model by any name: converted already, or converted once into the user's cache.

A name is read in this order:

1. a path that exists: a converted model as it is; a checkpoint, converted once;
2. "tiny-r1", the model that comes with the package;
3. OWNER/NAME or OWNER/NAME@REVISION of the Hugging Face hub, with :FILE.gguf or :TAG behind it
   where it has several GGUF models: fetched, then converted once.

A conversion is found again by its source (of a path: the names, sizes and times of its files; of
the hub: the commit), its recipe, its level and the version of the artifact's format.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from deepmnn.artifact import cache
from deepmnn.artifact.cache import Hold
from deepmnn.artifact.manifest import FORMAT_VERSION, read_manifest
from deepmnn.artifact.reader import Artifact
from deepmnn.artifact.restored import RestoredSource
from deepmnn.conversion import bundled
from deepmnn.conversion.bundled import NAME, bundled_checkpoint
from deepmnn.conversion.carry_out import carry_out, choose
from deepmnn.conversion.convert import plan_conversion
from deepmnn.conversion.plan import Plan
from deepmnn.conversion.write import Progress
from deepmnn.errors import ArtifactError, CheckpointError, RequestError, Words
from deepmnn.graph.levels import MAX_LEVEL
from deepmnn.quant.recipe import DEFAULT, Recipe, recipe_of
from deepmnn.source import hub
from deepmnn.source.gguf.splits import files_of
from deepmnn.source.hub import HubName
from deepmnn.source.open import has_weights, is_converted, open_source
from deepmnn.source.side_files import CONFIG, SIDE_FILES
from deepmnn.source.sizes import file_size
from deepmnn.source.source import Source
from deepmnn.text.samples import COUNT

_SUFFIXES = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf"),
    *(".json", ".jinja", ".model", ".txt"),
)
"""Files of a checkpoint's directory that may change what a conversion writes."""

log = logging.getLogger("deepmnn")


def converted(
    name: str | os.PathLike[str],
    quant: str | Recipe | None = None,
    progress: Progress | None = None,
    check: Callable[[Plan], None] | None = None,
) -> Hold:
    """The converted model of that name; converts it when the cache does not have it yet.

    It stays where it is until the hold is released.

    Args:
        name: a path, or, as a string, a name (above).
        quant: how a checkpoint is converted; a converted model has its recipe already.
        progress: called after each weight that is converted.
        check: called with what will be written before a checkpoint is converted; what it raises
            ends that.

    Raises ArtifactError (the name means nothing, or its directory is no model), RequestError (the
    recipe; or one is given, and the model is converted with another), and as `convert` and
    `hub.download`.
    """
    recipe = None if quant is None else recipe_of(quant)
    path = Path(name)
    if os.path.lexists(name):
        if not is_checkpoint(path):
            _check_recipe(path, recipe)
            return cache.hold(path)
        real = os.path.realpath(path)
        source = NAME if real == os.path.realpath(bundled.CHECKPOINT) else real
        return _keep(_Local(source, path), recipe, progress, check)
    if name == NAME:
        return _keep(_Local(NAME, bundled_checkpoint()), recipe, progress, check)
    named = HubName.parse(name) if isinstance(name, str) else None
    if named is None:
        raise unknown(name)
    earlier = _earlier(named, recipe)
    return earlier or _keep(_Snapshot.of(named, progress), recipe, progress, check)


def described(name: str | os.PathLike[str], progress: Progress | None = None) -> Path:
    """The path that says what a model of that name is; of the hub's, config.json may be all. A GGUF
    file says it itself, and is downloaded whole.

    progress: called while it is.

    Raises as `hub.download`.
    """
    if name == NAME and not os.path.lexists(name):
        return bundled_checkpoint()
    named = HubName.parse(name) if isinstance(name, str) and not os.path.lexists(name) else None
    snapshot = None if named is None else hub.local_snapshot(named)
    if named is not None and snapshot is not None:
        return hub.located(named).within(snapshot)
    return hub.fetched(name, only_config=True, progress=progress)


@contextmanager
def original(name: str | os.PathLike[str], progress: Progress | None = None) -> Iterator[Source]:
    """The model of that name, under the tensor names of Hugging Face: a checkpoint as it is, a
    converted model as the checkpoint that it was made of. Nothing is converted.

    progress: called while a checkpoint of the hub is downloaded.

    Raises ArtifactError (the name means nothing, or its directory is no model), and as
    `open_source` and `hub.download`.
    """
    path = Path(name)
    if not os.path.lexists(name):
        named = HubName.parse(name) if isinstance(name, str) else None
        if name != NAME and named is None:
            raise unknown(name)
        if named is None:
            path = bundled_checkpoint()
        else:
            named = hub.located(named)
            path = named.within(hub.local_snapshot(named) or hub.download(named, progress=progress))
    with cache.hold(path):
        yield open_source(path) if is_checkpoint(path) else RestoredSource(Artifact.open(path))


def unknown(name: str | os.PathLike[str]) -> ArtifactError:
    """For a name that is neither a path's nor one of the hub's."""
    return ArtifactError(
        f"{name!s:.200} is missing, and no name of the Hugging Face hub",
        "a converted model, a checkpoint, or OWNER/NAME on the hub",
        "Check the path, or convert a checkpoint first.",
    )


def is_checkpoint(path: Path) -> bool:
    """Whether a path is something to convert, sound or not."""
    if is_converted(path):
        return False
    return path.is_file() or (path / CONFIG).is_file() or has_weights(path)


def _check_recipe(path: Path, recipe: Recipe | None) -> None:
    """Raises RequestError when a converted model has another recipe than was asked for."""
    if recipe is not None and read_manifest(path)["recipe"] != recipe.to_json():
        raise RequestError(
            f"{path} is converted already, with the recipe {read_manifest(path)['quant']!r}",
            Words("a checkpoint, or no quant", "a checkpoint, or no --quant"),
            "Load the checkpoint that it was made of.",
        )


class _Local:
    """A checkpoint on this machine.

    Args:
        source: what to call it.
        path: its directory or file.
    """

    def __init__(self, source: str, path: Path) -> None:
        self.source, self.path = source, path
        self.label = Path(source).stem if path.is_file() else Path(source).name

    @property
    def identity(self) -> list[object]:
        """Changes when a file does that a conversion reads. Raises CheckpointError."""
        single = self.path.is_file()
        folder = self.path.parent if single else self.path
        wanted = {*(part.name for part in files_of(self.path)), CONFIG, *SIDE_FILES}
        try:
            found = [
                [entry.name, entry.stat().st_size, entry.stat().st_mtime_ns]
                for entry in os.scandir(folder)
                if (entry.name in wanted if single else entry.name.endswith(_SUFFIXES))
                and entry.is_file()
            ]
        except OSError as error:
            raise CheckpointError(f"{folder} cannot be read: {error.strerror}") from error
        return [os.path.realpath(self.path), sorted(found)]

    def fetch(self, progress: Progress | None) -> Path:
        """It is here."""
        return self.path


@dataclass(frozen=True)
class _Snapshot:
    """A commit of a repository of the hub."""

    source: str
    repo: str
    commit: str
    file: str | None

    @classmethod
    def of(cls, named: HubName, progress: Progress | None) -> _Snapshot:
        """What the hub's cache has under that name, or else what the hub has."""
        found = hub.located(named)
        directory = hub.local_snapshot(found) or hub.download(found, progress=progress)
        return cls(str(named), found.repo, directory.name, found.file)

    @property
    def label(self) -> str:
        """The repository's name without its owner, or the file's."""
        return self.repo.split("/")[1] if self.file is None else Path(self.file).stem

    @property
    def identity(self) -> list[object]:
        """The commit, and the file."""
        return [self.repo, self.commit, *([] if self.file is None else [self.file])]

    def fetch(self, progress: Progress | None) -> Path:
        """Downloads what is not here."""
        named = HubName(self.repo, self.commit, self.file)
        return named.within(hub.download(named, progress=progress))


def _keep(
    source: _Local | _Snapshot,
    quant: Recipe | None,
    progress: Progress | None,
    check: Callable[[Plan], None] | None,
) -> Hold:
    recipe = quant or recipe_of(DEFAULT)
    digest = _digest(source.identity, recipe)
    label = re.sub(r"[^\w.-]+", "-", f"{source.label[:60]}-{recipe.name[:20]}").lstrip(".-")
    facts = {"source": source.source, "recipe": recipe.name, "variant": _digest([], recipe)}

    def make(target: Path) -> None:
        plan = plan_conversion(source.fetch(progress), recipe)
        if check is not None:
            check(plan)
        cache.make_room(plan.nbytes)
        size = file_size(plan.nbytes)
        log.info("converting %s to %s, %s, once: %s", source.source, recipe.name, size, target)
        carry_out(plan, target, choose(plan, None, COUNT), progress=progress)

    return cache.keep(f"{label}-{digest}", facts, Artifact.open, make)


def _digest(identity: list[object], recipe: Recipe) -> str:
    """Of a source and everything else that a conversion depends on."""
    parts = [identity, recipe.to_json(), MAX_LEVEL, FORMAT_VERSION]
    return blake2b(json.dumps(parts).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _earlier(named: HubName, quant: Recipe | None) -> Hold | None:
    """The last used conversion of that name and recipe; the network need not be there.

    None when the hub's own cache has a copy: that may be newer.
    """
    if hub.local_snapshot(named) is not None:
        return None
    wanted = {"source": str(named), "variant": _digest([], quant or recipe_of(DEFAULT))}
    for entry in reversed(cache.entries()):
        if wanted.items() <= entry.facts.items():
            held = cache.hold(entry.path)
            try:
                Artifact.open(entry.path)
                return held
            except ArtifactError:
                held.release()
    return None
