"""llama.cpp. --source is a checkout, built in its folder `build` with llama-quantize and
llama-imatrix; its converter needs torch and transformers.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_float, c_int, c_longlong, c_void_p
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.accuracy.judged import Logits, Pieces, Stored, Task
from bench.peers.engine import commit
from bench.peers.ik_llama import compile_c, libraries

TITLE, TIMED = "llama.cpp", "llama_cpp"
RECIPES: Sequence[str] = (
    "Q8_0",
    "Q6_K imatrix",
    "Q5_K_M imatrix",
    "Q4_K_M",
    "Q4_K_M imatrix",
    "IQ4_XS imatrix",
    "Q4_0",
    "Q4_0 imatrix",
)
NOTE = "8-bit activations, KV cache f16; rows that 256 does not divide get formats of blocks of 32"

FLOAT, IMATRIX = "float", "imatrix"
SHIM = Path(__file__).with_name("gguf.c")
CHUNK = 512
FIRST_CHARACTER = 0x10000


def version(source: Path | None) -> str | None:
    """The commit, or a hash of the library."""
    if source is None or not libraries(source):
        return None
    if not _program(source, "quantize").is_file() or not find_spec("numpy"):
        return None
    library = libraries(source)[0]
    return commit(source) or hashlib.sha256(library.read_bytes()).hexdigest()[:8]


def refuses(config: Mapping[str, Any], recipe: str) -> str:
    return ""


def needs(recipe: str) -> Sequence[str]:
    if recipe == FLOAT:
        return ()
    made = [f"llama_cpp {FLOAT}"]
    return [*made, f"llama_cpp {IMATRIX}"] if recipe.endswith(f" {IMATRIX}") else made


def build(recipe: str, out: Path, task: Task) -> str:
    assert task.source is not None
    if recipe == FLOAT:
        return convert(task.checkpoint, out / "model.gguf", task.source)
    if recipe == IMATRIX:
        return measure_importance(out / "imatrix.dat", task)
    return quantize(recipe, out / "model.gguf", task)


def convert(checkpoint: Path, out: Path, source: Path) -> str:
    """Runs the checkout's converter, to float32, with a vocabulary of our own.

    Token i is the one character FIRST_CHARACTER + i: programs that read only text then see the
    checkpoint's own token ids, and the converter need not know its tokenizer.
    """
    sys.path[:0] = [str(source), str(source / "gguf-py")]
    import convert_hf_to_gguf
    import gguf

    def set_vocab(self: Any) -> None:
        count = self.hparams["vocab_size"]
        self.gguf_writer.add_tokenizer_model("llama")
        self.gguf_writer.add_tokenizer_pre("default")
        self.gguf_writer.add_token_list([chr(FIRST_CHARACTER + i) for i in range(count)])
        self.gguf_writer.add_token_scores([0.0] * count)
        self.gguf_writer.add_token_types([gguf.TokenType.NORMAL] * count)
        self.gguf_writer.add_add_space_prefix(False)
        self.gguf_writer.add_add_bos_token(False)
        self.gguf_writer.add_add_eos_token(False)

    found = convert_hf_to_gguf.get_model_class

    def with_our_vocabulary(*arguments: Any, **options: Any) -> Any:
        kind = found(*arguments, **options)
        return type(kind.__name__, (kind,), {"set_vocab": set_vocab, "model_arch": kind.model_arch})

    convert_hf_to_gguf.get_model_class = with_our_vocabulary
    sys.argv = ["convert", str(checkpoint), "--outfile", str(out), "--outtype", "f32"]
    convert_hf_to_gguf.main()
    return out.name


def measure_importance(out: Path, task: Task) -> str:
    """Runs llama-imatrix on the calibration tokens; ik_llama.cpp reads this format, too."""
    assert task.source is not None
    text = out.with_name("characters.txt")
    ids = (token for piece in task.calibration for token in piece)
    text.write_text("".join(chr(FIRST_CHARACTER + i) for i in ids), encoding="utf-8")
    command = [str(_program(task.source, "imatrix")), "-m", str(task.needed[f"llama_cpp {FLOAT}"])]
    command += ["-f", str(text), "-o", str(out), "--output-format", "dat", "--no-ppl"]
    command += ["-c", str(CHUNK), "-t", str(task.threads)]
    subprocess.run(command, check=True)
    return out.name


def quantize(recipe: str, out: Path, task: Task) -> str:
    """Runs llama-quantize."""
    assert task.source is not None
    kind, _, important = recipe.partition(" ")
    command = [str(_program(task.source, "quantize"))]
    if important:
        command += ["--imatrix", str(task.needed[f"llama_cpp {IMATRIX}"])]
    command += [str(task.needed[f"llama_cpp {FLOAT}"]), str(out), kind, str(task.threads)]
    subprocess.run(command, check=True)
    return out.name


def _program(source: Path, name: str) -> Path:
    return source / "build" / "bin" / f"llama-{name}"


def stored(model: Path, source: Path | None) -> Stored:
    assert source is not None
    tensors: dict[str, tuple[str, int]] = {}

    def tell(name: bytes, kind: bytes, nbytes: int) -> None:
        tensors[name.decode()] = kind.decode(), nbytes

    callback = CFUNCTYPE(None, c_char_p, c_char_p, c_longlong)(tell)
    if compile_c(SHIM, source).judged_tensors(str(model).encode(), callback) < 0:
        raise RuntimeError(f"{model} is no GGUF file")
    return summary(tensors)


def summary(tensors: Mapping[str, tuple[str, int]]) -> Stored:
    """tensors: type and bytes by name. The other tensors' types, the largest share first."""
    empty = ("", 0)
    embedding, head = tensors.get("token_embd.weight", empty), tensors.get("output.weight", empty)
    total = sum(nbytes for _, nbytes in tensors.values())
    shares: Counter[str] = Counter()
    for name, (kind, nbytes) in tensors.items():
        if name not in ("token_embd.weight", "output.weight"):
            shares[kind] += nbytes
    rest = max(1, sum(shares.values()))
    mixed = [
        f"{kind} {nbytes / rest:.0%}" for kind, nbytes in shares.most_common() if nbytes > rest / 50
    ]
    formats = {"embedding": embedding[0], "head": head[0], "others": ", ".join(mixed)}
    return Stored(total, embedding[1], formats)


def logits(model: Path, pieces: Pieces, threads: int, source: Path | None) -> Iterator[Logits]:
    import numpy as np

    assert source is not None
    library = compile_c(SHIM, source)
    library.judged_load.restype = c_void_p
    numbers, floats = POINTER(c_int), POINTER(c_float)
    library.judged_logits.argtypes = (c_void_p, c_int, numbers, c_int, c_int, floats)
    loaded = library.judged_load(str(model).encode())
    if not loaded:
        raise RuntimeError(f"{TITLE} cannot load {model}")
    vocab = library.judged_vocab(c_void_p(loaded))
    for ids in pieces:
        out = np.empty((len(ids), vocab), np.float32)
        pointer = out.ctypes.data_as(floats)
        tokens = (c_int * len(ids))(*ids)
        if code := library.judged_logits(loaded, threads, tokens, len(ids), vocab, pointer):
            raise RuntimeError(f"llama_decode gives {code} for {len(ids)} tokens")
        yield out
