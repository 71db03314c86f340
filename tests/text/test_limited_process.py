from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from deepmnn.text import limited_process
from deepmnn.text.limited_process import LimitedProcess, LimitError

MODULE = """
import os, signal, sys, time

def answer(request):
    match request:
        case "pid": return os.getpid()
        case "exit": os._exit(7)
        case "segv": os.kill(os.getpid(), signal.SIGSEGV)
        case "memory": return len(bytearray(1 << 40))
        case "loop":
            while True: pass
        case "sleep": time.sleep(1000)
        case "long": return "x" * (65 << 20)
        case "write": open(sys.argv[0] + "written", "w").write("x")
        case "not json": return object()
    return request
"""


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LimitedProcess:
    (tmp_path / "answering.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return LimitedProcess("answering", "answer")


@pytest.mark.parametrize("value", [None, 1, "ünï\ud800", [1.5, {"a": [True]}], "x" * (4 << 20)])
def test_values_come_back_as_they_were_sent(process: LimitedProcess, value: Any) -> None:
    assert process.call(value) == value


def test_calls_share_one_process(process: LimitedProcess) -> None:
    pid = process.call("pid")
    assert process.call("pid") == pid != os.getpid()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ("exit", "status 7"),
        ("segv", "SIGSEGV"),
        ("memory", "512 MB"),
        ("loop", "5 seconds of processor time"),
        ("long", "64 MB of text"),
        ("not json", "status 1"),
    ],
)
def test_a_broken_limit_is_an_error_and_the_next_call_is_served(
    process: LimitedProcess, request_: str, message: str
) -> None:
    first = process.call("pid")
    with pytest.raises(LimitError, match=message):
        process.call(request_)
    assert process.call("pid") != first


def test_a_process_that_sleeps_is_ended(
    process: LimitedProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limited_process, "_WALL_SECONDS", 0.3)
    with pytest.raises(LimitError, match="seconds"):
        process.call("sleep")


def test_a_module_that_cannot_be_imported_is_an_error() -> None:
    with pytest.raises(LimitError, match="status 1"):
        LimitedProcess("no_such_module", "answer").call(1)


@pytest.mark.parametrize("value", [object(), {1, 2}, 10**5000], ids=["object", "set", "long"])
def test_what_json_cannot_say_is_refused_before_it_is_sent(
    process: LimitedProcess, value: Any
) -> None:
    with pytest.raises((TypeError, ValueError)):
        process.call(value)
    assert process.call(1) == 1


def test_threads_get_their_own_answers(process: LimitedProcess) -> None:
    wrong: list[int] = []

    def ask(thread: int) -> None:
        wrong.extend(i for i in range(50) if process.call([thread, i]) != [thread, i])

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_interrupted_call_leaves_no_answer_for_the_next(
    process: LimitedProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    process.call(0)
    with monkeypatch.context() as patched:
        patched.setattr(limited_process, "_read", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            process.call(1)
    assert process.call(2) == 2


def _interrupted(*_: Any) -> bytes:
    raise KeyboardInterrupt


def test_the_process_ends_with_its_owner(process: LimitedProcess) -> None:
    local = LimitedProcess("answering", "answer")
    pid = local.call("pid")
    os.kill(pid, 0)
    del local
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


FORK = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from deepmnn.text.limited_process import LimitedProcess
process = LimitedProcess("answering", "answer")
parent = process.call("pid")
child = os.fork()
if child == 0:
    own = process.call("pid")
    sys.exit(0 if own != parent and process.call("pid") == own else 1)  # ends as Python ends
status = os.waitpid(child, 0)[1]
print(json.dumps([status, process.call("pid") == parent]))
"""


def test_a_forked_child_has_a_process_of_its_own(process: LimitedProcess, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout) == [0, True]
    assert done.stderr == ""


ORPHAN = """
import os, sys
sys.path.insert(0, sys.argv[1])
from deepmnn.text.limited_process import LimitedProcess
process = LimitedProcess("answering", "answer")
print(process.call("pid"), flush=True)
os.kill(os.getpid(), 9)
"""


def test_the_process_ends_when_its_owner_is_killed(process: LimitedProcess, tmp_path: Path) -> None:
    command = [sys.executable, "-c", ORPHAN, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert _ends(int(done.stdout))


def _ends(pid: int) -> bool:
    for _ in range(600):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":  # nobody waits for an orphan in some containers
            return True
        threading.Event().wait(0.05)
    return False
