"""The tiny model of tiny_artifact.py, loaded on any backend, and what to ask it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deepmnn
from deepmnn import LLM

IDS = [5, 17, 200, 33, 33, 9, 150, 71, 8, 262, 0, 41]
CHAT = [{"role": "user", "content": "What is 2 + 2?"}]


def load(artifact: Path, backend: str, **options: Any) -> LLM:
    """For MNN the model is exported beside the artifact, and runs on one thread: its threads spin
    for one another, for half a minute where others need the processors too.
    """
    if backend == "mnn":
        options["threads"] = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(artifact.parent / "cache"))
        return deepmnn.load(artifact, backend, **options)


def close(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, atol=2e-4 * float(np.abs(b).max()))
