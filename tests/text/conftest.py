from __future__ import annotations

from pathlib import Path

import pytest

from byte_tokenizer import write_tokenizer
from deepmnn.text.tokenizer import Tokenizer


@pytest.fixture
def byte_tokenizer(tmp_path: Path) -> Tokenizer:
    """One token per byte, DeepSeek-R1's special tokens and chat template."""
    write_tokenizer(tmp_path)
    return Tokenizer(tmp_path)
