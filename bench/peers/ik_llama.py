"""ik_llama.cpp, through its C library. --source is a checkout, built in its folder `build`."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.peers.engine import Config, commit
from bench.peers.llama_cpp import PIECE, Pieces, beyond

TITLE, BUILDER = "ik_llama.cpp", "gguf_file"
SETTINGS = "Q4_0, run-time repack; MLA 3, flash attention, fused experts, KV cache f16"

SHIM = Path(__file__).with_suffix(".c")


def version(source: Path | None) -> str | None:
    try:
        import gguf  # noqa: F401  # writes the model
    except ImportError:
        return None
    if source is None or not libraries(source):
        return None
    library = libraries(source)[0]
    compile_shim(source)
    return commit(source) or hashlib.sha256(library.read_bytes()).hexdigest()[:8]


def exceeds(isa: str, source: Path | None) -> str:
    assert source is not None
    info = compile_shim(source).llama_print_system_info
    info.restype = ctypes.c_char_p
    return beyond(info())


def refuses(config: Config) -> str:
    return ""


def load(model: Path, threads: int, source: Path | None) -> IkSession:
    assert source is not None
    return IkSession(compile_shim(source), model, threads)


def libraries(source: Path) -> list[Path]:
    """libllama and libggml of a build."""
    built = source / "build"
    found = [next(built.rglob(f"lib{name}.so"), None) for name in ("llama", "ggml")]
    return [path for path in found if path is not None] if None not in found else []


@functools.cache
def compile_c(file: Path, source: Path) -> ctypes.CDLL:
    """Compiles a C file against the headers and libraries of a checkout."""
    paths = libraries(source)
    folders = [source / "include", source / "ggml" / "include"]
    with tempfile.TemporaryDirectory() as place:
        made = Path(place) / "peer.so"
        command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(made), str(file)]
        command += [f"-I{folder}" for folder in folders]
        command += [part for path in paths for part in (str(path), f"-Wl,-rpath,{path.parent}")]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(made))


def compile_shim(source: Path) -> ctypes.CDLL:
    """Compiles ik_llama.c."""
    library = compile_c(SHIM, source)
    library.peer_load.restype = ctypes.c_void_p
    library.peer_load.argtypes = (ctypes.c_char_p, ctypes.c_int, ctypes.c_int)
    library.peer_reserve.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_int)
    library.peer_clear.argtypes = (ctypes.c_void_p,)
    ints = ctypes.POINTER(ctypes.c_int)
    arrays = (ints, ints, ints, ctypes.c_char_p)
    library.peer_decode.argtypes = (ctypes.c_void_p, ctypes.c_int, *arrays)
    return library


class IkSession:
    """One context, rebuilt for every number of sequences."""

    most = None

    def __init__(self, library: ctypes.CDLL, model: Path, threads: int) -> None:
        self._library, self._pieces = library, Pieces()
        self._peer = library.peer_load(str(model).encode(), threads, PIECE)
        if not self._peer:
            raise RuntimeError(f"ik_llama.cpp cannot load {model}")

    def reserve(self, batch: int, tokens: int) -> None:
        rows = batch * -(-tokens // 256) * 256
        if self._library.peer_reserve(self._peer, batch, rows):
            raise RuntimeError(f"ik_llama.cpp makes no context of {rows} tokens")

    def start(self, prompts: Sequence[Sequence[int]]) -> None:
        self._library.peer_clear(self._peer)
        for rows in self._pieces.start(prompts):
            self._decode(rows)

    def step(self, tokens: Sequence[int]) -> None:
        self._decode(self._pieces.step(tokens))

    def _decode(self, rows: Sequence[tuple[int, int, int, bool]]) -> None:
        tokens, positions, sequences, last = zip(*rows, strict=True)
        ints = ctypes.c_int * len(rows)
        columns = (ints(*tokens), ints(*positions), ints(*sequences), bytes(last))
        if code := self._library.peer_decode(self._peer, len(rows), *columns):
            raise RuntimeError(f"llama_decode gives {code} for {len(rows)} tokens")
