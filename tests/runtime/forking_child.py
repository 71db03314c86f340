"""Forks after a step; parent and child must both go on, with the same numbers, and end.

    python forking_child.py DIRECTORY

In a process of its own: a child that waits for its parent's threads would never end.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np

from deepmnn.backends.cpu.backend import CpuBackend
from parity import run_schedule

PROMPT = [token % 41 for token in range(300)]


def main(directory: Path) -> None:
    backend = CpuBackend(directory, threads=4)
    want = run_schedule(backend, [PROMPT], [(300,)], blocks=100)[0]
    time.sleep(0.1)  # the helpers fall asleep
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            got = run_schedule(backend, [PROMPT], [(300,)], blocks=100)[0]
            equal = np.array_equal(got, want)
            del backend
            CpuBackend(directory, threads=2)  # new ones can be made
            os._exit(0 if equal else 1)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    np.testing.assert_array_equal(run_schedule(backend, [PROMPT], [(300,)], blocks=100)[0], want)
    assert statuses == [0, 0, 0], statuses


if __name__ == "__main__":
    main(Path(sys.argv[1]))
