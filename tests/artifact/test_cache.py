"""The user's cache: written once, bounded, and nothing goes while it is used."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from deepmnn.artifact import cache
from deepmnn.artifact.cache import Entry, Hold, entries, keep, make_room, remove
from deepmnn.errors import ArtifactError, RequestError, StorageError

CHILD = """
import sys
from pathlib import Path
from deepmnn.artifact import cache

def check(path):
    assert (path / "data").read_bytes() == b"whole"

def write(target):
    print("writing", flush=True)
    sys.stdin.readline()
    target.mkdir()
    (target / "data").write_bytes(b"whole")

held = cache.keep("model", {"source": "child"}, check, write)
print("holding", flush=True)
sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv(cache.LIMIT, raising=False)
    return tmp_path / "xdg" / "deepmnn" / "models"


def put(name: str, nbytes: int = 1000, used: float | None = None) -> Hold:
    """An entry of that size; `used` is when, in seconds since the epoch."""

    def write(target: Path) -> None:
        make_room(nbytes)
        target.mkdir()
        (target / "data").write_bytes(bytes(nbytes))

    held = keep(name, {"source": f"source of {name}", "recipe": "w8"}, lambda path: path, write)
    if used is not None:
        os.utime(held.path.with_name(f"{name}.json"), (used, used))
    return held


def names() -> list[str]:
    return [entry.path.name for entry in entries()]


def named(name: str) -> Entry:
    return next(entry for entry in entries() if entry.path.name == name)


def test_it_is_written_once_for_this_user_alone(home: Path) -> None:
    first = put("one")
    written = (first.path / "data").stat().st_mtime_ns
    again = put("one")
    assert again.path == first.path == home / "one"
    assert (again.path / "data").stat().st_mtime_ns == written
    for path in (home, home.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert named("one").facts == {"source": "source of one", "recipe": "w8"}
    assert named("one").nbytes == 1000


def test_a_cache_that_others_may_write_to_is_closed(home: Path) -> None:
    home.mkdir(parents=True)
    home.chmod(0o777)
    put("one")
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("part", ["", "one"])
def test_what_another_user_put_there_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    put("one")
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    put("one")  # root could do anything anyway
    os.chown(home / part, 4243, 4243)
    with pytest.raises(StorageError, match=r"belongs to user 4243.*XDG_CACHE_HOME"):
        put("one")


def test_what_is_damaged_is_written_again_even_when_it_is_in_use(home: Path) -> None:
    def check(path: Path) -> None:
        if (path / "data").read_text() != "whole":
            raise ArtifactError("damaged")

    def write(target: Path) -> None:
        target.mkdir()
        (target / "data").write_text("whole")

    with keep("model", {}, check, write) as held, (held.path / "data").open() as opened:
        (held.path / "data").write_text("half")
        with keep("model", {}, check, write) as again:
            assert (again.path / "data").read_text() == "whole"
            assert opened.read() == "half", "who has it open keeps what it had"


def test_a_failure_leaves_nothing(home: Path) -> None:
    def write(target: Path) -> None:
        raise RequestError("no such recipe")

    with pytest.raises(RequestError, match="recipe"):
        keep("model", {}, lambda path: path, write)
    assert list(home.iterdir()) == []


def test_the_longest_unused_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.LIMIT, "3500")
    for age, name in enumerate(("a", "b", "c")):
        put(name, used=1e9 + age).release()
    put("a").release()  # used again: now b is the oldest
    put("d").release()
    assert set(names()) == {"a", "c", "d"}
    put("large", 2500).release()
    assert set(names()) == {"d", "large"}


def test_what_is_in_use_stays_and_what_is_needed_is_written(
    monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setenv(cache.LIMIT, "0")
    held = put("used")
    needed = put("needed")
    assert set(names()) == {"used", "needed"}
    assert named("used").is_used
    assert not remove(named("used"))
    held.release()
    assert not named("used").is_used
    assert remove(named("used"))
    assert names() == ["needed"]
    assert {path.name for path in home.iterdir()} == {"needed", "needed.json"}
    needed.release()


def test_an_entry_of_the_cache_is_held_by_its_path_and_other_directories_are_not(
    tmp_path: Path,
) -> None:
    put("one").release()
    with cache.hold(cache.models_directory() / "one"):
        assert named("one").is_used
    assert not named("one").is_used
    with cache.hold(tmp_path):
        pass


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0),
        ("1000", 1000),
        ("50GB", 50 * 10**9),
        (" 1.5 tb ", 1_500_000_000_000),
        ("7K", 7000),
        ("20%", 200),
        ("12.5%", 125),
    ],
)
def test_limits(text: str, nbytes: int) -> None:
    assert cache.parse_limit(text, 1000) == nbytes


@pytest.mark.parametrize("text", ["x", "-1", "1e9", "50 GiB", "٣", "9" * 400, "10 %%", "GB", "nan"])
def test_no_limits(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match=f"{cache.LIMIT} is .* expected bytes such as 50GB"):
        cache.parse_limit(text, 1000)
    monkeypatch.setenv(cache.LIMIT, text)
    with pytest.raises(RequestError, match=cache.LIMIT):
        put("one")
    assert names() == []


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / ("n" * 300)):
        monkeypatch.setenv("XDG_CACHE_HOME", str(place))
        with pytest.raises(StorageError, match="Set XDG_CACHE_HOME"):
            put("one")
        assert entries() == []

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(StorageError, match="Set XDG_CACHE_HOME"):
        put("one")


def test_the_cache_is_in_the_home_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache.models_directory() == Path.home() / ".cache" / "deepmnn" / "models"


# ------------------------------------------------------------------------- several processes


class Child:
    """A process that writes "model" when it is told to, and then holds it."""

    def __init__(self) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, "-c", CHILD], text=True, **pipes)

    def read(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def tell(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self, number: int | None = None) -> None:
        if number is not None:
            self.process.send_signal(number)
        self.process.communicate(timeout=60)


def test_a_second_process_waits_and_then_uses_what_the_first_wrote(
    caplog: pytest.LogCaptureFixture,
) -> None:
    child, found = Child(), []
    assert child.read() == "writing"
    caplog.set_level("INFO", "deepmnn")
    thread = threading.Thread(target=lambda: found.append(put("model")))
    thread.start()
    deadline = time.monotonic() + 60
    while "waiting" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not found
    child.tell()
    thread.join(60)
    assert child.read() == "holding"
    assert (found[0].path / "data").read_bytes() == b"whole", "it is the other one's"
    found[0].release()
    assert named("model").is_used
    assert not remove(named("model")), "the other process still has it"
    child.tell()
    child.end()
    assert remove(named("model"))


def test_who_waits_can_be_interrupted() -> None:
    first = Child()
    assert first.read() == "writing"
    second = Child()
    time.sleep(0.5)  # either it waits by then, or the signal comes earlier still
    second.process.send_signal(signal.SIGINT)
    second.process.communicate(timeout=60)
    assert second.process.returncode != 0
    first.tell()
    assert first.read() == "holding"
    first.tell()
    first.end()


def test_a_killed_writer_leaves_no_lock_and_no_half_model(home: Path) -> None:
    child = Child()
    assert child.read() == "writing"
    child.end(signal.SIGKILL)
    assert entries() == []
    assert list(home.iterdir()) == [], "looking cleans up"
    with put("model") as held:
        assert (held.path / "data").stat().st_size == 1000


def test_the_hold_of_a_killed_process_is_gone() -> None:
    child = Child()
    child.read()
    child.tell()
    assert child.read() == "holding"
    assert named("model").is_used
    child.end(signal.SIGKILL)
    assert not named("model").is_used
    assert re.match("child", named("model").facts["source"])
