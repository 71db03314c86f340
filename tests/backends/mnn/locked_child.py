"""Converts, exports and runs a model in a process that may open no socket and start no process.

python locked_child.py work DIRECTORY
python locked_child.py socket | process | native-socket | native-process      to try the locks
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
from pathlib import Path

from lockdown import lock_down

sys.path.insert(0, str(Path(__file__).parents[2]))

NOT_HERE = 77
"""Exit status where the kernel has no such locks."""

FORBIDDEN = (
    *("socket.__new__", "socket.connect", "socket.bind", "socket.sendto"),
    *("socket.getaddrinfo", "socket.gethostbyname", "subprocess.Popen"),
    *("os.system", "os.posix_spawn", "os.fork", "os.forkpty", "os.exec"),
)


def refuse(event: str, _: object) -> None:
    """An audit hook: Python's own sockets and processes."""
    if event in FORBIDDEN:
        raise RuntimeError(f"forbidden: {event}")


def work(directory: Path) -> None:
    import deepmnn
    from byte_tokenizer import write_tokenizer
    from deepmnn.exporters.mnn.export import export
    from tiny_artifact import write_config

    write_config(directory / "source", tokenizer=False)
    write_tokenizer(directory / "source", chat_template=None)  # its process is the one exception
    deepmnn.convert(directory / "source", directory / "model", quant="w8", random_weights=True)
    export(directory / "model", directory / "mnn")
    model = deepmnn.load(directory / "mnn", threads=2)
    answer = model.generate("Hello", deepmnn.SamplingParams(max_tokens=5, ignore_eos=True))
    model.logits(answer.ids)
    assert len(answer.ids) == 5


LOCKED = lock_down()
if sys.argv[1].startswith("native") and not LOCKED:
    sys.exit(NOT_HERE)
if sys.argv[1] == "native-socket":
    ctypes.CDLL(None).socket(2, 1, 0)
elif sys.argv[1] == "native-process":
    ctypes.CDLL(None).system(b"true")
sys.addaudithook(refuse)
if sys.argv[1] == "socket":
    socket.socket()
elif sys.argv[1] == "process":
    subprocess.run(["true"])
elif sys.argv[1] == "system":
    os.system("true")
elif sys.argv[1] == "work":
    work(Path(sys.argv[2]))
    print("done")
