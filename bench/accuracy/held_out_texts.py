"""Texts to judge rounding on: neither calibration samples nor what `tools/train_mixture.py` learns.

`held_out/english.txt` holds chapters of Jane Austen's novels and pages of SQLite's documentation
(both in the public domain) and of the Rust project's books (MIT, (c) The Rust Project Developers),
which `tools/make_held_out.py` chose; `held_out/chinese.txt` was written for deepmnn. The code is
that of modules of Python's own library.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

MODULES = ("statistics", "fractions", "textwrap", "calendar", "zipfile", "gzip", "sched", "bisect")
"""`tools/corpus.py` holds them out."""

_FOLDER = Path(__file__).parent / "held_out"


def held_out_texts(model: Path | None = None) -> dict[str, str]:
    """ "english", "python" and "chinese"; and "own", what a model of ours kept out of its training.

    model: a checkpoint. Where HELDOUT.txt lies beside its directory, as `tools/train_mixture.py`
    leaves it, its text is "own".
    """
    modules = map(importlib.import_module, MODULES)
    texts = {
        "english": (_FOLDER / "english.txt").read_text(encoding="utf-8"),
        "python": "\n\n".join(map(inspect.getsource, modules)),
        "chinese": (_FOLDER / "chinese.txt").read_text(encoding="utf-8"),
    }
    own = model.resolve().parent / "HELDOUT.txt" if model is not None else None
    if own is not None and own.is_file():
        texts["own"] = own.read_text(encoding="utf-8")
    return texts
