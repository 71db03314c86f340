"""A pytest plugin: tests use the deepmnn._core that was built in the folder $DEEPMNN_CORE."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path

import deepmnn

NAME = "deepmnn._core"


def load(folder: Path) -> None:
    """Puts the extension module in `folder` in the place of the installed one."""
    path = next(iter(sorted(folder.glob("_core*.so"))), None)
    if path is None:
        raise FileNotFoundError(f"no _core*.so in {folder}")
    loader = importlib.machinery.ExtensionFileLoader(NAME, str(path))
    spec = importlib.util.spec_from_file_location(NAME, path, loader=loader)
    assert spec is not None
    sys.modules[NAME] = importlib.util.module_from_spec(spec)
    loader.exec_module(sys.modules[NAME])
    deepmnn._core = sys.modules[NAME]  # type: ignore[attr-defined]


load(Path(os.environ["DEEPMNN_CORE"]).resolve())
