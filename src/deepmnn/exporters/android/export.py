"""Artifact → an MNN folder for a phone, and an Android Studio project that runs it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from deepmnn.artifact.directory import storage_errors
from deepmnn.artifact.manifest import MANIFEST, TEMP_MARK
from deepmnn.artifact.target import OVERWRITE, Target, check_apart, check_name, real_path
from deepmnn.backends.mnn.wheel import runtime
from deepmnn.conversion.write import Progress
from deepmnn.errors import StorageError
from deepmnn.exporters.android.chat_app import check_folder, phone_name
from deepmnn.exporters.android.project import project_target, write_project
from deepmnn.exporters.mnn.export import ExportReport, export
from deepmnn.exporters.mnn.folder import FORMAT, MnnFolder
from deepmnn.models import read_config

PROJECT = "project"
CONTEXT = 4096
"""Tokens that a chat on a phone may have: its cache must fit in memory beside the weights."""


def export_android(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    mla_form: str = "auto",
    bits: int | None = None,
    block_size: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """As `export`, into a folder in `target` that MNN's chat app for Android takes as it is, with
    an Android Studio project of ours beside it (docs/android.md).

    overwrite replaces an earlier export: its folder and its project, as long as they are as they
    were written. A project that has been worked on, or built, stays, and nothing is exported.

    Raises as `export`, and ArtifactError when MNN's chat app would not take the folder.
    """
    check_android(target, overwrite, [Path(source)])
    folder, project = _places(real_path(target))
    report = export(
        source,
        folder,
        mla_form=mla_form,
        bits=bits,
        block_size=block_size,
        needs_tokenizer=True,
        overwrite=overwrite,
        progress=progress,
    )
    check_folder(folder)
    context = read_config(MnnFolder.open(folder).config).context_length
    write_project(project, folder.name, min(context, CONTEXT), overwrite)
    return report


def check_android(target: str | os.PathLike[str], overwrite: bool, sources: Sequence[Path]) -> None:
    """Raises what `export_android` raises for a target that it may not write, and for a missing
    wheel. sources: what is read meanwhile.
    """
    place = real_path(target)
    folder, project = _places(place)
    with storage_errors(place):
        _check_place(place, folder, overwrite)
        check_apart(place, sources)
        for part in (Target(folder, FORMAT, overwrite), project_target(project, overwrite)):
            part.check()
    runtime()


def _places(place: Path) -> tuple[Path, Path]:
    """The model's folder and the project."""
    name = phone_name(place.name)
    return place / ("model" if name == PROJECT else name), place / PROJECT


def _check_place(place: Path, folder: Path, overwrite: bool) -> None:
    """Raises StorageError unless `place` is new, empty or, with overwrite, an earlier export."""
    check_name(place)
    # A killed export may have left no more than temporary directories.
    foreign = place.exists() and (
        not place.is_dir() or any(TEMP_MARK not in entry.name for entry in place.iterdir())
    )
    if not foreign:
        return
    if not (folder / MANIFEST).is_file():
        raise StorageError(
            f"{place} already exists and is no exported model",
            "a new directory",
            "Choose another output directory.",
        )
    if not overwrite:
        raise StorageError(f"{place} already exists", "a new directory", OVERWRITE)
