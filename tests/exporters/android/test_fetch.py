"""FetchMnn.java against a release archive and headers made here, over file: addresses."""

from __future__ import annotations

import hashlib
import re
import subprocess
import zipfile
from pathlib import Path

import pytest

ABI = "mnn_3.6.1_android/arm64-v8a"
LIBRARIES = {"libMNN.so": b"\x7fELF mnn" * 9000, "libllm.so": b"\x7fELF llm"}
LLM, TENSOR = "engine/include/llm/llm.hpp", "include/MNN/expr/Tensor.hpp"


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A list as mnn.sha256, and what it names."""
    archive = tmp_path / "mnn.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in LIBRARIES.items():
            file.writestr(f"{ABI}/{name}", data)
            file.writestr(f"{ABI.replace('arm64-v8a', 'armeabi-v7a')}/{name}", b"32 bits")
        file.writestr(f"{ABI}/libc++_shared.so", b"the NDK's")
        file.writestr(f"{ABI}/libmnncore.so", b"unused")
        file.writestr(f"{ABI}/notes.txt", b"no library")
    for header in (LLM, TENSOR):
        path = tmp_path / header
        path.parent.mkdir(parents=True)
        path.write_text(f"// {header}")
    files = [archive, tmp_path / LLM, tmp_path / TENSOR]
    lines = [f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.as_uri()}" for f in files]
    (tmp_path / "list").write_text("\n".join(["# comment", *lines]) + "\n")
    return tmp_path


def fetch(project: Path, jdk: Path, release: Path) -> subprocess.CompletedProcess[str]:
    command = [jdk / "bin/java", "FetchMnn.java", release / "list", release / "mnn"]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=60)


def found(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_libraries_and_headers_are_where_cmake_looks(
    project: Path, jdk: Path, release: Path
) -> None:
    for _ in range(2):  # a second time it takes the place of the first
        done = fetch(project, jdk, release)
        assert done.returncode == 0, done.stderr
        (release / "mnn/lib/arm64-v8a/old.so").touch()
    (release / "mnn/lib/arm64-v8a/old.so").unlink()
    wanted = {f"lib/arm64-v8a/{name}": data for name, data in LIBRARIES.items()}
    wanted["include/llm/llm.hpp"] = f"// {LLM}".encode()
    wanted["include/MNN/expr/Tensor.hpp"] = f"// {TENSOR}".encode()
    assert found(release / "mnn") == wanted
    assert not list(release.glob("*.part"))


@pytest.mark.parametrize("damage", ["changed", "missing", "cut"])
def test_what_is_not_as_listed_is_refused(
    project: Path, jdk: Path, release: Path, damage: str
) -> None:
    header = release / TENSOR
    if damage == "missing":
        header.unlink()
    else:
        header.write_text("// another" if damage == "changed" else header.read_text()[:-1])
    done = fetch(project, jdk, release)
    assert done.returncode == 1
    reason = "cannot be fetched .* Check the network" if damage == "missing" else "has SHA-256"
    assert re.search(f"Tensor.hpp {reason}", done.stderr), done.stderr
    assert "Exception in thread" not in done.stderr
    assert not (release / "mnn").exists()
    assert not list(release.glob("*.part"))
