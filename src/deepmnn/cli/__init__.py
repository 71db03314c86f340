"""The command line: one file per verb, its flags are the function's arguments.

An argument that is a dataclass of options becomes a flag for each field (`options.with_flags`).
"""

from __future__ import annotations

import sys
from io import TextIOWrapper
from typing import Any

import typer
from typer.core import TyperGroup

from deepmnn import __version__
from deepmnn.cli.bench import bench
from deepmnn.cli.chat import chat
from deepmnn.cli.console import err, out
from deepmnn.cli.convert import convert
from deepmnn.cli.demo import demo
from deepmnn.cli.eval import evaluate
from deepmnn.cli.export import export
from deepmnn.cli.generate import generate
from deepmnn.cli.info import info
from deepmnn.cli.options import with_flags
from deepmnn.cli.pull import pull
from deepmnn.errors import DeepmnnError


class _Group(TyperGroup):
    """Turns errors into one red message: exit code 1, or 130 for Ctrl-C. Usage errors are 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except DeepmnnError as error:
            err.print(f"error: {error.shell}", style="bold red", markup=False, soft_wrap=True)
            raise typer.Exit(1) from error
        except BrokenPipeError:  # typer ends quietly
            raise
        except OSError as error:  # a name too long, a directory that may not be searched, ...
            err.print(f"error: {error}", style="bold red", markup=False, soft_wrap=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as interrupt:
            raise typer.Exit(130) from interrupt


app = typer.Typer(
    cls=_Group,
    help="DeepSeek models from checkpoint to phone and server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"deepmnn {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


for _verb in (demo, pull, convert, export, info, generate, chat, bench):
    app.command()(with_flags(_verb))
app.command("eval")(with_flags(evaluate))


def main() -> None:
    """Entry point of the `deepmnn` command."""
    for stream in (sys.stdin, sys.stdout):  # what a terminal's encoding lacks is shown, not raised
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app()
