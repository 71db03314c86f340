"""README's commands, typed word for word; tiny-r1 stands in for the model that they download."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deepmnn.conversion.bundled import CHECKPOINT
from fake_hub import fake_hub, hub_environment

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
REPO = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
INSTALLING = ("make ", "pip install")
"""What has been done where this test runs."""


def shell_lines() -> list[str]:
    text = re.sub(r"```.*?```", "", README.split("## How it works")[0], flags=re.S)
    blocks = re.findall(r"(?:^    \S.*\n)+", text, re.M)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if not line.startswith(INSTALLING)]


def inline_commands() -> list[str]:
    """Whole commands in the text, such as `deepmnn cache list`."""
    found = re.findall(r"`(deepmnn [a-z]+ [^`]+)`", README)
    return [line for line in found if "VERB" not in line]


def test_readme(tmp_path: Path) -> None:
    (python,) = re.findall(r"```python\n(.*?)```", README, re.S)
    lines = [*shell_lines(), *inline_commands()]
    assert lines[0] == "source .venv/bin/activate"
    assert sum(REPO in line for line in lines) >= 2
    assert len(lines) >= 12
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "readme.py").write_text(python)
    with fake_hub(CHECKPOINT, REPO) as hub:
        environment = {
            **os.environ,
            **hub_environment(hub.url, tmp_path / "hf"),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        }
        script = "\n".join(["set -e", *lines, "python readme.py"])
        done = subprocess.run(
            ["bash", "-x", "-c", script],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "**632**" in done.stdout, "what is 347 + 285?"
    assert f"converting {REPO} to w8" in done.stderr
    assert (tmp_path / "r1-phone" / "project").is_dir()
