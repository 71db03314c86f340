from __future__ import annotations

from pathlib import Path

import pytest

from deepmnn import LLM
from tiny_artifact import tiny_artifact
from tiny_llm import load


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("api"))


@pytest.fixture(scope="module", params=["reference", "cpu", "mnn"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(artifact: Path, backend: str) -> LLM:
    return load(artifact, backend, threads=2, max_batch_tokens=8)
