"""A model's memory and speed before it is loaded, from its config.json alone if need be."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from deepmnn import _core
from deepmnn.api.memory import VARIES_NBYTES, Demand, Split, least_budget, split
from deepmnn.api.options import KV_DTYPES, LoadOptions
from deepmnn.api.process_memory import machine_nbytes
from deepmnn.artifact.manifest import PROGRAM
from deepmnn.artifact.reader import Artifact
from deepmnn.conversion.convert import plan_conversion
from deepmnn.conversion.kept import described
from deepmnn.conversion.need import working_nbytes
from deepmnn.errors import ArtifactError, RequestError, Words
from deepmnn.graph.workload import Workload
from deepmnn.measure.disk import measure_disk
from deepmnn.measure.expected import Speeds, Step, decode_step, prefill_step
from deepmnn.measure.fresh_memory import measure_fresh_memory
from deepmnn.models import read_config
from deepmnn.quant.recipe import DEFAULT, Recipe
from deepmnn.source.json_file import read_small
from deepmnn.source.open import has_weights, is_converted
from deepmnn.source.sizes import file_size
from deepmnn.text.constraint import can_hold_answers
from deepmnn.text.tokenizer import FILE

PROMPT = 512
"""Tokens of the prompt whose speed is told."""

USUAL_PROCESS = 110 << 20
"""Of Python and the libraries, where it cannot be measured."""

_ASK = """
import sys
from contextlib import suppress
import deepmnn.cli
from deepmnn.api import llm, loading, opened
from deepmnn.api.process_memory import give_back, held_nbytes
from deepmnn.backends.cpu import backend
from deepmnn.text.tokenizer import Tokenizer
with suppress(ImportError):
    import deepmnn.serve.run
kept = Tokenizer(sys.argv[1]) if sys.argv[1] else None
give_back()
print(held_nbytes(), int(kept is not None and kept.has_chat_template))
"""


@dataclass(frozen=True)
class Subject:
    """A model as far as its memory and speed are concerned.

    Attributes:
        name: what its user calls it.
        recipe: how its weights are stored.
        data: program.bin.
        workload: what a token costs.
        context_length: the longest sequence that it takes.
        files: its weight files, where there are any.
        process: bytes of a process that has its tokenizer.
        templates: whether it has a chat template.
        tokenizer: whether it has a tokenizer, or may have one.
        convertible: the path that could be converted otherwise; None for a converted model.
        converting: bytes that converting it takes, and files beside them; 0 for a converted model.
    """

    name: str
    recipe: str
    data: bytes
    workload: Workload
    context_length: int
    files: tuple[Path, ...] = ()
    process: int = USUAL_PROCESS
    templates: bool = True
    tokenizer: bool = True
    convertible: Path | None = None
    converting: int = 0

    @staticmethod
    def open(name: str, quant: str | Recipe | None = None) -> Subject:
        """Of a converted model, a checkpoint, a config.json or a name of the hub; quant: how a
        checkpoint would be converted.

        Raises as `described` and `convert`, and RequestError for a quant of a converted model.
        """
        path = described(name)
        if path.is_dir() and is_converted(path):
            if quant is not None:
                raise RequestError(
                    f"{path} is converted already",
                    Words("a checkpoint, or no quant", "a checkpoint, or no --quant"),
                )
            return _artifact(name, Artifact.open(path, verify=False))
        return _checkpoint(name, path, DEFAULT if quant is None else quant)

    def demand(self, options: LoadOptions) -> Demand:
        """What it asks for, in a process of its own."""
        threads = options.threads or _core.available_cores()
        grammars = self.tokenizer and can_hold_answers()
        return Demand(
            self.data,
            self.context_length,
            threads,
            self.process,
            self.templates,
            grammars,
            options.draft_part,
        )


def _artifact(name: str, artifact: Artifact) -> Subject:
    data = read_small(artifact.path / PROGRAM, ArtifactError)
    process, templates = _process(artifact.path if FILE in artifact.text_files else None)
    return Subject(
        name=name,
        recipe=artifact.manifest["quant"],
        data=data,
        workload=Workload.of(artifact.graph()),
        context_length=read_config(artifact.config).context_length,
        files=tuple(artifact.path / record["file"] for record in artifact.manifest["shards"]),
        process=process,
        templates=templates,
        tokenizer=FILE in artifact.text_files,
    )


def _checkpoint(name: str, path: Path, quant: str | Recipe) -> Subject:
    plan = plan_conversion(path, quant, random_weights=not has_weights(path))
    folder = path if path.is_dir() else path.parent
    tokenizer = (folder / FILE).is_file()
    process, templates = _process(folder if tokenizer else None)
    return Subject(
        name=name,
        recipe=plan.recipe.name,
        data=plan.program(plan.locations),
        workload=Workload.of(plan.graph),
        context_length=read_config(plan.source.config).context_length,
        files=tuple(sorted(folder.glob("*.safetensors"))),
        process=process,
        templates=templates,
        tokenizer=tokenizer or not has_weights(path),
        convertible=path,
        converting=process + working_nbytes(plan),
    )


def _process(tokenizer: Path | None) -> tuple[int, bool]:
    """Bytes of a process that is ready to load a model, measured in one that has what the largest
    verb has, `serve` where it is installed; whether the model has a chat template.

    tokenizer: the directory it lies in.
    """
    where = "" if tokenizer is None else os.fspath(tokenizer)
    try:
        said = subprocess.run(
            [sys.executable, "-c", _ASK, where], capture_output=True, check=True, timeout=60
        )
        held, templates = said.stdout.split()
        return int(held) or USUAL_PROCESS, bool(int(templates))
    except (OSError, ValueError, subprocess.SubprocessError):
        return USUAL_PROCESS, True


@dataclass(frozen=True)
class Advice:
    """Something else, and what it would give: tokens per second."""

    what: str
    prefill: float
    decode: float


@dataclass(frozen=True)
class Planned:
    """A model in a budget.

    Attributes:
        split: of the memory.
        least: the smallest budget in which it runs, in bytes.
        first: a prompt of PROMPT tokens, the first after loading. prefill: a later one.
        decode: a token after it.
    """

    split: Split
    least: int
    first: Step
    prefill: Step
    decode: Step


def planned(
    subject: Subject,
    options: LoadOptions,
    speeds: Speeds,
    hit_rate: float | None = None,
) -> Planned:
    """What a model does in a budget; `options.memory` None: what the machine has.

    Raises RequestError where nothing fits.
    """
    demand = subject.demand(options)
    budget = options.memory_nbytes or machine_nbytes()
    found = split(demand, options, budget)
    element = KV_DTYPES[found.sizes.kv_dtype]
    context = min(PROMPT, subject.context_length)
    load, weights = subject.workload, found.weights
    longest = found.sizes.max_batch_tokens
    return Planned(
        split=found,
        least=least_budget(demand, options) + VARIES_NBYTES,
        first=prefill_step(load, weights, speeds, context, longest, first=True),
        prefill=prefill_step(load, weights, speeds, context, longest, first=False),
        decode=decode_step(load, weights, speeds, context, element, hit_rate),
    )


def advice(
    subject: Subject,
    options: LoadOptions,
    speeds: Speeds,
    now: Planned,
    hit_rate: float | None = None,
) -> list[Advice]:
    """What else would give more, by planning it; the most decode first, then the most prefill.

    Nothing where all weights fit. Other things that do not help are left out.
    """
    if now.split.weights.mapped:
        return []
    whole, budget = now.split.whole, now.split.budget
    tries: list[tuple[str, Subject, LoadOptions, Speeds]] = []
    for factor in (1.5, 2.0):
        if budget * factor < 0.9 * whole:  # else all of them are hardly more
            more = int(budget * factor)
            tries.append(
                (f"memory {file_size(more)}", subject, replace(options, memory=more), speeds)
            )
    tries.append(
        (f"memory {file_size(whole)}, all weights", subject, replace(options, memory=whole), speeds)
    )
    faster = replace(speeds, disk=2 * speeds.disk, latency=speeds.latency / 2)
    tries.append(("a disk twice as fast", subject, options, faster))
    if now.split.sizes.kv_dtype != "int8":
        tries.append(
            ("keys and values in int8", subject, replace(options, kv_dtype="int8"), speeds)
        )
    sizes = now.split.sizes
    chunk = replace(
        options,
        max_batch_tokens=4 * sizes.max_batch_tokens,
        cache_tokens=sizes.cache_tokens,
        kv_dtype=sizes.kv_dtype,
    )
    tries.append((f"steps of {chunk.max_batch_tokens} tokens", subject, chunk, speeds))
    if subject.convertible is not None and subject.recipe != "w4":
        smaller = _checkpoint(subject.name, subject.convertible, quant="w4")
        tries.append(("weights in w4", smaller, options, speeds))
    return _better(tries, now, hit_rate)


def _better(
    tries: Sequence[tuple[str, Subject, LoadOptions, Speeds]],
    now: Planned,
    hit_rate: float | None,
) -> list[Advice]:
    found = []
    for what, subject, options, speeds in tries:
        try:
            then = planned(subject, options, speeds, hit_rate)
        except RequestError:  # a larger chunk may not fit
            continue
        prefill, decode = then.prefill.tokens_per_second, then.decode.tokens_per_second
        gain = max(prefill / now.prefill.tokens_per_second, decode / now.decode.tokens_per_second)
        if gain > 1.05:
            found.append(Advice(what, prefill, decode))
    return sorted(found, key=lambda each: (-each.decode, -each.prefill))


def machine_speeds(
    subject: Subject, threads: int | None = None, disk_bandwidth: float | None = None
) -> Speeds:
    """Of this machine, measured in about four seconds; of the disk with the model's files, in
    blocks of an expert. disk_bandwidth: given, bytes per second.

    Raises StorageError when the disk cannot be measured.
    """
    workers = threads or _core.available_cores()
    fresh = measure_fresh_memory()  # first: what other measurements leave is not fresh
    latency, bandwidth = 100e-6, disk_bandwidth
    if bandwidth is None:
        block = max((int(layer.nbytes) for layer in subject.workload.experts), default=4 << 20)
        disk = measure_disk(subject.files, block)
        bandwidth, latency = disk.bandwidth, disk.latency
    return Speeds(
        disk=bandwidth,
        latency=latency,
        memory=median(float(_core.measure_read_bandwidth(workers)) for _ in range(3)),
        int8_macs=median(float(_core.measure_int8_peak(workers)) for _ in range(3)),
        fresh=fresh,
    )
