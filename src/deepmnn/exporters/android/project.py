"""Writes the Android Studio project that runs an exported model folder."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from deepmnn.artifact.directory import storage_errors
from deepmnn.errors import RequestError, StorageError

TEMPLATE = Path(__file__).parent / "template"
_FILLED = ("README.md", "app/src/main/res/values/model.xml")


def write_project(target: Path, model_folder: str, context_length: int) -> None:
    """Writes an Android Studio project into the new directory `target`.

    The model itself stays out of it: gigabytes go to the phone with adb, not into an app.

    Args:
        target: a directory that does not exist yet, or is empty.
        model_folder: name of the model folder on the phone; see `phone_name`.
        context_length: tokens that a chat may have, prompt and answer together.

    Raises RequestError for a name that adb or the phone would not take, StorageError when the
    target is not empty or cannot be written.
    """
    if not re.fullmatch(r"\w[\w.-]*", model_folder, re.ASCII):
        raise RequestError(
            f"the model folder {model_folder!r}", "letters, digits, '.', '_' and '-'", "Rename it."
        )
    if context_length < 1:
        raise RequestError(f"a context of {context_length} tokens", "1 or more")
    with storage_errors(target):
        if target.is_file() or (target.is_dir() and any(target.iterdir())):
            raise StorageError(
                f"{target} already exists", "a new directory", "Choose another output directory."
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary:
            project = Path(temporary) / "project"
            shutil.copytree(TEMPLATE, project, copy_function=shutil.copyfile)
            for name in _FILLED:
                text = (project / name).read_text(encoding="utf-8")
                text = text.replace("@MODEL_FOLDER@", model_folder)
                text = text.replace("@CONTEXT_TOKENS@", str(context_length))
                (project / name).write_text(text, encoding="utf-8")
            project.rename(target)
