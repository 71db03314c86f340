"""deepmnn pull: fetch a checkpoint from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, BadParameter, Option

from deepmnn.cli import options
from deepmnn.cli.console import out


def pull(
    repo: Annotated[
        str,
        Argument(
            metavar="OWNER/NAME[@REVISION][:FILE.gguf|:TAG]",
            help="For example deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B.",
        ),
    ],
    directory: Annotated[
        Path | None, Argument(metavar="OUT", help="Where to put it; default: the hub's cache.")
    ] = None,
    revision: Annotated[str | None, Option(help="Branch, tag or commit.")] = None,
) -> None:
    """Download a checkpoint from the Hugging Face hub."""
    from deepmnn.source.hub import HubName, download, located

    base, colon, file = repo.partition(":")
    name = HubName.parse(repo if revision is None else f"{base}@{revision}{colon}{file}")
    if name is None:
        raise BadParameter(f"{repo!r} is no name on the hub, expected OWNER/NAME")
    with options.preparing() as progress:
        name = located(name)
        path = name.within(download(name, directory, progress))
    out.say(str(path))
    following = f"deepmnn chat {name}" if directory is None else f"deepmnn convert {path} OUT"
    out.say(f"next: {following}", "dim")
