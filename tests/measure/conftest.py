from __future__ import annotations

from pathlib import Path

import pytest

from deepmnn import LLM
from tiny_artifact import tiny_artifact
from tiny_llm import load


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("measured"))


@pytest.fixture(scope="session")
def model(artifact: Path) -> LLM:
    return load(artifact, "cpu", threads=1)
