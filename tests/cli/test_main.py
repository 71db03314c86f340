"""`python -m deepmnn` is the command."""

import subprocess
import sys
from pathlib import Path

import pytest

from deepmnn import __version__


def test_module_is_the_command() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "deepmnn", "--version"], capture_output=True, text=True, check=True
    )
    assert run.stdout == f"deepmnn {__version__}\n"


def test_ctrl_c_during_imports_is_quiet() -> None:
    code = (
        "import sys, deepmnn.__main__ as command\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'deepmnn.cli': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "command.main()\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (130, "")


def test_a_bug_does_not_command_the_terminal(tmp_path: Path) -> None:
    code = (
        "import deepmnn.cli as cli, deepmnn.artifact.reader as reader\n"
        "def broken(*_, **__): raise ValueError('\\x1b[2J')\n"
        "reader.Artifact.open = broken\n"
        "cli.main()\n"
    )
    (tmp_path / "deepmnn.json").write_text("{}")
    run = subprocess.run(
        [sys.executable, "-c", code, "info", str(tmp_path)], capture_output=True, text=True
    )
    assert run.returncode == 1
    assert "ValueError: ␛[2J" in run.stderr


@pytest.mark.parametrize("module", ["prompt_toolkit", "numpy", "tokenizers", "jinja2"])
def test_what_verbs_need_is_imported_by_them(module: str) -> None:
    code = f"import sys, deepmnn.cli; sys.exit({module!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
