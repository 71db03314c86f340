from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deepmnn.backends.mnn import wheel
from deepmnn.errors import GraphError, MissingDependencyError, RequestError, StorageError

SOURCES = Path(wheel.__file__).parents[2]
FLOATS = [float(i) for i in range(777)]
NET: dict[str, Any] = {
    "sourceType": "ONNX",
    "tensorName": ["x", "y", "z"],
    "outputName": ["y"],
    "oplists": [
        {
            "type": "Input",
            "name": "x",
            "outputIndexes": [0],
            "main_type": "Input",
            "main": {"dims": [1, 5], "dtype": "DT_FLOAT", "dformat": "NCHW"},
        },
        {
            "type": "UnaryOp",
            "name": "y",
            "inputIndexes": [0],
            "outputIndexes": [1],
            "main_type": "UnaryOp",
            "main": {"opType": "ABS", "T": "DT_FLOAT"},
        },
        {
            "type": "Const",
            "name": "z",
            "outputIndexes": [2],
            "main_type": "Blob",
            "main": {"dims": [777], "dataType": "DT_FLOAT", "float32s": FLOATS},
        },
    ],
}


def write(path: Path, content: object = NET) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def convert(source: Path, out: Path) -> None:
    wheel.convert_tool(["-f", "JSON", "--modelFile", str(source), "--MNNModel", str(out)])


def test_a_model_there_and_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out, back = tmp_path / "net.mnn", tmp_path / "back.json"
    convert(write(tmp_path / "net.json"), out)
    wheel.convert_tool(["-f", "MNN", "--modelFile", str(out), "--JsonFile", str(back)])
    found = json.loads(back.read_text())
    assert found["tensorName"] == NET["tensorName"]
    assert [op["type"] for op in found["oplists"]] == ["Input", "UnaryOp", "Const"]
    assert found["oplists"][1]["main"]["opType"] == "ABS"
    assert found["oplists"][2]["main"]["float32s"] == FLOATS
    assert capfd.readouterr() == ("", ""), "MNN does not talk in our name"


@pytest.mark.parametrize("text", ["", "{", json.dumps(NET)[:-20]])
def test_bad_json_is_named_in_the_converters_words(tmp_path: Path, text: str) -> None:
    out = tmp_path / "net.mnn"
    write(out, "an older file")
    with pytest.raises(GraphError, match=r"net\.mnn: .*Json to MNN failed"):
        convert(write(tmp_path / "net.json", text), out)
    assert not out.exists()


def test_a_missing_input(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="Does Not Exist"):
        convert(tmp_path / "none.json", tmp_path / "net.mnn")


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """The converter ignores every failed write and calls the stump a success."""
    source, out = write(tmp_path / "net.json"), tmp_path / "net.mnn"
    convert(source, out)
    assert out.stat().st_size > 4 * len(FLOATS)
    code = f"""
import resource, signal
from deepmnn.backends.mnn.wheel import convert_tool, runtime
from deepmnn.errors import StorageError
runtime()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for size in range(512, {out.stat().st_size}, 300):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        convert_tool(["-f", "JSON", "--modelFile", {str(source)!r}, "--MNNModel", {str(out)!r}])
    except StorageError:
        continue
    raise SystemExit(f"{{size}} bytes passed for a model")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert not out.exists()


def test_no_place_to_write(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="whole"):
        convert(write(tmp_path / "net.json"), tmp_path / "none" / "net.mnn")


def test_impossible_arguments(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no output"):
        wheel.convert_tool(["-f", "JSON"])
    with pytest.raises(RequestError, match="UTF-8"):
        convert(Path("\udc80.json"), tmp_path / "net.mnn")


@pytest.mark.parametrize("version", ["3.6.0", "3.6.2", "4.0.0", "3.6.1.post1"])
def test_another_version(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(wheel, "version", lambda name: version if name == "mnn" else "")
    for call in (wheel.runtime, lambda: wheel.convert_tool(["--MNNModel", "x"])):
        with pytest.raises(MissingDependencyError, match=rf"mnn {version} .*3\.6\.1.*MNN==3\.6\.1"):
            call()


def test_no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("_mnncengine", "_tools"):
        monkeypatch.setitem(sys.modules, module, None)
    for call in (wheel.runtime, lambda: wheel.convert_tool(["--MNNModel", "x"])):
        with pytest.raises(MissingDependencyError, match=r"cannot be imported.*MNN==3\.6\.1"):
            call()

    def nothing(name: str) -> str:
        raise wheel.PackageNotFoundError(name)

    monkeypatch.setattr(wheel, "version", nothing)
    with pytest.raises(MissingDependencyError, match=r"not installed.*MNN==3\.6\.1"):
        wheel.runtime()


def test_the_import_is_silent() -> None:
    code = "from deepmnn.backends.mnn import wheel; wheel.runtime(); wheel._load('_tools')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_output_is_caught_and_given_back(capfd: pytest.CaptureFixture[str]) -> None:
    print("before")
    try:
        with wheel.captured() as printed:
            os.write(1, b"inside \xff")
            os.write(2, b" too")
            raise ZeroDivisionError
    except ZeroDivisionError:
        print("after")
    assert printed() == "inside \ufffd too"
    assert capfd.readouterr() == ("before\nafter\n", "")


def test_threads_catch_their_own(capfd: pytest.CaptureFixture[str]) -> None:
    mixed = []

    def work(name: bytes) -> None:
        for _ in range(50):
            with wheel.captured() as printed:
                os.write(1, name)
                time.sleep(0.0005)
                os.write(2, name)
            mixed.append(printed() != (name * 2).decode())

    threads = [threading.Thread(target=work, args=(name,)) for name in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(1, b"here")
    assert capfd.readouterr() == ("here", "")
    assert mixed == [False] * 150


@pytest.mark.parametrize("closed", ["1", "2", "1 2", "0 1 2"])
def test_capturing_without_a_stdout(closed: str, tmp_path: Path) -> None:
    code = f"""
import os
from deepmnn.backends.mnn.wheel import captured
with captured() as printed:
    os.write(1, b"a")
    os.write(2, b"b")
open_now = [n for n in (0, 1, 2) if os.path.exists(f"/proc/self/fd/{{n}}")]
open({str(tmp_path / "found")!r}, "w").write(f"{{printed()}} {{open_now}}")
"""
    close = " ".join(f"{n}>&-" for n in closed.split())
    subprocess.run(["sh", "-c", f'exec "$@" {close}', "sh", sys.executable, "-c", code], check=True)
    still_open = [n for n in (0, 1, 2) if str(n) not in closed.split()]
    assert (tmp_path / "found").read_text() == f"ab {still_open}"


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Call) and re.search("import|load", ast.unparse(node.func)):
            yield from (str(a.value) for a in node.args if isinstance(a, ast.Constant))


def test_nothing_else_imports_mnn() -> None:
    """MNN.tools phones home; the extension modules are wheel.py's alone."""
    modules = {"MNN", "_mnncengine", "_tools"}
    users = {
        path.relative_to(SOURCES).as_posix()
        for path in SOURCES.rglob("*.py")
        if modules & {name.split(".")[0] for name in imported(path)}
    }
    assert "MNN" not in {n.split(".")[0] for n in imported(Path(wheel.__file__)) if " " not in n}
    assert users == {"backends/mnn/wheel.py"}
