"""The Hugging Face hub: checkpoints by name, fetched once into the hub's own cache."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from deepmnn.errors import CheckpointError, DeepmnnError, StorageError
from deepmnn.source.gguf.splits import SUFFIX, models_of, part_names, tagged
from deepmnn.source.json_file import is_plain_name
from deepmnn.source.side_files import CONFIG
from deepmnn.source.sizes import file_size

FILES = ("*.json", "*.jinja", "tokenizer.model", "merges.txt")
"""Files that a conversion needs beside the weights."""

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
"""Weight files, best first: only the first kind that a repository has is fetched. A repository that
has none of them may have a GGUF model."""

Progress = Callable[[int, int, str], None]

EVERY = 1.0
"""Seconds between two reports of a download."""

log = logging.getLogger("deepmnn")


_PATH_ENDINGS = (".mnn", ".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".json", SUFFIX)
"""What ends so is the path of a file, mistyped perhaps."""


@dataclass(frozen=True)
class HubName:
    """A repository of the hub: OWNER/NAME, or OWNER/NAME@REVISION; with :FILE.gguf or :TAG behind
    it one GGUF model of several.

    revision: a branch, tag or commit; None is the repository's main branch.
    file: of the model, or the first of its parts; None: the repository's only model.
    tag: a word in the file's name, Q4_K_M say; `located` finds the file.
    """

    repo: str
    revision: str | None = None
    file: str | None = None
    tag: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubName | None:
        """What the text names, if it has the form of a hub name."""
        name, _, file = text.partition(":")
        match = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?", name, re.ASCII)
        if match is None or match[1].endswith(_PATH_ENDINGS):
            return None
        if match[2] is not None and not all(map(is_plain_name, match[2].split("/"))):
            return None  # the hub's library makes a path of it
        if ":" not in text:
            return cls(match[1], match[2])
        if file.endswith(SUFFIX) and all(map(is_plain_name, file.split("/"))):
            return cls(match[1], match[2], file)
        if re.fullmatch(r"\w[\w.-]*", file, re.ASCII) and not file.endswith(_PATH_ENDINGS):
            return cls(match[1], match[2], tag=file)
        return None

    def within(self, directory: Path) -> Path:
        """The model, in a directory that has the repository's files."""
        return directory if self.file is None else directory / self.file

    def __str__(self) -> str:
        name = self.repo if self.revision is None else f"{self.repo}@{self.revision}"
        which = self.file or self.tag
        return name if which is None else f"{name}:{which}"


def fetched(
    source: str | os.PathLike[str], only_config: bool = False, progress: Progress | None = None
) -> Path:
    """The path of a source: itself, or of a hub name what is downloaded, unless a file is called
    like that.

    only_config: config.json is enough, unless a GGUF file is named, which has its own.
    progress: as of `download`.

    Raises as `download`.
    """
    name = HubName.parse(source) if isinstance(source, str) else None
    if name is None or os.path.lexists(source):
        return Path(source)
    name = located(name)
    if only_config and name.file is None:
        return download_config(name)
    return name.within(download(name, progress=progress))


def located(name: HubName) -> HubName:
    """The name with the file that its tag stands for; without a tag itself. The network is not
    asked when the hub's cache has one such model.

    Raises CheckpointError unless one model of the repository has the tag, and as `download`.
    """
    if name.tag is None:
        return name
    found = _tagged(name, _files_here(name))
    if len(found) == 1:
        return found[0]
    try:
        models = models_of(_listing(name)[1])
    except Exception as error:
        raise _explain(error, name) from error
    found = _tagged(name, models)
    if len(found) == 1:
        return found[0]
    fitting = tagged(models, name.tag)
    raise CheckpointError(
        f"{name.repo} has {len(fitting) or 'no'} GGUF models with {name.tag} in their names",
        _choices(name, fitting or models),
    )


def download(
    name: HubName, directory: Path | None = None, progress: Progress | None = None
) -> Path:
    """The directory with the repository's files that a conversion needs: `directory`, or a snapshot
    in the hub's own cache.

    What is there already is not fetched again. Without a network an earlier snapshot will do.

    progress: called every second with (bytes done, bytes in all, what); without it the hub's own
    library shows bars.

    Raises CheckpointError when the hub does not hand it out or cannot be reached, StorageError
    when it cannot be written.
    """
    from huggingface_hub import snapshot_download

    here = local_snapshot(name) if directory is None else None
    try:
        commit, files = _listing(name)
        sizes = missing = _wanted(name, files)
        if directory is None:
            missing = {file: n for file, n in sizes.items() if not _is_here(name, commit, file)}
            if here is not None and here.name == commit and not missing:
                return here
        total = sum(missing.values())
        log.info("downloading %s, %s, to %s", name, file_size(total), directory or _hub_cache())
        with _watched(directory or _repo_cache(name), total, progress):
            return Path(
                snapshot_download(
                    name.repo,
                    revision=name.revision,
                    local_dir=directory,
                    allow_patterns=[*sizes],
                    tqdm_class=None if progress is None else _silent(),
                )
            )
    except DeepmnnError:
        raise
    except Exception as error:  # the hub library raises its own, the network's and the system's
        if here is not None and _is_network(error):
            log.info("the hub cannot be reached: using the copy of %s in %s", name, here)
            return here
        raise _explain(error, name) from error


def download_config(name: HubName) -> Path:
    """The path of config.json, which alone says what a model is. Raises as `download`."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    try:
        if CONFIG not in _listing(name)[1]:
            raise CheckpointError(f"{name} has no {CONFIG}", "the repository of a model")
        return Path(hf_hub_download(name.repo, CONFIG, revision=name.revision))
    except DeepmnnError:
        raise
    except Exception as error:
        if _is_network(error):
            here = try_to_load_from_cache(name.repo, CONFIG, revision=name.revision)
            if isinstance(here, str):
                return Path(here)
        raise _explain(error, name) from error


def local_snapshot(name: HubName) -> Path | None:
    """The directory with the model that the hub's cache has under that name; it is called like the
    commit. The network is not asked.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if name.tag is not None:
        here = _tagged(name, _files_here(name))
        return local_snapshot(here[0]) if len(here) == 1 else None
    try:
        parts = [CONFIG] if name.file is None else part_names(name.file)
        found = [try_to_load_from_cache(name.repo, part, revision=name.revision) for part in parts]
    except HFValidationError:
        return None
    if not all(isinstance(path, str) for path in found):
        return None
    directory = Path(str(found[0])).parents[parts[0].count("/")]
    whole = name.file is not None or _matching(os.listdir(directory), WEIGHTS)
    return directory if whole else None


def _tagged(name: HubName, models: Iterable[str]) -> list[HubName]:
    """The name with each of the models that have its tag."""
    return [replace(name, file=model, tag=None) for model in tagged(models, name.tag or "")]


def _files_here(name: HubName) -> list[str]:
    """The GGUF models of a repository that are in the hub's cache, or were in part."""
    from huggingface_hub.errors import HFValidationError

    revision = name.revision or "main"
    if not all(map(is_plain_name, revision.split("/"))):
        return []
    try:
        home = _repo_cache(name)
        ref = home / "refs" / revision
        snapshot = home / "snapshots" / (ref.read_text() if ref.is_file() else revision)
        return models_of(str(path.relative_to(snapshot)) for path in snapshot.rglob(f"*{SUFFIX}"))
    except (OSError, HFValidationError):
        return []


def _listing(name: HubName) -> tuple[str, dict[str, int]]:
    """The commit, and file → bytes."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(name.repo, revision=name.revision, files_metadata=True)
    return info.sha or "", {file.rfilename: file.size or 0 for file in info.siblings or []}


def _is_here(name: HubName, commit: str, file: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name.repo, file, revision=commit), str)


def _wanted(name: HubName, files: dict[str, int]) -> dict[str, int]:
    """The files that a conversion needs, and their bytes. What lies in folders is other editions of
    the model, unless a GGUF file there is named.

    Raises CheckpointError when it is not clear which GGUF model is meant.
    """
    models = models_of(files)
    if name.file is not None:
        parts = part_names(name.file)
        if not files.keys() >= set(parts):
            raise CheckpointError(f"{name.repo} has no {name.file}", _choices(name, models))
        return {part: files[part] for part in parts}
    top = {file: size for file, size in files.items() if "/" not in file}
    kind = next((kind for kind in WEIGHTS if _matching(top, (kind,))), None)
    if kind is not None or not models:
        return {file: top[file] for file in _matching(top, (*FILES, kind or WEIGHTS[0]))}
    if len(models) > 1 or "/" in models[0]:
        raise CheckpointError(f"{name} holds {len(models)} GGUF models", _choices(name, models))
    return {file: top[file] for file in (*part_names(models[0]), CONFIG) if file in top}


def _choices(name: HubName, models: list[str]) -> str:
    """The names of its models."""
    names = [str(HubName(name.repo, name.revision, model)) for model in models]
    return f"one of {', '.join(names)}" if names else "a repository with GGUF files"


def _matching(files: Iterable[str], patterns: Iterable[str]) -> list[str]:
    return [name for name in files if any(fnmatchcase(name, each) for each in patterns)]


@contextmanager
def _watched(directory: Path, total: int, progress: Progress | None) -> Iterator[None]:
    """Reports how much a directory grows: the hub's library shows bytes on terminals only."""
    finished, before = threading.Event(), _nbytes(directory)

    def watch() -> None:
        while progress is not None and not finished.wait(EVERY):
            progress(max(0, min(_nbytes(directory) - before, total)), total, "downloading")

    thread = threading.Thread(target=watch, name="deepmnn-download", daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def _nbytes(directory: Path) -> int:
    """Bytes of all files, unfinished ones too."""
    found = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):  # renamed meanwhile
                found += os.lstat(os.path.join(folder, name)).st_size
    return found


def _silent() -> type[Any]:
    """A progress bar of the hub's library that shows nothing."""
    from tqdm.auto import tqdm

    class Silent(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **{**options, "disable": True})

    return Silent


def _is_network(error: Exception) -> bool:
    from huggingface_hub import errors as hub

    kinds = (ConnectionError, TimeoutError, hub.HfHubHTTPError, hub.LocalEntryNotFoundError)
    answers = (hub.RepositoryNotFoundError, hub.RevisionNotFoundError, hub.EntryNotFoundError)
    if isinstance(error, answers) and not isinstance(error, hub.LocalEntryNotFoundError):
        return False
    named = type(error).__name__
    return isinstance(error, kinds) or "Connect" in named or "Timeout" in named


def _explain(error: Exception, name: HubName) -> DeepmnnError:
    from huggingface_hub import errors as hub

    if isinstance(error, hub.GatedRepoError):
        return CheckpointError(
            f"{name} is gated", "", "Accept its licence on the hub, then log in: hf auth login"
        )
    if isinstance(error, hub.RepositoryNotFoundError | hub.RevisionNotFoundError):
        return CheckpointError(
            f"the hub has no {name} (or no such revision, or it is private)",
            "OWNER/NAME of a model repository, or a path that exists",
            "Check the name; for a private one log in: hf auth login",
        )
    if isinstance(error, hub.HFValidationError):
        return CheckpointError(f"{str(name)!r} is no name of the hub", "OWNER/NAME")
    if isinstance(error, hub.OfflineModeIsEnabled):
        return CheckpointError(
            f"HF_HUB_OFFLINE is set, and {name} was not downloaded before",
            "a model that is here",
            "Unset HF_HUB_OFFLINE, or copy the checkpoint's files here.",
        )
    if _is_network(error):
        said = (str(error).splitlines() or [type(error).__name__])[0]
        return CheckpointError(
            f"the hub cannot be reached for {name}: {said}",
            "a network connection, or a path that exists",
            "Try again later, or copy the checkpoint's files here.",
        )
    if isinstance(error, OSError):
        return StorageError(f"{name} cannot be stored: {error}")
    return CheckpointError(f"{name} cannot be downloaded: {type(error).__name__}: {error}")


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _repo_cache(name: HubName) -> Path:
    from huggingface_hub.file_download import repo_folder_name

    return _hub_cache() / repo_folder_name(repo_id=name.repo, repo_type="model")
