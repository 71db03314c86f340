"""Writes the Android Studio project that runs an exported model folder."""

from __future__ import annotations

import re
from pathlib import Path

from deepmnn.artifact.directory import DirectoryWriter
from deepmnn.artifact.target import Target
from deepmnn.errors import RequestError

FORMAT = "deepmnn-android"
FORMAT_VERSION = 1
TEMPLATE = Path(__file__).parent / "template"
_FILLED = ("README.md", "app/src/main/res/values/model.xml")


def project_target(path: Path, overwrite: bool = False) -> Target:
    """Where a project goes. With overwrite it may replace one that nobody has worked on."""
    return Target(path, FORMAT, overwrite)


def write_project(
    target: Path, model_folder: str, context_length: int, overwrite: bool = False
) -> None:
    """Writes an Android Studio project into the directory `target`.

    The model itself stays out of it: gigabytes go to the phone with adb, not into an app.
    deepmnn.json lists the files with their checksums, so that a later export can tell a project
    as it was written from one that has been worked on.

    Args:
        target: a directory that does not exist yet, or is empty.
        model_folder: name of the model folder on the phone; see `phone_name`.
        context_length: tokens that a chat may have, prompt and answer together.
        overwrite: replaces a project that is as it was written.

    Raises RequestError for a name that adb or the phone would not take, StorageError when the
    target is taken or cannot be written.
    """
    if not re.fullmatch(r"\w[\w.-]*", model_folder, re.ASCII):
        raise RequestError(
            f"the model folder {model_folder!r}", "letters, digits, '.', '_' and '-'", "Rename it."
        )
    if context_length < 1:
        raise RequestError(f"a context of {context_length} tokens", "1 or more")
    fields = {b"@MODEL_FOLDER@": model_folder, b"@CONTEXT_TOKENS@": str(context_length)}
    with DirectoryWriter(project_target(target, overwrite)) as writer:
        for path in sorted(TEMPLATE.rglob("*")):
            if path.is_file():
                name, data = path.relative_to(TEMPLATE).as_posix(), path.read_bytes()
                if name in _FILLED:
                    for mark, value in fields.items():
                        data = data.replace(mark, value.encode())
                writer.add_file(name, data)
        writer.commit({"format": FORMAT, "format_version": FORMAT_VERSION})
