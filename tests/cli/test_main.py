"""`python -m deepmnn` is the command."""

import subprocess
import sys

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
