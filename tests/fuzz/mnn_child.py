"""Loads damaged copies of an MNN folder, and runs a few tokens on those that load.

    python mnn_child.py FOLDER SCRATCH SEED COUNT KIND...

Every copy is loaded in a process of its own with little memory and time. Checksums are made right
again, as whoever makes such a folder does. Prints one JSON object: kind → outcome → how often, and
under "faults" what became of those that ended in another way than loading or a typed error.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import deepmnn
from deepmnn.errors import DeepmnnError
from exporters.folders import reseal_folder
from fuzz.mutations import EXTREMES, WRONG, mutate_bytes, mutate_json, rewrite

MEMORY = 6 << 30
SECONDS = 20
LOADED, REFUSED, UNTYPED = range(3)
Rng = np.random.Generator

KEYS = (
    "base_dir",
    "llm_model",
    "embedding_file",
    "tokenizer_file",
    "context_file",
    "speculative_type",
    "eagle_model",
    "draft_model",
    "mtp_model",
    "lookup_file",
    "tmp_path",
    "prompt_cache",
    "prefix_cache_path",
    "kvcache_mmap",
    "use_mmap",
    "use_cached_mmap",
    "reuse_kv",
    "quant_qkv",
    "attention_mode",
    "is_visual",
    "is_audio",
    "has_talker",
    "has_deepstack",
    "ple_embed_file",
    "ple_embed_dim",
    "ple_quant",
    "hidden_states",
    "chunk",
    "chunk_limits",
    "thread_num",
    "dynamic_option",
    "mmap_size",
    "mixed_samplers",
    "sampler_type",
    "logit_bias",
    "banned_tokens",
    "jinja",
    "chat_template",
    "mllm",
    "attn_scale",
    "sliding_window",
    "attention_type",
    "attention_mask",
    "is_mrope",
    "hidden_size",
    "layer_nums",
    "key_value_shape",
    "tie_embeddings",
    "quant_bit",
    "max_position_embeddings",
    "backend_type",
    "all_logits",
    "async",
    "cpu_sme_core_num",
    "enable_debug",
    "timeout_ms",
)
"""Keys that MNN's runtime looks at."""

VALUES: tuple[Any, ...] = (
    *WRONG,
    "/etc/passwd",
    "../../etc/passwd",
    "eagle",
    "mtp",
    "lookahead",
    "draftmodel",
    "mixed",
    ["mixed"],
    ["penalty", "mixed"],
    [1 << 62, 1 << 62, -1, 0, 1],
    {"chat_template": "{{ " + "(" * 20000, "eos": 3},
    {"chat_template": "{% for a in b %}" * 3000},
    {"weight_offset": 0, "quant_bit": 0},
    10,
    -3,
    64,
    "glm",
)


def damaged_json(rng: Rng, data: bytes) -> bytes:
    fields = json.loads(data)
    if rng.integers(2):
        fields = mutate_json(rng, fields)
    else:
        key = KEYS[int(rng.integers(len(KEYS)))]
        fields[key] = VALUES[int(rng.integers(len(VALUES)))]
    return json.dumps(fields).encode()


def damaged_numbers(rng: Rng, data: bytes) -> bytes:
    """A few aligned words say something else: the structure mostly stays."""
    words = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        width = (1, 2, 4, 4, 4, 8)[int(rng.integers(6))]
        at = int(rng.integers(len(words) // width)) * width
        old = int.from_bytes(words[at : at + width], "little")
        near = old + int(rng.integers(-4, 5))
        new = (near, old * 2, old ^ (1 << int(rng.integers(8 * width))), EXTREMES)[
            int(rng.integers(4))
        ]
        if isinstance(new, tuple):
            new = new[int(rng.integers(len(new)))]
        words[at : at + width] = (new % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(words)


def either(*ways: Callable[[Rng, bytes], bytes]) -> Callable[[Rng, bytes], bytes]:
    return lambda rng, data: ways[int(rng.integers(len(ways)))](rng, data)


KINDS: dict[str, tuple[str, Callable[[Rng, bytes], bytes]]] = {
    "config": ("config.json", either(damaged_json, damaged_json, damaged_json, mutate_bytes)),
    "llm_config": ("llm_config.json", either(damaged_json, damaged_json, mutate_bytes)),
    "tokenizer": ("tokenizer.mtok", either(damaged_numbers, mutate_bytes)),
    "network": ("llm.mnn", either(damaged_numbers, damaged_numbers, mutate_bytes)),
    "weights": ("llm.mnn.weight", either(damaged_numbers, mutate_bytes)),
    "embedding": ("embeddings_int8.bin", either(damaged_numbers, mutate_bytes)),
    "sidecar": ("deepmnn/config.json", either(damaged_json, mutate_bytes)),
}


def copy(folder: Path, scratch: Path, file: str, data: bytes) -> Path:
    """The folder with one file that says something else, the others linked."""
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(folder, scratch, copy_function=os.link)
    for name in (file, "deepmnn.json"):
        rewrite(scratch / name, (folder / name).read_bytes())
    rewrite(scratch / file, data)
    reseal_folder(scratch)
    return scratch


def attempt(path: Path) -> int:
    """In a child: loads and runs; → what to tell the parent."""
    try:
        model = deepmnn.load(path, threads=1)
        model.generate([5, 6, 7, 8], deepmnn.SamplingParams(max_tokens=3, ignore_eos=True))
        model.logits([3, 9, 12])
    except DeepmnnError:
        return REFUSED
    except BaseException:
        return UNTYPED
    return LOADED


def outcome(path: Path) -> str:
    pid = os.fork()
    if pid == 0:
        code = UNTYPED
        try:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            null = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(null, number)
            code = attempt(path)
        finally:
            os._exit(code)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            names = {LOADED: "loaded", REFUSED: "refused", UNTYPED: "untyped"}
            return names.get(code) or signal.Signals(-code).name if code < 3 else f"exit {code}"
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hung"


def main(folder: Path, scratch: Path, seed: int, count: int, kinds: list[str]) -> None:
    deepmnn.load(folder, threads=1)  # imports everything once; MNN has no threads of its own yet
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    faults = []
    for kind in kinds:
        file, damage = KINDS[kind]
        data = (folder / file).read_bytes()
        for number in range(count):
            rng = np.random.default_rng([seed, number])
            found = outcome(copy(folder, scratch, file, damage(rng, data)))
            counts[kind][found] += 1
            if found not in ("loaded", "refused"):
                faults.append([kind, number, found])
    print(json.dumps({**counts, "faults": faults}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
