"""Nothing of the user's is lost: what a writer may replace, and when two of them meet."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from artifact.test_artifact import DESCRIPTION, PACKED, SIZES, fill, reseal, write
from deepmnn.artifact import renames, target, workspace, written
from deepmnn.artifact.manifest import MANIFEST, TEMP_MARK, manifest_crc
from deepmnn.artifact.reader import Artifact
from deepmnn.artifact.shards import plan_shards
from deepmnn.artifact.workspace import LOCK, LONGEST_NAME, Workspace, temp_name
from deepmnn.artifact.writer import ArtifactWriter
from deepmnn.conversion.convert import convert
from deepmnn.conversion.kept import converted
from deepmnn.errors import ArtifactError, StorageError
from deepmnn.source.random import RandomSource
from exporters.folders import in_dying_child, tree
from tiny_models import tiny_checkpoint


@pytest.fixture(params=["exchange", "renames"])
def can_exchange(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A disk that swaps directories in one step, and one that does not."""
    if request.param == "renames":
        monkeypatch.setattr(target, "exchange", lambda a, b: False)
    return bool(request.param == "exchange")


def in_the_way(path: Path, what: str) -> None:
    """Overwriting is refused, names `what`, and changes nothing."""
    before = tree(path.parent)
    with pytest.raises(StorageError, match=what) as error:
        write(path, overwrite=True)
    assert error.value.hint
    assert tree(path.parent) == before


# ------------------------------------------------------------------ what may be replaced


def test_existing_targets(tmp_path: Path, can_exchange: bool) -> None:
    path = write(tmp_path / "m")
    inode = path.stat().st_ino
    with pytest.raises(StorageError, match="already exists"):
        write(path)
    assert path.stat().st_ino == inode
    write(path, overwrite=True)
    assert path.stat().st_ino != inode
    Artifact.open(path)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    for other in ("mine", "file"):
        with pytest.raises(StorageError, match="no converted model"):
            write(tmp_path / other, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "m", "mine"]


def a_file(path: Path) -> None:
    path.write_text("mine")


def a_directory(path: Path) -> None:
    path.mkdir()


def a_full_directory(path: Path) -> None:
    path.mkdir()
    (path / "config.json").write_text("mine")


def a_link(path: Path) -> None:
    path.symlink_to("config.json")


def a_broken_link(path: Path) -> None:
    path.symlink_to("nowhere")


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    "name", ["notes.txt", ".hidden", "ü \n", MANIFEST + ".bak", "config.json~"]
)
@pytest.mark.parametrize(
    "make", [a_file, a_directory, a_full_directory, a_link, a_broken_link, a_fifo]
)
def test_what_no_conversion_wrote_is_never_removed(
    tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    path = write(tmp_path / "m")
    make(path / name)
    in_the_way(path, "is in the way")
    assert os.path.lexists(path / name)


def test_changed_files_are_never_removed(tmp_path: Path) -> None:
    """Of the same length, of the same age, replaced by a link or a directory, a whole shard."""
    path = write(tmp_path / "m")
    for name in sorted(os.listdir(path)):
        file = path / name
        data, times = file.read_bytes(), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
        file.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
        os.utime(file, ns=times)
        in_the_way(path, name)
        (tmp_path / "elsewhere").write_bytes(data)
        if name != MANIFEST:
            file.write_bytes(data + b" ")
            in_the_way(path, name)
            file.unlink()
            file.symlink_to("../elsewhere")
            in_the_way(path, name)
            file.unlink()
            file.mkdir()
            in_the_way(path, name)
            file.rmdir()
        file.write_bytes(data)
    (path / "program.bin").unlink()  # somebody made room: that is all
    write(path, overwrite=True)
    assert (tmp_path / "elsewhere").exists()


def test_a_manifest_that_lists_the_users_files_gives_none_away(tmp_path: Path) -> None:
    """A model of a stranger, unpacked among the user's files."""
    path = write(tmp_path / "m")
    (path / "thesis.txt").write_text("x")
    record = {"nbytes": 1, "crc32": 1}
    (tmp_path / "precious").write_text("x")
    for name in ("thesis.txt", "../precious", str(tmp_path / "precious"), "a/../../precious"):
        reseal(path, lambda fields: fields["files"].update({name: record}))  # noqa: B023
        in_the_way(path, "thesis.txt|damaged")
        reseal_without(path, name)


def reseal_without(path: Path, name: str) -> None:
    fields = json.loads((path / MANIFEST).read_text())
    del fields["files"][name]
    fields["crc32"] = manifest_crc(fields)
    (path / MANIFEST).write_text(json.dumps(fields))


@pytest.mark.parametrize(
    "change",
    [
        {"files": None},
        {"files": []},
        {"files": {}, "shards": []},
        {"files": {"": {"nbytes": 1, "crc32": 1}}},
        {"shards": 3},
        {"shards": [3]},
        {"shards": [{"file": ["x"]}]},
        {"settings": []},
        {"format": "deepmnn-mnn"},
        {"format": ["deepmnn"]},
    ],
)
def test_a_manifest_that_tells_nothing_protects_all(
    tmp_path: Path, change: dict[str, object]
) -> None:
    path = write(tmp_path / "m")
    reseal(path, lambda fields: fields.update(change))
    in_the_way(path, "damaged|format")


def test_another_version_of_the_format_may_be_replaced(tmp_path: Path) -> None:
    path = write(tmp_path / "m")
    reseal(path, lambda fields: fields.update(format_version=2, deepmnn_version="0.0.1"))
    write(path, overwrite=True)
    Artifact.open(path)


def test_a_mount_point_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "volume").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "volume")
    with pytest.raises(StorageError, match=r"mount point.*inside it.*volume/model"):
        write(tmp_path / "volume")
    write(tmp_path / "volume" / "model")
    assert os.listdir(tmp_path) == ["volume"]


# ------------------------------------------------------------------ the source


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_checkpoint("llama", 0, tmp_path / "hf").path


def test_the_source_and_the_output_are_apart(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However either is spelled."""
    out = convert(checkpoint, tmp_path / "out").path
    inside = out / "deep" / "hf"
    shutil.copytree(checkpoint, inside)
    (tmp_path / "link").symlink_to(out)
    (tmp_path / "to_hf").symlink_to(inside)
    monkeypatch.chdir(inside)
    before = tree(tmp_path)
    sources = (inside, tmp_path / "to_hf", tmp_path / "link" / "deep" / "hf", Path(), Path("../hf"))
    for source in sources:
        for name in ("out", "link", "out/../out", "link/."):
            with pytest.raises(StorageError, match=r"lies in .*out"):
                convert(source, tmp_path / name, overwrite=True)
    for source, target_path in (
        (checkpoint, checkpoint),
        (inside, Path("../hf")),
        (tmp_path / "to_hf", inside),
    ):
        for overwrite in (False, True):
            with pytest.raises(StorageError, match="the source"):
                convert(source, target_path, overwrite=overwrite)
    assert tree(tmp_path) == before


def test_the_output_may_lie_in_the_source(checkpoint: Path) -> None:
    before = tree(checkpoint)
    for overwrite in (False, True):
        Artifact.open(convert(checkpoint, checkpoint / "new", overwrite=overwrite).path)
    shutil.rmtree(checkpoint / "new")
    assert tree(checkpoint) == before


def test_the_cache_may_lie_in_a_source(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint in a home directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(checkpoint / ".cache"))
    with converted(checkpoint) as held:
        assert held.path.is_relative_to(checkpoint)
        Artifact.open(held.path)


def test_config_json_is_a_source_too(tmp_path: Path, checkpoint: Path) -> None:
    out = convert(checkpoint, tmp_path / "out").path
    before = tree(tmp_path)
    with pytest.raises(StorageError, match="lies in"):
        convert(checkpoint, out, config=out / "config.json", overwrite=True)
    with pytest.raises(StorageError, match="lies in"):
        convert(out / "config.json", out, random_weights=True, overwrite=True)
    assert tree(tmp_path) == before
    convert(checkpoint / "config.json", checkpoint / "random", random_weights=True)


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_source_made_of_links_into_the_output(
    tmp_path: Path, checkpoint: Path, link: Callable[[Path, Path], None]
) -> None:
    out = convert(checkpoint, tmp_path / "out").path
    (checkpoint / "config.json").unlink()
    link(out / "config.json", checkpoint / "config.json")
    before = tree(tmp_path)
    with pytest.raises(StorageError, match="the source"):
        convert(checkpoint, out, overwrite=True)
    assert tree(tmp_path) == before
    convert(checkpoint, tmp_path / "other")


def test_a_file_of_weights_may_lie_beside_the_output(tmp_path: Path) -> None:
    source = RandomSource({"a": (2, 2)}, config_file=tmp_path / "config.json")
    assert source.paths == (tmp_path / "config.json",)
    target.Target(tmp_path / "out", "deepmnn", sources=source.paths).check()


# ------------------------------------------------------------------ names


@pytest.mark.parametrize(
    "name",
    [
        f"y{TEMP_MARK}1",
        ".m.deepmnn-tmp-0123abcd",
        f"{TEMP_MARK}/m",
        "n" * (LONGEST_NAME + 1),
        "ü" * (LONGEST_NAME // 2 + 1),
        "n" * 300,
        "a\0b",
        "x" * 200 + "/" + "y" * 300,
    ],
)
def test_names_that_would_not_load_or_not_fit(tmp_path: Path, name: str) -> None:
    with pytest.raises(StorageError):
        write(tmp_path / name)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["n" * LONGEST_NAME, "ü" * (LONGEST_NAME // 2), "a\udcffb", "-", "*"]
)
def test_names_that_fit(tmp_path: Path, name: str) -> None:
    Artifact.open(write(tmp_path / name))
    write(tmp_path / name, overwrite=True)
    assert os.listdir(tmp_path) == [name]


def test_a_link_to_a_directory_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for overwrite in (False, True):
        write(tmp_path / "link", overwrite=overwrite)
        assert (tmp_path / "link").is_symlink()
        Artifact.open(tmp_path / "real")
        assert sorted(os.listdir(tmp_path)) == ["link", "real"]


# ------------------------------------------------------------------ meanwhile


def test_a_model_that_somebody_finished_meanwhile_stays(tmp_path: Path) -> None:
    with ArtifactWriter(tmp_path / "m") as slow:
        fill(slow)
        inode = write(tmp_path / "m").stat().st_ino
        (tmp_path / "m" / "KEEP.txt").write_text("mine")
        with pytest.raises(StorageError, match="already exists"):
            slow.commit(DESCRIPTION)
    assert (tmp_path / "m").stat().st_ino == inode
    assert (tmp_path / "m" / "KEEP.txt").read_text() == "mine"
    assert os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize("make", [a_file, a_full_directory, a_link, a_broken_link, a_fifo])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_appeared_meanwhile_stays(
    tmp_path: Path, make: Callable[[Path], None], overwrite: bool
) -> None:
    with ArtifactWriter(tmp_path / "m", overwrite) as slow:
        fill(slow)
        make(tmp_path / "m")
        before = tree(tmp_path / "m") if (tmp_path / "m").is_dir() else None
        with pytest.raises(StorageError):
            slow.commit(DESCRIPTION)
    assert os.listdir(tmp_path) == ["m"]
    assert before is None or tree(tmp_path / "m") == before


def test_a_file_that_appeared_in_the_old_model_stays(tmp_path: Path, can_exchange: bool) -> None:
    path = write(tmp_path / "m")
    for name in ("notes.txt", "config.json"):
        with ArtifactWriter(path, overwrite=True) as slow:
            fill(slow)
            with (path / name).open("a") as file:
                file.write(" ")
            before = tree(path)
            with pytest.raises(StorageError, match=f"m/{name}"):
                slow.commit(DESCRIPTION)
        assert tree(path) == before
        assert os.listdir(tmp_path) == ["m"]
        (path / "notes.txt").unlink(missing_ok=True)


def test_a_file_that_appears_at_the_last_moment_stays(
    tmp_path: Path, can_exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last look by the path and the swap."""
    path = write(tmp_path / "m")
    check = target.Target._check
    calls = 0

    def check_then_write(self: target.Target) -> None:
        nonlocal calls
        check(self)
        calls += 1
        if calls == 2:
            (path / "notes.txt").write_text("mine")

    monkeypatch.setattr(target.Target, "_check", check_then_write)
    inode = path.stat().st_ino
    with pytest.raises(StorageError, match=r"m/notes\.txt is in the way"):
        write(path, overwrite=True)
    assert path.stat().st_ino == inode
    assert (path / "notes.txt").read_text() == "mine"
    assert os.listdir(tmp_path) == ["m"]


def test_the_old_files_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = write(tmp_path / "m"), []
    crc = written.file_crc
    monkeypatch.setattr(written, "file_crc", lambda path: read.append(path.name) or crc(path))
    write(path, overwrite=True)
    assert sorted(read) == sorted(set(os.listdir(path)) - {MANIFEST})


def test_a_failed_overwrite_keeps_the_old_artifact(tmp_path: Path) -> None:
    path = write(tmp_path / "m")
    with (
        contextlib.suppress(KeyboardInterrupt),
        ArtifactWriter(path, overwrite=True) as writer,
    ):
        writer.expect(plan_shards(SIZES))
        writer.write_weight(*next(iter(PACKED.items())))
        raise KeyboardInterrupt
    Artifact.open(path)
    assert os.listdir(tmp_path) == ["m"]


def test_pressing_ctrl_c_again_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    presses, remove = 3, shutil.rmtree

    def interrupted(path: Path, ignore_errors: bool) -> None:
        nonlocal presses
        presses -= 1
        if presses >= 0:
            raise KeyboardInterrupt
        remove(path, ignore_errors)

    monkeypatch.setattr(workspace.shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt), ArtifactWriter(tmp_path / "m"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------ killed


def test_killed_at_every_moment_while_overwriting(tmp_path: Path, can_exchange: bool) -> None:
    """The old model or the new one, whole; where directories cannot be swapped, from the next
    writer on."""
    path, calls, finished, lost = write(tmp_path / "m", max_shard_bytes=3000), 0, False, 0
    while not finished:
        finished = in_dying_child(lambda: write(path, overwrite=True), calls)
        if path.exists():
            Artifact.open(path)
        else:
            lost += 1
            workspace.remove_stale(path)
            Artifact.open(path)
        calls += 1
    assert lost == 0 if can_exchange else lost > 0
    assert calls > 15
    write(path, overwrite=True)
    assert os.listdir(tmp_path) == ["m"]


CHILD = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
from artifact.test_artifact import write
while True:
    write(Path({path!r}), overwrite=True, max_shard_bytes=int(sys.argv[1]))
    print(flush=True)
"""


def test_two_writers_that_are_killed_again_and_again(tmp_path: Path) -> None:
    """Whenever somebody looks there is one whole model of one of them; the user's file stays."""
    path = write(tmp_path / "m")
    (tmp_path / "thesis.txt").write_text("mine")
    code = CHILD.format(path=str(path), paths=sys.path)
    rng, shards = random.Random(1), set()

    def start(size: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", code, str(size)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    sizes = (1 << 30, 3000)
    children = [start(size) for size in sizes]
    try:
        for number in (0, 1, 0, 1, 1):
            for child in children:
                assert child.stdout is not None
                child.stdout.readline()  # it is in full swing
            time.sleep(rng.uniform(0, 0.05))
            for _ in range(20):
                shards.add(whole(path))
            children[number].send_signal(signal.SIGKILL)
            children[number].communicate()
            shards.add(whole(path))
            children[number] = start(sizes[number])
    finally:
        for child in children:
            child.send_signal(signal.SIGKILL)
        errors = [child.communicate()[1] for child in children]
    assert errors == [b"", b""]
    assert len(shards) == 2, "both wrote"
    write(path, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["m", "thesis.txt"]


def whole(path: Path) -> int:
    """How many shards the model has; a reader may have to look again while it is replaced."""
    for _ in range(50):
        held = os.open(path, os.O_RDONLY)  # the name is never missing
        try:
            return len(Artifact.open(path).manifest["shards"])
        except ArtifactError:
            assert not os.path.samestat(os.fstat(held), path.stat()), "half a model"
        finally:
            os.close(held)
    raise AssertionError("never at rest")


def abandoned(home: Path, name: str = "m") -> Path:
    """The workspace of a writer that was killed."""
    pid = os.fork()
    if pid == 0:
        try:
            writer = ArtifactWriter(home / name, overwrite=True)
            writer.__enter__()
            writer.add_file("config.json", b"{}")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    (path,) = home.glob(f".{name}{TEMP_MARK}*")
    return path


def test_what_dead_writers_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    dead = abandoned(tmp_path)
    copy = tmp_path / temp_name("m")
    copy.mkdir()
    (copy / "thesis.txt").write_text("of that name by chance")
    named = tmp_path / temp_name("m")
    named.mkdir()
    (named / LOCK).write_text("no lock of ours\n")
    (named / "new").mkdir()
    (named / "new" / "thesis.txt").write_text("mine")
    other = abandoned(tmp_path, "m2")
    linked = tmp_path / temp_name("m")
    linked.symlink_to(copy)
    fifo = tmp_path / temp_name("m")
    fifo.mkdir()
    os.mkfifo(fifo / LOCK)
    with Workspace(tmp_path / "m") as alive:
        (alive.new / "config.json").write_text("under way")
        write(tmp_path / "m")
        assert not dead.exists()
        assert (alive.new / "config.json").exists()
    assert (copy / "thesis.txt").exists()
    assert (named / "new" / "thesis.txt").exists()
    kept = {copy, named, other, linked, fifo}
    assert set(tmp_path.iterdir()) == {*kept, tmp_path / "m"}


def test_killed_before_it_had_a_lock(tmp_path: Path) -> None:
    (tmp_path / temp_name("m")).mkdir()
    early = tmp_path / temp_name("m")
    early.mkdir()
    (early / LOCK).touch()
    (early / "new").mkdir()
    write(tmp_path / "m")
    assert os.listdir(tmp_path) == ["m"]


def test_a_users_file_in_what_was_replaced_survives_the_dead_writer(tmp_path: Path) -> None:
    """Killed between the swap and the removal of the old model."""
    path = write(tmp_path / "m")
    dead = abandoned(tmp_path)
    old = write(tmp_path / "older").rename(dead / "swap")
    (old / "notes.txt").write_text("mine")
    (old / "config.json").write_text("edited")
    write(path, overwrite=True)
    assert {file.name for file in old.iterdir()} == {"notes.txt", "config.json"}


def test_a_temporary_directory_never_loads(tmp_path: Path) -> None:
    """Even when it is complete: killed just before the rename."""
    path = write(tmp_path / "m")
    outer = tmp_path / temp_name("m")
    outer.mkdir()
    for temp in (outer / "new", outer / "swap", tmp_path / temp_name("m")):
        path = path.rename(temp)
        with pytest.raises(ArtifactError, match="unfinished"):
            Artifact.open(temp)
        link = tmp_path / "link"
        link.symlink_to(temp)
        with pytest.raises(ArtifactError, match="unfinished"):
            Artifact.open(link)
        link.unlink()


def test_renames_that_replace_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for platform in (sys.platform, "other"):
        monkeypatch.setattr(renames.sys, "platform", platform)
        (tmp_path / "a").write_text("a")
        (tmp_path / "b").symlink_to("nowhere")
        with pytest.raises(FileExistsError):
            renames.rename_new(tmp_path / "a", tmp_path / "b")
        (tmp_path / "b").unlink()
        renames.rename_new(tmp_path / "a", tmp_path / "b")
        assert (tmp_path / "b").read_text() == "a"
        (tmp_path / "b").unlink()
