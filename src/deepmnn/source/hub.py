"""The Hugging Face hub: checkpoints by name, fetched once into the hub's own cache."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from deepmnn.errors import CheckpointError, DeepmnnError, StorageError
from deepmnn.source.side_files import CONFIG
from deepmnn.source.sizes import file_size

FILES = ("*.json", "*.jinja", "tokenizer.model", "merges.txt")
"""Files that a conversion needs beside the weights."""

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
"""Weight files, best first: only the first kind that a repository has is fetched."""

log = logging.getLogger("deepmnn")


@dataclass(frozen=True)
class HubName:
    """A repository of the hub: OWNER/NAME, or OWNER/NAME@REVISION.

    revision: a branch, tag or commit; None is the repository's main branch.
    """

    repo: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubName | None:
        """What the text names, if it has the form of a hub name."""
        match = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?", text, re.ASCII)
        return None if match is None else cls(match[1], match[2])

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def fetched(source: str | os.PathLike[str], only_config: bool = False) -> Path:
    """The path of a source: itself, or of a hub name what is downloaded, unless a file is called
    like that.

    only_config: config.json is enough.

    Raises as `download`.
    """
    name = HubName.parse(source) if isinstance(source, str) else None
    if name is None or os.path.lexists(source):
        return Path(source)
    return download_config(name) if only_config else download(name)


def download(name: HubName, directory: Path | None = None) -> Path:
    """The checkpoint's directory: `directory`, or a snapshot in the hub's own cache.

    What is there already is not fetched again. Without a network an earlier snapshot will do.

    Raises CheckpointError when the hub does not hand it out or cannot be reached, StorageError
    when it cannot be written.
    """
    from huggingface_hub import snapshot_download

    try:
        commit, files = _listing(name)
        sizes = _wanted(files)
        missing = sum(size for file, size in sizes.items() if not _is_here(name.repo, commit, file))
        if missing or directory is not None:
            size = file_size(missing if directory is None else sum(sizes.values()))
            log.info("downloading %s, %s, to %s", name, size, directory or _hub_cache())
        return Path(
            snapshot_download(
                name.repo,
                revision=name.revision,
                local_dir=directory,
                allow_patterns=[*sizes],
            )
        )
    except Exception as error:  # the hub library raises its own, the network's and the system's
        earlier = None if directory else _earlier(name, error)
        if earlier is None:
            raise _explain(error, name) from error
        log.info("the hub cannot be reached: using the copy of %s in %s", name, earlier)
        return earlier


def download_config(name: HubName) -> Path:
    """The path of config.json, which alone says what a model is. Raises as `download`."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name.repo, CONFIG, revision=name.revision))
    except Exception as error:
        raise _explain(error, name) from error


def local_commit(name: HubName) -> str | None:
    """The commit whose weights the hub's cache has under that name; the network is not asked."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name.repo, CONFIG, revision=name.revision)
    except HFValidationError:
        return None
    snapshot = Path(found).parent if isinstance(found, str) else None
    if snapshot is None or not _matching(os.listdir(snapshot), WEIGHTS):
        return None
    return snapshot.name


def _listing(name: HubName) -> tuple[str, dict[str, int]]:
    """The commit, and file → bytes of what lies in no folder of the repository."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(name.repo, revision=name.revision, files_metadata=True)
    files = {file.rfilename: file.size or 0 for file in info.siblings or []}
    return info.sha or "", {file: size for file, size in files.items() if "/" not in file}


def _is_here(repo: str, commit: str, file: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repo, file, revision=commit), str)


def _wanted(files: dict[str, int]) -> dict[str, int]:
    """The files that a conversion needs, and their bytes."""
    weights = next((kind for kind in WEIGHTS if _matching(files, (kind,))), WEIGHTS[0])
    return {name: files[name] for name in _matching(files, (*FILES, weights))}


def _matching(files: Iterable[str], patterns: Iterable[str]) -> list[str]:
    return [name for name in files if any(fnmatchcase(name, each) for each in patterns)]


def _earlier(name: HubName, error: Exception) -> Path | None:
    """A whole snapshot of an earlier day, when the network is what is missing."""
    from huggingface_hub import snapshot_download

    if not _is_network(error) or local_commit(name) is None:
        return None
    return Path(snapshot_download(name.repo, revision=name.revision, local_files_only=True))


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
    if isinstance(error, hub.EntryNotFoundError):
        return CheckpointError(f"{name} has no {CONFIG}", "the repository of a model")
    if isinstance(error, OSError):
        return StorageError(f"{name} cannot be stored: {error}")
    return CheckpointError(f"{name} cannot be downloaded: {type(error).__name__}: {error}")


def _hub_cache() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return HF_HUB_CACHE
