"""deepmnn pull: fetch a checkpoint from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from deepmnn.cli.console import out
from deepmnn.errors import CheckpointError, DeepmnnError, StorageError

FILES = ["*.json", "*.jinja", "tokenizer.model", "merges.txt"]
"""Files that a conversion needs beside the weights."""

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
"""Weight files, best first: only the first kind that a repository has is fetched."""


def pull(
    repo: Annotated[str, Argument(help="For example deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B.")],
    directory: Annotated[
        Path | None, Argument(metavar="OUT", help="Where to put it; default: the hub's cache.")
    ] = None,
    revision: Annotated[str | None, Option(help="Branch, tag or commit.")] = None,
) -> None:
    """Download a checkpoint from the Hugging Face hub."""
    path = download(repo, directory, revision)
    out.say(str(path))
    out.say(f"next: deepmnn convert {path} OUT", "dim")


def download(repo: str, directory: Path | None = None, revision: str | None = None) -> Path:
    """The local copy of a hub repository.

    Raises CheckpointError when the hub does not hand it out or cannot be reached, StorageError
    when it cannot be written.
    """
    from huggingface_hub import snapshot_download

    try:
        for weights in WEIGHTS:
            wanted = [*FILES, weights]
            path = Path(
                snapshot_download(
                    repo, revision=revision, local_dir=directory, allow_patterns=wanted
                )
            )
            if any(path.glob(weights)):
                break
        return path
    except Exception as error:  # the hub library raises its own, the network's and the system's
        raise _explain(error, repo) from error


def _explain(error: Exception, repo: str) -> DeepmnnError:
    from huggingface_hub import errors as hub

    if isinstance(error, hub.GatedRepoError):
        return CheckpointError(
            f"{repo} is gated", "", "Accept its licence on the hub, then log in: hf auth login"
        )
    if isinstance(error, hub.RepositoryNotFoundError | hub.RevisionNotFoundError):
        return CheckpointError(
            f"the hub has no {repo} (or no such revision, or it is private)",
            "owner/name of a model repository",
        )
    if isinstance(error, hub.HFValidationError):
        return CheckpointError(f"{repo!r} is not a repository name", "owner/name")
    network = (ConnectionError, TimeoutError, hub.HfHubHTTPError, hub.LocalEntryNotFoundError)
    if isinstance(error, network) or "Connect" in type(error).__name__:
        return CheckpointError(
            f"the hub cannot be reached: {error}".splitlines()[0],
            "a network connection",
            "Try again later, or copy the checkpoint's files here and convert them.",
        )
    if isinstance(error, OSError):
        return StorageError(f"{repo} cannot be stored: {error}")
    return CheckpointError(f"{repo} cannot be downloaded: {type(error).__name__}: {error}")
