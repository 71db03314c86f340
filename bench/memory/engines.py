"""The engines: how each is run on a prompt, and what its output tells."""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.memory import bigmoe
from bench.memory.run import Job, Told
from bench.peers.child import ChildError
from bench.peers.deepmnn_cpu import version as deepmnn_version
from bench.peers.engine import commit
from bench.peers.ik_llama import libraries

PROGRAM = Path(__file__).with_name("gguf_run.c")


@dataclass(frozen=True)
class Engine:
    """A way to run a model.

    Attributes:
        name: on the command line. title: in the tables.
        model: whose model it takes, "deepmnn" or "gguf". source: the name of its checkout.
        settings: what the report says of a limit in bytes.
        command: the program that runs a job. ends: the phase whose end a line tells, or None.
        told: what the printed lines say.
        version: of a checkout.
        is_mapped: it reads a mapped file, as the kernel sees fit. read_ahead: the disk's setting
            while it runs, KiB; None: as it is. base: the name without that; its options are for
            this one, too.
    """

    name: str
    title: str
    model: str
    source: str
    settings: str
    command: Callable[[Job], list[str]]
    ends: Callable[[str], str | None]
    told: Callable[[Sequence[str]], Told]
    version: Callable[[Path | None], str]
    is_mapped: bool = False
    read_ahead: int | None = None
    base: str = ""


def ends(line: str) -> str | None:
    """The phase of a line of JSON, as deepmnn_run.py and gguf_run.c print them."""
    fields = _fields(line)
    return str(fields["phase"]) if fields else None


def told(lines: Sequence[str]) -> Told:
    """What these programs say."""
    phases = [fields for line in lines if (fields := _fields(line))]
    seconds = {str(fields["phase"]): float(fields["seconds"]) for fields in phases}
    ids = [int(fields["id"]) for fields in phases if "id" in fields]
    own = {str(fields["phase"]): fields["streaming"] for fields in phases if "streaming" in fields}
    return Told(seconds, len(ids), ids, own)


def _fields(line: str) -> dict[str, Any] | None:
    if not line.startswith('{"phase"'):
        return None
    try:
        found: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return found


def _deepmnn(job: Job) -> list[str]:
    request = {
        "model": str(job.model),
        "ids": str(job.ids),
        "tokens": job.tokens,
        "steps": job.steps,
        "threads": job.threads,
        "limit": job.limit,
        "logits": str(job.logits or ""),
    }
    return [job.python, "-m", "bench.memory.deepmnn_run", json.dumps(request)]


def _gguf(options: str) -> Callable[[Job], list[str]]:
    def command(job: Job) -> list[str]:
        assert job.source is not None
        program = compile_program(job.source, job.work)
        numbers = (job.tokens, job.steps, job.threads)
        words = [str(program), str(job.model), str(job.ids), *map(str, numbers)]
        return [*words, *options.split(), *job.extra]

    return command


@functools.cache
def compile_program(source: Path, work: Path) -> Path:
    """gguf_run.c for a checkout that is built in its folder `build`. Raises ChildError."""
    paths, made = libraries(source), work / f"gguf_run-{source.name}"
    if not paths:
        raise ChildError(f"{source} has no shared libraries in its folder build")
    command = ["cc", "-O2", "-o", str(made), str(PROGRAM)]
    command += [f"-I{source / folder}" for folder in ("include", "ggml/include")]
    if "prefetch_experts" in (source / "include" / "llama.h").read_text():
        command.append("-DPREFETCHES")
    for path in paths:
        command += [str(path), f"-Wl,-rpath,{path.parent}", f"-Wl,-rpath-link,{path.parent}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ChildError(f"cc: {done.stderr.strip()[-300:]}")
    return made


def _of_checkout(source: Path | None) -> str:
    return (source and commit(source)) or "version unknown"


def _llama(name: str, title: str, source: str, options: str, settings: str) -> Engine:
    run, is_mapped = _gguf(options), "map" in options.split()
    return Engine(name, title, "gguf", source, settings, run, ends, told, _of_checkout, is_mapped)


def with_read_ahead(engines: Sequence[Engine], now: int | None, other: int) -> list[Engine]:
    """The engines, and after each that maps its file the same with another read-ahead, in KiB."""
    found = []
    for engine in engines:
        found.append(engine)
        if engine.is_mapped and now != other:
            name, title = f"{engine.name}_{other}k", f"{engine.title}, read-ahead {other} KiB"
            found.append(
                replace(engine, name=name, title=title, read_ahead=other, base=engine.name)
            )
    return found


ENGINES = (
    Engine(
        "deepmnn",
        "deepmnn",
        "deepmnn",
        "",
        "w4, lm_head too; KV cache bf16; `memory=` the limit",
        _deepmnn,
        ends,
        told,
        lambda source: deepmnn_version(source) or "missing",
    ),
    _llama(
        "llama_cpp",
        "llama.cpp",
        "llama_cpp",
        "map",
        "Q4_0, mapped, not repacked (copies would not fit); flash attention auto, KV cache f16",
    ),
    _llama(
        "llama_cpp_read",
        "llama.cpp, read",
        "llama_cpp",
        "",
        "the same, but the file is read instead of mapped",
    ),
    _llama(
        "ik_llama",
        "ik_llama.cpp",
        "ik_llama",
        "map",
        "Q4_0, mapped, not repacked; MLA 3, flash attention, fused experts, KV cache f16",
    ),
    _llama(
        "ik_llama_prefetch",
        "ik_llama.cpp, prefetch",
        "ik_llama",
        "map defer prefetch",
        "the same with `--defer-experts --prefetch-experts`",
    ),
    Engine(
        "bigmoe",
        "BigMoeOnEdge",
        "gguf",
        "bigmoe",
        bigmoe.SETTINGS,
        bigmoe.command,
        bigmoe.ends,
        bigmoe.told,
        bigmoe.version,
    ),
)
DEFAULT = "deepmnn,llama_cpp,ik_llama,ik_llama_prefetch,bigmoe"
