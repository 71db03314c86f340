"""The MNN wheel; nothing else imports it.

Only its two extension modules are loaded, and neither opens a socket nor starts a process
(tests/backends/mnn/test_no_telemetry.py). The Python package `MNN.tools` beside them, the scripts
`mnn` and `mnnconvert` included, installs a logger when it is imported and reports its use: it is
never touched. Both modules print to C's own stdout and stderr, from their import on.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fcntl import F_DUPFD_CLOEXEC, fcntl
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from threading import RLock
from typing import Any, BinaryIO

from deepmnn.errors import GraphError, MissingDependencyError, RequestError, StorageError

VERSION = "3.6.1"
"""The version of the wheel that deepmnn is tested with; its file formats are not promised."""

_ONE_AT_A_TIME = RLock()
_INSTALL = f'Run: pip install "MNN=={VERSION}"'
_OUTPUTS = ("--MNNModel", "--JsonFile")


def runtime() -> Any:
    """The module that runs models: `runtime().llm.create(config_path, False)` makes an `LLM`.

    Raises MissingDependencyError when the wheel is missing, broken or of another version.
    """
    return _load("_mnncengine")


def convert_tool(args: Sequence[str]) -> None:
    """MNN's converter: args are those of `mnnconvert`, `--MNNModel` or `--JsonFile` among them.

    An .mnn file is read back and its structure verified. The converter trusts its input: an .mnn
    file that is not one, or JSON that names an unknown op, crashes the process.

    Raises:
        MissingDependencyError: as `runtime`.
        RequestError: args name no output, or are not UTF-8.
        GraphError: the input makes no model; the converter's words are in the message.
        StorageError: the output could not be written; nothing of it is left.
    """
    flag, output = _output(args)
    tool = _load("_tools")
    _remove(output)  # an older file would pass for the result
    with captured() as printed:
        tool.mnnconvert(["mnnconvert", *args])  # returns True come what may
    if output.is_file() and (flag != "--MNNModel" or _sound(output)):
        return
    _remove(output)
    words = printed().split("\n")
    if "has convert to" in printed() or not any(words):  # it checks none of its writes
        raise StorageError(f"{output} is not whole", "room and permission to write it")
    last = [line.strip() for line in words if line.strip()][-1]
    raise GraphError(f"MNN's converter made no {output.name}: {last}")


@contextmanager
def captured() -> Iterator[Callable[[], str]]:
    """Catches what C and C++ print meanwhile; the function given returns it, afterwards.

    Takes file descriptors 1 and 2, so what other threads print meanwhile goes the same way.
    """
    caught = b""
    with _ONE_AT_A_TIME, _scratch() as file:
        saved = {number: _duplicate(number) for number in (1, 2)}
        _flush()
        for number in saved:
            os.dup2(file.fileno(), number)
        try:
            yield lambda: caught.decode(errors="replace")
        finally:
            _flush()
            for number, copy in saved.items():
                if copy is None:
                    os.close(number)
                else:
                    os.dup2(copy, number)
                    os.close(copy)
            file.seek(0)
            caught = file.read()


def _load(module: str) -> Any:
    """An extension module of the wheel."""
    try:
        found = version("mnn")
    except PackageNotFoundError:
        raise MissingDependencyError("MNN is not installed", f"mnn {VERSION}", _INSTALL) from None
    if found != VERSION:
        raise MissingDependencyError(f"mnn {found} is installed", f"mnn {VERSION}", _INSTALL)
    try:
        if module in sys.modules:
            return import_module(module)
        with captured():  # it greets
            return import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"mnn {found} cannot be imported: {error}", "a sound wheel", _INSTALL
        ) from error


def _output(args: Sequence[str]) -> tuple[str, Path]:
    """The flag and the file of what the converter is asked for."""
    try:
        "\n".join(args).encode()
    except UnicodeEncodeError as error:  # the converter would read a null pointer
        raise RequestError(f"a path is not UTF-8: {error.object!r:.200}", "a plain path") from None
    for flag, value in pairwise(args):
        if flag in _OUTPUTS:
            return flag, Path(value)
    raise RequestError("the converter is given no output", " or ".join(_OUTPUTS))


def _remove(output: Path) -> None:
    with suppress(OSError):
        if output.is_file():
            output.unlink()


def _sound(model: Path) -> bool:
    """Whether an .mnn file is whole: MNN verifies every offset when it opens one."""
    module = runtime()
    with captured():
        try:
            module.Interpreter(str(model))
        except Exception:  # it raises nothing narrower
            return False
    return True


def _scratch() -> BinaryIO:
    """A file without a name; in memory where that can be, for the disk may be full."""
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("deepmnn")
    else:
        number, path = tempfile.mkstemp()
        os.unlink(path)
    try:
        return os.fdopen(fcntl(number, F_DUPFD_CLOEXEC, 3), "w+b")
    finally:
        os.close(number)


def _duplicate(number: int) -> int | None:
    """A copy of a file descriptor, past those of stdout and stderr; None when it is closed."""
    try:
        return fcntl(number, F_DUPFD_CLOEXEC, 3)
    except OSError:
        return None


def _flush() -> None:
    """Empties Python's and C's output buffers."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(OSError, ValueError):
                stream.flush()
    ctypes.CDLL(None).fflush(None)
