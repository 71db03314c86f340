"""deepmnn cache: the models that were converted or exported once and are kept."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from deepmnn.cli.console import file_size, out

if TYPE_CHECKING:
    from deepmnn.artifact.cache import Entry

app = typer.Typer(help="List or remove the models that are kept.", no_args_is_help=True)


@app.command("list")
def show() -> None:
    """What is kept, the last used first, and how much may be."""
    from deepmnn.artifact.cache import entries, limit, models_directory

    kept = entries()
    for entry in reversed(kept):
        used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
        facts = [entry.facts.get(name, "?") for name in ("source", "recipe")]
        state = ", in use" if entry.is_used else ""
        out.say(entry.path.name, "bold")
        out.say(f"  {' as '.join(facts)}, {file_size(entry.nbytes)}, last used {used}{state}")
    total = file_size(sum(entry.nbytes for entry in kept))
    out.say(f"{len(kept)} models, {total} of {file_size(limit())}, in {models_directory()}", "dim")


@app.command()
def remove(
    names: Annotated[
        list[str] | None,
        Argument(
            metavar="[NAME]...", help="As `list` shows them, or the source they were made of."
        ),
    ] = None,
    everything: Annotated[bool, Option("--all", help="All that is not in use.")] = False,
) -> None:
    """Remove models; those that a process uses stay."""
    from deepmnn.artifact import cache
    from deepmnn.errors import StorageError

    if bool(names) == everything:
        raise typer.BadParameter("name what to remove, or give --all")
    kept = cache.entries()
    chosen = kept if everything else [entry for name in names or [] for entry in _named(name, kept)]
    used = []
    for entry in chosen:
        size = entry.nbytes
        if cache.remove(entry):
            out.say(f"removed {entry.path.name}, {file_size(size)}")
        else:
            used.append(entry.path.name)
    if used:
        raise StorageError(
            f"{', '.join(used)} in use", "models that no process has loaded", "End those first."
        )


def _named(name: str, kept: list[Entry]) -> list[Entry]:
    """The entries of that name or source. Raises BadParameter when there is none."""
    found = [entry for entry in kept if name in (entry.path.name, entry.facts.get("source"))]
    if not found:
        raise typer.BadParameter(f"{name!r} is not in the cache; deepmnn cache list shows what is")
    return found
