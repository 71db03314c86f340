"""A prompt that cannot fit is refused before it takes memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deepmnn import LLM, SamplingParams
from deepmnn.errors import ContextLengthError
from tiny_llm import CHAT


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory as Linux does")
def test_three_megabytes_are_refused_untokenised(artifact: Path) -> None:
    child = Path(__file__).with_name("long_prompt_child.py")
    done = subprocess.run(
        [sys.executable, child, artifact], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split()[:2] for line in done.stdout.splitlines()]
    names = ["text", "list", "question", "parts", "system", "answer", "ids", "range"]
    assert lines == [[name, "refused"] for name in names]
    assert "the prompt has at least 2,999,999 tokens; expected fewer than 192" in done.stdout


@pytest.mark.parametrize("length", [150, 185, 188, 191, 192, 195, 400])
def test_what_fits_is_never_refused(model: LLM, length: int) -> None:
    """One token for each byte, and one in front."""
    params = SamplingParams(max_tokens=1)
    for text in ("x" * (length - 1), "é" * ((length - 1) // 2) + "x" * ((length - 1) % 2)):
        if length < 192:
            assert model.generate(text, params).prompt_tokens == length
        else:
            with pytest.raises(ContextLengthError, match="tokens"):
                model.generate(text, params)


def test_what_a_template_leaves_out_counts_for_nothing(model: LLM) -> None:
    """R1's drops the reasoning of earlier turns."""
    thought = {"role": "assistant", "content": "<think>" + "hm " * 100_000 + "</think>4"}
    asked = [*CHAT, thought, {"role": "user", "content": "And 3 + 3?"}]
    assert model.generate(asked, SamplingParams(max_tokens=1)).prompt_tokens < 100
