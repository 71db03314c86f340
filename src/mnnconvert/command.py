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
from deepmnn.cli.console import ConvertProgress, byte_progress, count
from deepmnn.conversion.convert import ConvertReport, convert
from deepmnn.errors import DeepmnnError, StorageError
from deepmnn.exporters import ExportReport, export
from deepmnn.exporters.mnn.names import Names
from deepmnn.exporters.mnn.writer import FolderWriter
from mnnconvert.options import GROUPED, Options, parse


def main(arguments: Sequence[str]) -> int:
    """Runs the command line; returns the exit code, 0 or 1. Errors are one line on stderr."""
    if isinstance(sys.stdout, TextIOWrapper):  # what its encoding lacks is shown, not raised
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        options = parse(arguments)
        report, exported = run(options)
    except (DeepmnnError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    floats = "fp16" if options.fp16 else "fp32"
    print(
        f"{options.mnn_model}: {report.model_type}, {count(report.parameters)} parameters as "
        f"{floats if report.quant == 'fp32' else report.quant}\n"
        f"next: MNN.llm.create({str(options.mnn_model.with_suffix('.config.json'))!r})"
    )
    if options.group_size is not None and options.quant not in GROUPED:
        print(
            "note: --weightQuantBlock is for 4 bits; 8 bits have one scale for 256 columns",
            file=sys.stderr,
        )
    if report.unused:
        print(
            f"note: {len(report.unused)} tensors of the checkpoint are not read, "
            f"{report.unused[0]!r} for one",
            file=sys.stderr,
        )
    if exported.note:
        print(f"note: {exported.note}", file=sys.stderr)
    return 0


def run(options: Options) -> tuple[ConvertReport, ExportReport]:
    """Converts and exports; a failure leaves nothing behind. Raises as `convert` and `export`."""
    target = options.mnn_model
    if not target.parent.is_dir():
        raise StorageError(f"{target.parent} is no directory", "a directory that exists")
    # What the export would refuse after hours of converting, it refuses now.
    sources = [path for path in (options.model_file, options.config) if path is not None]
    FolderWriter(target.parent, Names(target.stem), options.overwrite, sources).place.check()
    wheel.runtime()
    with _scratch(target) as scratch, byte_progress("converting") as progress:
        report = convert(
            options.model_file,
            scratch / "artifact",
            options.quant,
            options.optimize_level,
            config=options.config,
            group_size=options.group_size if options.quant in GROUPED else None,
            progress=ConvertProgress(progress),
        )
        exported = export(
            report.path,
            target.parent,
            stem=target.stem,
            float_dtype="fp16" if options.fp16 else None,
            biz_code=options.biz_code,
            overwrite=options.overwrite,
            progress=ConvertProgress(progress),
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
