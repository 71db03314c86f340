"""Cuts the weight files of models that are loaded, in a process of its own: it must not crash.

    python cut_child.py DIRECTORY first|between|during|loading THREADS
    python cut_child.py DIRECTORY WAY      what else may be done with SIGBUS (`WAYS`)

Prints "ready" at its end, and before each cut where it is.
"""

import ctypes
import faulthandler
import mmap
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import deepmnn
from deepmnn import _core
from deepmnn.errors import ArtifactError

PROMPTS = [[5, 17, 200, 33, 33, 9], [7], [8, 9, 10] * 9, [40, 2]]
PARAMS = deepmnn.SamplingParams(max_tokens=24, ignore_eos=True)
PAGE = mmap.PAGESIZE


def shard_of(directory: Path) -> Path:
    (shard,) = directory.glob("*.safetensors")
    return shard


def places(shard: Path) -> list[int]:
    """Lengths to cut to: in the header, at pages' borders and beside them, and inside the last."""
    size = shard.stat().st_size
    borders = [PAGE, size // 2 // PAGE * PAGE, (size - 1) // PAGE * PAGE]
    near = [border + by for border in borders for by in (-1, 0, 1)]
    return sorted({0, 1, 8, 100, *near, size // 3, size - 700, size - 64, size - 1})


def lost(shard: Path, length: int) -> bool:
    """Whether the cut takes anything but zeros that the page keeps."""
    data = shard.read_bytes()
    same_page = length % PAGE and length // PAGE == (len(data) - 1) // PAGE
    return not same_page or any(data[length:])


def told(directory: Path, use: Callable[[], object]) -> None:
    """It raises what it must, and goes on to."""
    for _ in range(2):
        try:
            use()
        except ArtifactError as error:
            assert str(shard_of(directory)) in str(error)  # noqa: PT017
            assert "cut" in str(error)  # noqa: PT017
            assert "load it again" in str(error)  # noqa: PT017
        else:
            raise AssertionError("numbers from a file that is not there")


def streamed(model: deepmnn.LLM, prompt: list[int], found: list[int], raised: list) -> None:
    try:
        for chunk in model.stream(prompt, PARAMS):
            found += chunk.ids
    except ArtifactError as error:
        raised.append(error)


def together(model: deepmnn.LLM, cut: Callable[[], None]) -> list[tuple[list[int], list]]:
    """The tokens and the errors of several streams that share steps; the file is cut meanwhile."""
    answers: list[tuple[list[int], list]] = [([], []) for _ in PROMPTS]
    threads = [
        threading.Thread(target=streamed, args=(model, prompt, *answer))
        for prompt, answer in zip(PROMPTS, answers, strict=True)
    ]
    for thread in threads:
        thread.start()
    cut()
    for thread in threads:
        thread.join()
    return answers


def cut_everywhere(directory: Path, when: str, threads: int) -> None:
    for length in places(shard_of(directory)):
        copy = Path(shutil.copytree(directory, Path(tempfile.mkdtemp()) / "model"))
        shard = shard_of(copy)
        print(when, threads, length, flush=True)
        model = deepmnn.load(copy, threads=threads)
        wanted = None
        if when == "between":
            wanted = model.generate(PROMPTS, PARAMS)
        all_gone = lost(shard, length)
        os.truncate(shard, length)
        if all_gone:
            told(copy, lambda model=model: model.generate(PROMPTS, PARAMS))
            told(copy, lambda model=model: model.logits([1, 2]))
            assert model.backend.sample([(np.ones(3, np.float32), 0.0, 0, 1.0, 0.0, 0.5)]) == [0]
        else:
            again = model.generate(PROMPTS, PARAMS)
            assert wanted is None or [a.ids for a in again] == [a.ids for a in wanted]
        shutil.rmtree(copy.parent)


def cut_during(directory: Path, threads: int) -> None:
    """Whatever moment it is: what came before is right, then comes the error, for everyone."""
    wanted = [answer.ids for answer in deepmnn.load(directory).generate(PROMPTS, PARAMS)]
    raised = 0
    for number in range(40):
        copy = Path(shutil.copytree(directory, Path(tempfile.mkdtemp()) / "model"))
        shard = shard_of(copy)
        model = deepmnn.load(copy, threads=threads)
        length = (0, PAGE, shard.stat().st_size // 2, shard.stat().st_size - 700)[number % 4]

        def cut(shard: Path = shard, length: int = length, wait: float = number * 0.0005) -> None:
            time.sleep(wait)
            os.truncate(shard, length)

        print("during", threads, number, flush=True)
        for (found, errors), right in zip(together(model, cut), wanted, strict=True):
            assert found == right[: len(found)], "a wrong token"
            assert errors or found == right
            raised += len(errors)
        told(copy, lambda model=model: model.generate(PROMPTS, PARAMS))
        shutil.rmtree(copy.parent)
    assert raised > len(PROMPTS), "always too late"


def cut_loading(directory: Path, threads: int) -> None:
    """While the model loads: that fails, or the first step does. program.bin is only read then."""
    for number in range(80):
        copy = Path(shutil.copytree(directory, Path(tempfile.mkdtemp()) / "model"))
        name = ("program.bin", shard_of(copy).name)[number % 2]
        print("loading", number, flush=True)

        def cut(path: Path = copy / name, wait: float = number * 0.00005) -> None:
            time.sleep(wait)
            os.truncate(path, 0)

        other = threading.Thread(target=cut)
        other.start()
        try:
            core = _core.Model(copy, threads)
            other.join()
            if name != "program.bin":
                row, table = np.zeros(1, np.int32), np.zeros((1, 1), np.int32)
                one, ends = np.ones(1, np.int32), np.array([0, 1], np.int32)
                core.step(core.new_cache(1, 4), row, row, ends, one, table, row)
                raise AssertionError("numbers from a file that is not there")
        except ArtifactError as error:
            assert str(error)  # noqa: PT017
        other.join()
        shutil.rmtree(copy.parent)


# ---------------------------------------------------------------------------- other handlers


def foreign() -> np.ndarray:
    """A mapped file of somebody else's, which has been cut."""
    path = Path(tempfile.mkdtemp()) / "other"
    path.write_bytes(b"1" * 3 * PAGE)
    array = np.memmap(path, np.uint8, "r")
    os.truncate(path, 0)
    return array


class Action(ctypes.Structure):
    """struct sigaction of Linux, as the C library has it."""

    _fields_ = [
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


SIGINFO = 4
HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
ADDRESS_AT = 16  # of si_addr in siginfo_t
kept: list[object] = []


def mend(array: np.ndarray, before: Callable[..., None] | None = None) -> list[int]:
    """A handler as another library might have one: it mends `array`, all else goes on to `before`.

    Returns the addresses it mends.
    """
    begin, end = array.ctypes.data, array.ctypes.data + array.nbytes
    mended: list[int] = []

    def handle(number: int, info: int, context: int) -> None:
        address = ctypes.c_uint64.from_address(info + ADDRESS_AT).value
        if begin <= address < end:
            mended.append(address)
            private_fixed_anonymous = 0x2 | 0x10 | 0x20
            libc.mmap(begin, array.nbytes, mmap.PROT_READ, private_fixed_anonymous, -1, 0)
        elif before is not None:
            before(number, info, context)

    kept.append(HANDLER(handle))
    action = Action(ctypes.cast(kept[-1], ctypes.c_void_p), flags=SIGINFO)  # type: ignore[arg-type]
    assert libc.sigaction(signal.SIGBUS, ctypes.byref(action), None) == 0
    return mended


def handler_now() -> Callable[..., None]:
    action = Action()
    assert libc.sigaction(signal.SIGBUS, None, ctypes.byref(action)) == 0
    assert action.flags & SIGINFO
    return HANDLER(action.handler)


def cut_one(directory: Path) -> None:
    """A model that is loaded, works, is cut and says so."""
    copy = Path(shutil.copytree(directory, Path(tempfile.mkdtemp()) / "model"))
    model = deepmnn.load(copy, threads=2)
    model.generate(PROMPTS, PARAMS)
    os.truncate(shard_of(copy), 0)
    told(copy, lambda: model.generate(PROMPTS, PARAMS))


def mended_before(directory: Path) -> None:
    """The other handler was there first: it gets what is its own."""
    array = foreign()
    mended = mend(array)
    cut_one(directory)
    assert array[PAGE] == 0
    assert len(mended) == 1


def mended_after(directory: Path) -> None:
    """The other one came later and hands on, as a second copy of the core does."""
    model = deepmnn.load(directory)
    array = foreign()
    mended = mend(array, handler_now())
    cut_one(directory)
    assert array[PAGE] == 0
    assert len(mended) == 1
    assert model.generate(PROMPTS, PARAMS)


def dump_before(directory: Path) -> None:
    faulthandler.enable()
    cut_one(directory)


def dump_after(directory: Path) -> None:
    """It writes where the fault was, and takes it to be the end; it is not."""
    copy = Path(shutil.copytree(directory, Path(tempfile.mkdtemp()) / "model"))
    model = deepmnn.load(copy, threads=2)
    faulthandler.enable()
    os.truncate(shard_of(copy), 0)
    told(copy, lambda: model.generate(PROMPTS, PARAMS))


def taken_away(directory: Path) -> None:
    """Somebody sets the default again; the next model that is loaded minds."""
    deepmnn.load(directory)
    signal.signal(signal.SIGBUS, signal.SIG_DFL)
    cut_one(directory)


def blocked(directory: Path) -> None:
    """A thread that blocks all signals, as servers do."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    cut_one(directory)


def many(directory: Path) -> None:
    """Models come and go; each cut is told of its own model."""
    whole = deepmnn.load(directory, threads=1)
    wanted = [answer.ids for answer in whole.generate(PROMPTS, PARAMS)]
    for _ in range(3):
        for _ in range(20):
            deepmnn.load(directory, threads=1)
        cut_one(directory)
        assert [answer.ids for answer in whole.generate(PROMPTS, PARAMS)] == wanted


def foreign_ends(directory: Path) -> None:
    cut_one(directory)
    print("foreign", flush=True)
    foreign()[PAGE]


def foreign_dumps(directory: Path) -> None:
    faulthandler.enable()
    foreign_ends(directory)


def raised(directory: Path) -> None:
    cut_one(directory)
    print("foreign", flush=True)
    signal.raise_signal(signal.SIGBUS)


def ignored(directory: Path) -> None:
    signal.signal(signal.SIGBUS, signal.SIG_IGN)
    cut_one(directory)
    signal.raise_signal(signal.SIGBUS)


WAYS = {
    way.__name__: way
    for way in (
        *(mended_before, mended_after, dump_before, dump_after, taken_away, blocked, many, ignored),
        *(foreign_ends, foreign_dumps, raised),
    )
}


def main(directory: Path, way: str, threads: int = 1) -> None:
    if way == "during":
        cut_during(directory, threads)
    elif way == "loading":
        cut_loading(directory, threads)
    elif way in WAYS:
        WAYS[way](directory)
    else:
        cut_everywhere(directory, way, threads)
    print("ready")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
