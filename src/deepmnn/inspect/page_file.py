"""A page on disk: written whole or not at all, and never over what is no page of deepmnn."""

from __future__ import annotations

import os
from pathlib import Path

from deepmnn.artifact.directory import storage_errors
from deepmnn.artifact.renames import locked, rename_new
from deepmnn.artifact.target import OVERWRITE, check_name, real_path
from deepmnn.artifact.workspace import temp_name
from deepmnn.conversion.report.pieces import GENERATOR
from deepmnn.errors import StorageError

_HEAD = 1024
"""Bytes of a page that say what made it."""


def check_page(path: Path, overwrite: bool) -> None:
    """Raises StorageError unless a page may be written there. Leaves the disk as it is."""
    target = real_path(path)
    check_name(target)
    if not os.path.lexists(target):
        return
    with storage_errors(target, "replaced"):
        ours = target.is_file() and GENERATOR.encode() in _head(target)
    if not ours:
        raise StorageError(
            f"{path} exists and is no page of deepmnn", "a new file", "Choose another name."
        )
    if not overwrite:
        raise StorageError(f"{path} exists", "a new file", OVERWRITE)


def write_page(path: Path, page: str, overwrite: bool) -> None:
    """Writes it, or raises StorageError and leaves what was there.

    page: as `pieces.document` makes one. overwrite: replaces an earlier page.
    """
    target = real_path(path)
    with storage_errors(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / temp_name(target.name)
        try:
            with temporary.open("x", encoding="utf-8", newline="\n") as file:
                file.write(page)
                file.flush()
                os.fsync(file.fileno())
            with locked(target.parent):
                check_page(path, overwrite)
                if overwrite:
                    temporary.replace(target)
                else:
                    rename_new(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)
