"""Runs code in a child with little memory and little time: what exceeds either fails."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

READS = """
import sys
from pathlib import Path
from deepmnn.errors import DeepmnnError
{imports}
try:
    {call}
    print("read")
except DeepmnnError as error:
    print(type(error).__name__, error)
"""


def outcome(imports: str, call: str, path: Path, spare_nbytes: int = 1 << 28) -> str:
    """What `call` says of sys.argv[1]: "read", or the error; at most spare_nbytes above an idle
    interpreter's address space.
    """
    idle = 1 << 29  # numpy and its threads' stacks

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (idle + spare_nbytes,) * 2)

    run = subprocess.run(
        [sys.executable, "-c", READS.format(imports=imports, call=call), str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=limit,
        env={"OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout.strip()
