"""The command line: one file per verb, its flags are the function's arguments.

An argument that is a dataclass of options becomes a flag for each field (`options.with_flags`).
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from deepmnn import __version__
from deepmnn.cli import cache
from deepmnn.cli.batch import batch
from deepmnn.cli.bench import bench
from deepmnn.cli.chat import chat
from deepmnn.cli.check import check
from deepmnn.cli.compare import compare
from deepmnn.cli.console import err, out
from deepmnn.cli.convert import convert
from deepmnn.cli.demo import demo
from deepmnn.cli.eval import evaluate
from deepmnn.cli.export import export
from deepmnn.cli.generate import generate
from deepmnn.cli.info import info
from deepmnn.cli.mnnconvert import SETTINGS, mnnconvert
from deepmnn.cli.options import with_flags
from deepmnn.cli.plan import plan
from deepmnn.cli.profile import profile
from deepmnn.cli.pull import pull
from deepmnn.cli.report import report
from deepmnn.cli.serve import serve
from deepmnn.errors import DeepmnnError

_UsageError: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)
"""What typer raises for a command that is wrong; it gives it no public name."""


class _Group(TyperGroup):
    """Turns errors into one red line: exit code 1, 2 for usage, 130 for Ctrl-C."""

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        try:
            code = super().main(*args, **{**extra, "standalone_mode": False})
        except DeepmnnError as error:
            code = _fail(error.shell, 1)
        except _UsageError as error:
            code = _explain(error)
        except OSError as error:  # a name too long, a directory that may not be searched, ...
            code = _fail(str(error), 1)
        except typer.Abort:
            code = 1
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> int:
    err.say(f"error: {message}", "bold red")
    return code


def _explain(error: Any) -> int:
    """Says how a verb is used; typer has printed its help where nothing was given."""
    message, context = error.format_message(), getattr(error, "ctx", None)
    if context is not None and message:
        err.say(context.get_usage())
        message = f"{message.removesuffix('.')}. See: {context.command_path} --help"
    return _fail(message, error.exit_code) if message else error.exit_code


app = typer.Typer(
    cls=_Group,
    help="DeepSeek models from checkpoint to phone and server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        out.say(f"deepmnn {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


_VERBS = (
    *(demo, pull, convert, export, info, generate, chat, serve, batch),
    *(plan, bench, profile, check, compare, report),
)
for _verb in _VERBS:
    app.command()(with_flags(_verb))
app.command("eval")(with_flags(evaluate))
app.add_typer(cache.app, name="cache")
app.command(context_settings=SETTINGS)(mnnconvert)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `deepmnn` command. arguments: None takes those of the process."""
    for stream in (sys.stdin, sys.stdout):  # what a terminal's encoding lacks is shown, not raised
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app(arguments)
    except Exception:  # a bug of ours; its message may quote a file
        err.print(traceback.format_exc(), soft_wrap=True)
        sys.exit(1)
