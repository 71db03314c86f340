"""What the tests of exported folders share."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deepmnn.artifact.manifest import MANIFEST, file_crc, manifest_crc

Json = dict[str, Any]


def tree(directory: Path) -> dict[str, bytes]:
    """Every file below, by its path."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def change_json(path: Path, **fields: Any) -> None:
    """Sets fields of a JSON file; None takes one out."""
    kept = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in kept.items() if value is not None}))


def reseal(manifest: Path, change: Callable[[Json], object] = lambda fields: None) -> None:
    """Recomputes sizes and checksums of all files, then changes the manifest, then its own."""
    fields = json.loads(manifest.read_text())
    for name, record in fields["files"].items():
        path = manifest.parent / name
        record |= {"nbytes": path.stat().st_size, "crc32": file_crc(path)}
    change(fields)
    fields["crc32"] = manifest_crc(fields)
    manifest.write_text(json.dumps(fields))


def reseal_folder(folder: Path, change: Callable[[Json], object] = lambda fields: None) -> None:
    """As `reseal`, of a folder."""
    reseal(folder / MANIFEST, change)


DISK_CALLS = ("fsync", "mkdir", "rename", "unlink", "rmdir")


def in_dying_child(body: Callable[[], object], calls: int) -> bool:
    """Runs body in a forked process that kills itself before its call number `calls` that changes
    the disk; whether it finished before.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            left = calls

            def counted(call: Callable[..., Any]) -> Callable[..., Any]:
                def wrapper(*args: Any, **kwargs: Any) -> Any:
                    nonlocal left
                    left -= 1
                    if left < 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return call(*args, **kwargs)

                return wrapper

            for name in DISK_CALLS:
                setattr(os, name, counted(getattr(os, name)))
            body()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL), "the child failed in another way"
    return code == 0
