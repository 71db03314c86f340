"""A model's files and what runs them, within a budget of memory where there is one."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deepmnn import _core
from deepmnn.api.memory import Demand, Split, split
from deepmnn.api.options import (
    DEFAULT_BATCH_TOKENS,
    DEFAULT_CACHE_BYTES,
    DEFAULT_KV_DTYPE,
    LoadOptions,
)
from deepmnn.api.process_memory import give_back, held_nbytes, machine_nbytes
from deepmnn.artifact.manifest import PROGRAM, VERIFY_ALWAYS_BYTES
from deepmnn.artifact.reader import Artifact
from deepmnn.backends.base import Backend
from deepmnn.backends.cpu.program import read_program
from deepmnn.engine.kv_disk import check_room
from deepmnn.errors import ArtifactError, TokenizerError
from deepmnn.graph.caches import LEAST_BLOCK_SIZE, block_nbytes, block_size
from deepmnn.models import read_config
from deepmnn.source.json_file import read_small
from deepmnn.text.constraint import can_hold_answers
from deepmnn.text.text_files import TextFiles
from deepmnn.text.tokenizer import FILE, Tokenizer

if TYPE_CHECKING:
    from deepmnn.exporters.mnn.folder import MnnFolder

PLENTY = 2 << 30
"""Bytes left beside weights and KV cache with which nothing has to be counted."""

MOST_ROW_NBYTES = 1 << 20
"""A token takes no more in the KV cache of any model that is known."""

log = logging.getLogger("deepmnn")


@dataclass(frozen=True)
class Opened:
    """A model that can be asked.

    Attributes:
        artifact: as it was given.
        text_files: the tokenizer's and other small files.
        backend: what runs the steps.
        split: what everything gets of the memory; None where that was not counted.
        tokenizer: where it was read already, to know what it takes.
    """

    artifact: Artifact | MnnFolder
    text_files: TextFiles
    backend: Backend
    split: Split | None = None
    tokenizer: Tokenizer | None = None


def open_cpu(path: Path, options: LoadOptions) -> Opened:
    """What `convert` wrote, on the C++ engine; with its draft part, where that is wanted, it has
    one and there is room.

    Raises ArtifactError, and RequestError for a budget in which the model does not run, or no room
    for a block of the KV cache on disk, before a weight is read.
    """
    from deepmnn.backends.cpu.backend import CpuBackend

    artifact = Artifact.open(path, verify=False)
    artifact.check_program()
    budget, tokenizer = None, None
    if options.memory_nbytes is not None or not _is_plenty(artifact, options):
        tokenizer = sound_tokenizer(artifact.text_files)
        budget = fitted(artifact, options, tokenizer)
    drafts = options.draft_part and (budget is None or budget.draft)
    if 0 < options.kv_disk_nbytes < LEAST_BLOCK_SIZE * MOST_ROW_NBYTES:  # a block may be larger
        dtype = budget.sizes.kv_dtype if budget is not None else options.kv_dtype
        program = read_program(read_small(path / PROGRAM, ArtifactError))
        caches = (program if drafts else program.without_draft()).caches
        kept, _ = block_nbytes(caches, block_size(caches), dtype or DEFAULT_KV_DTYPE)
        check_room(options.kv_disk_nbytes, kept)
    streamed = budget is not None and budget.is_streamed
    if artifact.weights_nbytes <= VERIFY_ALWAYS_BYTES:
        artifact.verify(forget=streamed)
    if budget is not None and (streamed or options.memory_nbytes is not None):
        for change in budget.changes:
            log.info("memory is short: %s", change)
    if budget is not None and streamed:
        log.info("%s", budget.line())
    backend = CpuBackend(
        path,
        options.threads or 0,
        options.isa or "",
        options.mla_form,
        options.numa,
        budget.room if budget is not None and streamed else 0,
        budget.step.working if budget is not None else 0,
        drafts,
    )
    return Opened(artifact, artifact.text_files, backend, budget, tokenizer)


def demand(
    data: bytes,
    context_length: int,
    options: LoadOptions,
    tokenizer: Tokenizer | None,
) -> Demand:
    """What a model asks for in this process, as it is now.

    data: program.bin. tokenizer: the model's, which this process has.
    """
    made = Demand(
        data,
        context_length,
        options.threads or _core.available_cores(),
        process=0,
        templates=tokenizer is not None and tokenizer.has_chat_template,
        grammars=tokenizer is not None and can_hold_answers(),
        draft=options.draft_part,
    )
    _ = made.program, made.weights  # what this takes is the process's from now on
    give_back()
    return replace(made, process=held_nbytes())


def _is_plenty(artifact: Artifact, options: LoadOptions) -> bool:
    """Whether the machine has so much that nothing needs to be counted."""
    rows = options.cache_tokens
    kv = DEFAULT_CACHE_BYTES if rows is None else rows * MOST_ROW_NBYTES
    step = PLENTY * -(-(options.max_batch_tokens or 1) // DEFAULT_BATCH_TOKENS)
    return artifact.weights_nbytes + kv + step <= _core.available_memory()


def sound_tokenizer(files: TextFiles) -> Tokenizer | None:
    """The model's, where it has a sound one: whoever needs it is told what is wrong."""
    if FILE not in files:
        return None
    try:
        return Tokenizer(files)
    except TokenizerError:
        return None


def fitted(artifact: Artifact, options: LoadOptions, tokenizer: Tokenizer | None) -> Split:
    """The budget that is in force for a model in this process, split.

    tokenizer: of the model, where this process has it.

    Raises RequestError where nothing fits.
    """
    data = read_small(artifact.path / PROGRAM, ArtifactError)
    length = read_config(artifact.config).context_length
    wanted = demand(data, length, options, tokenizer)
    machine = machine_nbytes()
    return split(wanted, options, min(options.memory_nbytes or machine, machine))
