"""A checkpoint to an MNN model: converted to a temporary artifact, then exported."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from io import TextIOWrapper
from pathlib import Path

from deepmnn.artifact.directory import storage_errors
from deepmnn.artifact.workspace import Workspace
from deepmnn.backends.mnn import wheel
from deepmnn.cli.console import count, err, out
from deepmnn.cli.progress import byte_progress
from deepmnn.conversion.convert import ConvertReport, convert
from deepmnn.errors import DeepmnnError, StorageError
from deepmnn.exporters.mnn.export import ExportReport, export
from deepmnn.exporters.mnn.names import Names
from deepmnn.exporters.mnn.writer import FolderWriter
from mnnconvert.options import Options, parse


def main(arguments: Sequence[str], prog: str = "mnnconvert") -> int:
    """Runs the command line; returns the exit code, 0 or 1. Errors are one line on stderr."""
    if isinstance(sys.stdout, TextIOWrapper):  # what its encoding lacks is shown, not raised
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        options = parse(arguments, prog)
        report, exported = run(options)
    except (DeepmnnError, OSError) as error:
        err.say(f"error: {_words(error)}", "bold red")
        return 1
    floats = "fp16" if options.fp16 else "fp32"
    out.say(
        f"{options.mnn_model}: {report.model_type}, {count(report.parameters)} parameters as "
        f"{f'{options.bits} bits' if options.bits else floats}"
    )
    out.say(f"next: MNN.llm.create({str(options.mnn_model.with_suffix('.config.json'))!r})")
    if report.unused:
        err.say(
            f"note: {len(report.unused)} tensors of the checkpoint are not read, "
            f"{report.unused[0]!r} for one"
        )
    if exported.note:
        err.say(f"note: {exported.note}")
    return 0


def _words(error: Exception) -> str:
    return error.shell if isinstance(error, DeepmnnError) else str(error)


def run(options: Options) -> tuple[ConvertReport, ExportReport]:
    """Converts and exports; a failure leaves nothing behind. Raises as `convert` and `export`."""
    target = options.mnn_model
    if not target.parent.is_dir():
        raise StorageError(f"{target.parent} is no directory", "a directory that exists")
    # What the export would refuse after hours of converting, it refuses now.
    sources = [path for path in (options.model_file, options.config) if path is not None]
    FolderWriter(target.parent, Names(target.stem), options.overwrite, sources).place.check()
    wheel.runtime()
    with _scratch(target) as scratch:
        with byte_progress("converting") as progress:
            report = convert(
                options.model_file,
                scratch / "artifact",
                "bf16" if options.bits else "fp32",  # the export rounds
                options.optimize_level,
                config=options.config,
                progress=progress,
            )
        with byte_progress("exporting") as progress:
            exported = export(
                report.path,
                target.parent,
                stem=target.stem,
                float_dtype="fp16" if options.fp16 else None,
                bits=options.bits or None,
                block_size=options.block_size,
                biz_code=options.biz_code,
                overwrite=options.overwrite,
                progress=progress,
            )
    return report, exported


@contextlib.contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A directory beside the target, where there must be room anyway. What a killed process leaves,
    the next one to that target removes.
    """
    with contextlib.ExitStack() as stack:
        with storage_errors(target):
            workspace = stack.enter_context(Workspace(target))
        yield workspace.new
