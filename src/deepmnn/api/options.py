"""How a model is loaded: the choices, and what each may be."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepmnn.backends.mnn.options import MnnOptions
from deepmnn.errors import RequestError, Words, argument
from deepmnn.source.sizes import nbytes

if TYPE_CHECKING:
    from deepmnn.quant.recipe import Recipe

BACKENDS = ("cpu", "mnn", "reference")

NUMA_MODES = ("off", "distribute", "isolate")

MLA_FORMS = ("auto", "absorbed", "expanded")

KV_DTYPES = {"f32": 4.0, "bf16": 2.0, "int8": 1.0625}
"""Storage formats of the KV cache and their bytes per element."""

DEFAULT_KV_DTYPE = "f32"

DEFAULT_BATCH_TOKENS = 512

DEFAULT_CACHE_BYTES = 1 << 30
"""The KV cache may take this much unless cache_tokens says otherwise."""

BUDGETED_KV_DISK_BYTES = 4 << 30
"""Of disk, for rows of the KV cache that make room where a budget of memory is given."""

MAX_SIZE = (1 << 31) - 1
"""No argument of `load` is larger: the core counts in 32 bits."""

_SIZE = {"range": (1, MAX_SIZE)}

MAX_MEMORY = 1 << 60
"""Bytes; no machine has more."""

MAX_GUESSES = 15
"""Tokens guessed at a time: with one more a sequence's tokens are still computed one by one, and
its logits are those without guesses to the bit (native/ops/attend.h)."""

DRAFTERS = ("auto", "mtp", "ngram", "off")
"""What `speculate` may be besides the name of a model."""


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Every choice of `load`, which takes them one by one or as `options`.

    A field's metadata holds its help text on the command line ("help"), what it may be ("choices",
    "range", or "type" and what to call it, "expected"), and the backends that know it ("backends";
    all where it is missing).

    Attributes:
        backend: "cpu" (the C++ engine), "mnn" (the MNN wheel; exports a converted model at first
            use, into the user's cache) or "reference" (numpy; slow, the oracle). None takes "mnn"
            for an exported folder and "cpu" for anything else.
        threads: worker threads; None takes one for each physical core. Not more than there are
            hardware threads are started.
        kv_dtype: how the KV cache is stored, "f32", "bf16" or "int8" (by MNN always "f32"). None
            takes "f32", unless `memory` leaves no room for it.
        cache_tokens: rows of the KV cache, shared by all sequences that run together; None takes
            four full contexts, but at most 1 GiB, and less where `memory` is short.
        kv_disk: bytes of disk, such as "2GiB", for cache rows that make room for others; they come
            back when they are wanted (docs/kv-disk.md). None takes 4 GiB where `memory` is given,
            else 0: rows are forgotten, and an open session keeps its own in memory.
        kv_directory: where the file for them is, on a disk; None takes kv/ in the user's cache.
        max_batch_tokens: tokens of one step; longer prompts are prefilled over several steps. None
            takes 512, and less where `memory` is very short.
        max_sequences: sequences that run together; MNN runs one at a time.
        mnn: how MNN computes.
        numa: for machines with several memory nodes, the C++ engine only: "distribute" spreads
            threads and a private copy of the weights over all nodes, "isolate" keeps to the node
            this process runs on (docs/numa.md). With one node nothing changes.
        isa: the instruction set of the C++ engine, "scalar", "avx2" or "avx512"; None takes the
            best that this machine has, or the one in the environment variable DEEPMNN_ISA.
        mla_form: how latent attention computes, without MNN: "absorbed" (on the cached latents),
            "expanded" (on keys and values made from them) or "auto" (whichever takes fewer
            operations for each sequence; the reference backend: "expanded"). Results differ by
            rounding only.
        quant: how a checkpoint is converted at first use, "w8" (the default), "w4", "bf16", "fp32"
            or a deepmnn.Recipe; a converted model has its recipe already.
        memory: what this process may hold in all (docs/memory.md), as "4GiB", "800 MB" or bytes:
            weights that do not fit are read from the disk while the model runs. None: what the
            machine, or this process's control group, has.
        speculate: who guesses tokens ahead (docs/speculation.md), which changes the speed and no
            answer: "mtp" (the model's own draft part), "ngram" (what the text has said before), a
            smaller model of the same vocabulary, by any name that `load` takes, "off", or "auto",
            also None: "ngram"; of MNN "off".
        speculate_tokens: tokens that are guessed at a time, at most. None takes 8 of "ngram", 3 of
            "mtp" and 5 of a model; fewer, or none, are guessed where they do not pay.

    Raises RequestError when a value is impossible by itself.
    """

    backend: str | None = field(
        default=None,
        metadata={
            "help": "cpu, mnn, or reference (numpy, slow); default: mnn for its own folders, "
            "else cpu.",
            "choices": BACKENDS,
        },
    )
    threads: int | None = field(
        default=None, metadata={"help": "Worker threads; default: one for each core.", **_SIZE}
    )
    kv_dtype: str | None = field(
        default=None,
        metadata={
            "help": "KV cache: f32 (the default, if there is memory), bf16 or int8.",
            "choices": tuple(KV_DTYPES),
        },
    )
    cache_tokens: int | None = field(
        default=None,
        metadata={"help": "KV cache rows; default: four contexts, at most 1 GiB.", **_SIZE},
    )
    kv_disk: str | int | None = field(
        default=None,
        metadata={
            "help": "Disk for KV cache rows that make room, such as 2GiB; 0 is off; default: 4GiB "
            "if --memory is given, else 0.",
            "type": (str, int),
            "expected": "bytes, as in '2GiB'",
            "backends": ("cpu", "reference"),
        },
    )
    kv_directory: str | os.PathLike[str] | None = field(
        default=None,
        metadata={
            "help": "Where that is; default: kv/ in the user's cache.",
            "type": (str, os.PathLike),
            "expected": "a directory",
            "backends": ("cpu", "reference"),
        },
    )
    max_batch_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of one step; longer prompts take several; default: 512.",
            **_SIZE,
        },
    )
    max_sequences: int = field(
        default=64, metadata={"help": "Sequences that run together; with MNN one.", **_SIZE}
    )
    mnn: MnnOptions | None = field(
        default=None, metadata={"type": MnnOptions, "expected": "deepmnn.MnnOptions"}
    )
    numa: str = field(
        default="off",
        metadata={
            "help": "Several memory nodes: distribute (over all), isolate (to one) or off; "
            "see docs/numa.md.",
            "choices": NUMA_MODES,
            "backends": ("cpu",),
        },
    )
    isa: str | None = field(
        default=None,
        metadata={
            "help": "Instruction set: scalar, avx2 or avx512; default: the best of this machine.",
            "type": str,  # the core knows the names, and which of them this machine runs
            "expected": "the name of an instruction set, such as 'avx2'",
            "backends": ("cpu",),
        },
    )
    mla_form: str = field(
        default="auto",
        metadata={
            "help": "Latent attention: absorbed, expanded or auto (fewer operations).",
            "choices": MLA_FORMS,
            "backends": ("cpu", "reference"),
        },
    )
    quant: str | Recipe | None = field(
        default=None,
        metadata={
            "help": "Recipe of a checkpoint that is converted at first use: w8 (the default), w6, "
            "w5, w4, w3, bf16, fp32, or a .yaml file.",
            "type": object,  # quant/recipe.py knows what a recipe is
            "expected": "a recipe's name or a deepmnn.Recipe",
        },
    )
    memory: str | int | None = field(
        default=None,
        metadata={
            "help": "What this process may hold in all, as in 4GiB: weights that do not fit are "
            "read from the disk; default: what the machine has.",
            "size": (1, MAX_MEMORY),
            "backends": ("cpu", "mnn"),
        },
    )

    speculate: str | os.PathLike[str] | None = field(
        default=None,
        metadata={
            "help": "Guess tokens ahead: mtp (the model's draft part), ngram (repeated text), a "
            "smaller MODEL, off; default: auto.",
            "type": (str, os.PathLike),
            "expected": "'auto', 'mtp', 'ngram', 'off' or a model",
        },
    )
    speculate_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Tokens guessed at a time, 1 to 15; default: ngram 8, mtp 3, a model 5.",
            "range": (1, MAX_GUESSES),
            "backends": ("cpu", "reference"),
        },
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None or each.default is not None:
                check_option(each.name, value, each.metadata)
        _ = self.kv_disk_nbytes
        if self.draft_model is not None and self.memory is not None:
            raise RequestError(
                argument("speculate", " names a second model beside a budget of memory"),
                Words("speculate 'auto' or no memory", "--speculate auto or no --memory"),
                "A budget holds one model.",
            )
        if self.kv_directory is not None and self.kv_disk is None and self.memory is None:
            raise RequestError(
                argument("kv_directory", " is given, and nothing is written there"),
                Words("kv_disk or memory with it", "--kv-disk or --memory with it"),
            )

    @property
    def kv_disk_nbytes(self) -> int:
        """`kv_disk` in bytes. Raises RequestError."""
        if self.kv_disk is None:
            return 0 if self.memory is None else BUDGETED_KV_DISK_BYTES
        return nbytes(str(self.kv_disk or 0), argument("kv_disk"))

    @property
    def kv_place(self) -> Path:
        """The directory of the file for cache rows, if they go to disk."""
        from deepmnn.artifact.cache import cache_directory  # imports numpy

        return Path(self.kv_directory or cache_directory() / "kv")

    @property
    def draft_part(self) -> bool:
        """Whether a model's own draft part is wanted, where it has one."""
        return self.speculate == "mtp"

    @property
    def draft_model(self) -> str | os.PathLike[str] | None:
        """The name of the model that guesses tokens ahead; None where none does."""
        return None if self.speculate in (None, *DRAFTERS) else self.speculate

    @property
    def memory_nbytes(self) -> int | None:
        """`memory` in bytes."""
        if self.memory is None or isinstance(self.memory, int):
            return self.memory
        return nbytes(self.memory, argument("memory"))

    def check_backend(self, backend: str) -> None:
        """Raises RequestError when a choice is made that `backend` does not know."""
        for each in fields(self):
            value, known = getattr(self, each.name), each.metadata.get("backends", BACKENDS)
            if value != each.default and backend not in known:
                raise RequestError(
                    argument(each.name, f" is {value!r:.80} with the backend {backend!r}"),
                    Words(
                        " or ".join(f"backend {name!r}" for name in known),
                        " or ".join(f"--backend {name}" for name in known),
                    ),
                )


def check_option(name: str, value: Any, rule: Mapping[str, Any]) -> None:
    """Raises RequestError unless the rule of a field allows its value."""
    if "choices" in rule:
        valid = isinstance(value, str) and value in rule["choices"]
        expected = " or ".join(map(repr, rule["choices"]))
    elif "range" in rule:
        low, high = rule["range"]
        valid = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        expected = f"an integer from {low} to {high}"
    elif "size" in rule:
        expected = "a size such as '4GiB', '800MB' or a number of bytes"
        valid = _is_size(value, *rule["size"])
    else:
        valid, expected = isinstance(value, rule["type"]), rule["expected"]
    if not valid:
        raise RequestError(argument(name, f" is {value!r:.80}"), expected)


def _is_size(value: Any, low: int, high: int) -> bool:
    """Whether it is a number of bytes, or a text that says one."""
    if isinstance(value, str):
        try:
            value = nbytes(value, "")
        except RequestError:
            return False
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
