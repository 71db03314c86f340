"""A model by any name, opened and given to its backend."""

from __future__ import annotations

import logging
import os
import weakref
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deepmnn.api.llm import LLM
from deepmnn.api.opened import Opened, open_cpu
from deepmnn.api.options import DEFAULT_KV_DTYPE, LoadOptions
from deepmnn.api.speculation import check_speculation
from deepmnn.backends.base import F32
from deepmnn.engine.kv_disk import check_directory, check_room
from deepmnn.errors import DeepmnnError, RequestError, StorageError, Words, argument, in_shell
from deepmnn.graph.caches import block_size
from deepmnn.text.needs import Needs, check_needs
from deepmnn.text.text_files import SourceFiles
from deepmnn.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from deepmnn.artifact.cache import Hold
    from deepmnn.backends.mnn.options import MnnOptions
    from deepmnn.conversion.plan import Plan
    from deepmnn.conversion.write import Progress
    from deepmnn.quant.recipe import Recipe

log = logging.getLogger("deepmnn")


def load(
    path: str | os.PathLike[str],
    backend: str | None = None,
    threads: int | None = None,
    kv_dtype: str | None = None,
    *,
    cache_tokens: int | None = None,
    kv_disk: str | int | None = None,
    kv_directory: str | os.PathLike[str] | None = None,
    max_batch_tokens: int | None = None,
    max_sequences: int = 64,
    mnn: MnnOptions | None = None,
    numa: str = "off",
    isa: str | None = None,
    mla_form: str = "auto",
    quant: str | Recipe | None = None,
    memory: str | int | None = None,
    speculate: str | os.PathLike[str] | None = None,
    speculate_tokens: int | None = None,
    options: LoadOptions | None = None,
    needs: Needs | None = None,
    progress: Progress | None = None,
) -> LLM:
    """Loads a model.

    Args:
        path: a converted model, a folder exported for MNN, a checkpoint, or the hub's OWNER/NAME or
            OWNER/NAME@REVISION. A checkpoint is converted once, into the user's cache
            (docs/models.md); the logger "deepmnn" says when and how
            large. A path that exists is never taken for a hub name.
        backend, threads, kv_dtype, cache_tokens, kv_disk, kv_directory, max_batch_tokens,
            max_sequences, mnn, numa, isa, mla_form, quant, memory, speculate, speculate_tokens: as
            `LoadOptions` says.
        options: all of these as one value, instead of them.
        needs: "tokenizer", or "chat template": refuses a model without one, and a checkpoint before
            it is converted. None: a model may do without, and works on token ids.
        progress: called with (bytes done, bytes in all, name) after each weight that is converted,
            or exported for MNN.

    Raises ArtifactError when the path is no sound model, TokenizerError when it lacks what it
    `needs`, RequestError when an argument is impossible, or the memory too little, StorageError
    when no file for KV cache rows can be made, MissingDependencyError when MNN is wanted and not
    installed; for a checkpoint as `convert`, and CheckpointError when the hub cannot be reached.
    """
    from deepmnn.api.refused import check_conversion
    from deepmnn.artifact.cache import hold
    from deepmnn.conversion.kept import converted
    from deepmnn.exporters.mnn.folder import is_exported

    given = LoadOptions(
        backend=backend,
        threads=threads,
        kv_dtype=kv_dtype,
        cache_tokens=cache_tokens,
        kv_disk=kv_disk,
        kv_directory=kv_directory,
        max_batch_tokens=max_batch_tokens,
        max_sequences=max_sequences,
        mnn=mnn,
        numa=numa,
        isa=isa,
        mla_form=mla_form,
        quant=quant,
        memory=memory,
        speculate=speculate,
        speculate_tokens=speculate_tokens,
    )
    chosen = given if options is None else _only(options, given)
    exported = os.path.lexists(path) and is_exported(Path(path))
    name = chosen.backend or ("mnn" if exported else "cpu")
    _check_backend(path, name, exported, chosen)
    if chosen.kv_disk_nbytes and name != "mnn":  # which does not hand its rows out
        chosen = _with_kv_disk(chosen)

    def check(plan: Plan) -> None:
        files = SourceFiles(plan.source, Path(path))
        check_needs(needs, files, Path(path), lambda: Tokenizer(files))
        if chosen.memory_nbytes is not None:
            check_conversion(plan, chosen.memory_nbytes)

    holds = [hold(Path(path)) if exported else converted(path, chosen.quant, progress, check)]
    try:
        if name == "mnn":
            opened = _open_mnn(holds, exported, chosen, progress)
        elif name == "cpu":
            opened = open_cpu(holds[0].path, chosen)
        else:
            opened = _open_reference(holds[0].path, chosen)
    except BaseException:
        for each in holds:
            each.release()
        raise
    for each in holds:
        weakref.finalize(opened.backend, each.release)  # the backend reads the files
    model = LLM(
        opened.artifact,
        opened.text_files,
        opened.backend,
        chosen,
        opened.split,
        opened.tokenizer,
    )
    check_needs(needs, model.text_files, Path(path), lambda: model.tokenizer)
    if chosen.draft_model is not None:
        guessing = replace(chosen, speculate="off", speculate_tokens=None, kv_disk=0, quant=None)
        guessing = replace(guessing, cache_tokens=None, kv_directory=None)
        try:
            model.draft = load(chosen.draft_model, options=guessing, progress=progress)
        except DeepmnnError as fault:
            raise _of_draft(fault) from None
    check_speculation(model)
    return model


def _of_draft(fault: DeepmnnError) -> DeepmnnError:
    """The fault of loading a drafter: it may be a word that was mistyped."""
    told = Words(f"speculate: {fault.found}", f"--speculate: {in_shell(fault.found)}")
    words, shell = "'auto', 'mtp', 'ngram', 'off' or a model", "auto, mtp, ngram, off or a model"
    if fault.expected:
        words, shell = f"{words}: {fault.expected}", f"{shell}: {in_shell(fault.expected)}"
    return type(fault)(told, Words(words, shell), fault.hint)


_MNN = Words("backend 'mnn'", "--backend mnn")


def _with_kv_disk(chosen: LoadOptions) -> LoadOptions:
    """Without room for rows on disk where nobody asked for it and no file can be made; raises
    StorageError where somebody did.
    """
    try:
        check_directory(chosen.kv_place, budget=chosen.memory is not None)
    except StorageError as error:
        if chosen.kv_disk is not None or chosen.kv_directory is not None:
            raise
        log.info("no rows of the KV cache go to disk: %s", error)
        return replace(chosen, kv_disk=0)
    return chosen


def _only(options: LoadOptions, given: LoadOptions) -> LoadOptions:
    """The options, when nothing else is given with them. Raises RequestError."""
    if not isinstance(options, LoadOptions):
        raise RequestError(f"options is {options!r:.80}", "deepmnn.LoadOptions")
    others = [f.name for f in fields(given) if getattr(given, f.name) != f.default]
    if others:
        raise RequestError(
            f"options and {' and '.join(others)} are given",
            "one or the other",
            "Put all in options.",
        )
    return options


def _check_backend(
    path: str | os.PathLike[str], backend: str, exported: bool, options: LoadOptions
) -> None:
    """Raises RequestError unless the backend can run this with these options."""
    if backend == "mnn":
        from deepmnn.backends.mnn.backend import check_kv_dtype

        check_kv_dtype(options.kv_dtype or DEFAULT_KV_DTYPE)
        if options.speculate not in (None, "auto", "off"):
            raise RequestError(
                argument("speculate", f" is {str(options.speculate)!r:.80} with the backend 'mnn'"),
                Words("speculate 'off', or backend 'cpu'", "--speculate off, or --backend cpu"),
            )
    elif exported:
        raise RequestError(
            f"{path} is a folder for MNN, the backend is {backend!r}",
            _MNN,
            "Load the converted model that it was exported from.",
        )
    elif options.mnn is not None:
        raise RequestError(
            Words(
                f"mnn's memory, precision or mmap are given with the backend {backend!r}",
                f"--mnn-memory or --precision are given with the backend {backend!r}",
            ),
            _MNN,
        )
    if exported and options.quant is not None:
        raise RequestError(
            f"{path} is a folder for MNN, its weights have their formats",
            Words("no quant", "no --quant"),
            "Convert the checkpoint with another recipe, and export that.",
        )
    options.check_backend(backend)


def _open_mnn(
    holds: list[Hold],
    exported: bool,
    options: LoadOptions,
    progress: Progress | None,
) -> Opened:
    """The model as it was given, and MNN with it.

    holds: the model's; that of the folder it is exported to comes with it.
    """
    from deepmnn.api.refused import check_mnn
    from deepmnn.artifact.reader import Artifact
    from deepmnn.backends.mnn.backend import MnnBackend
    from deepmnn.exporters.mnn.cached import exported_model
    from deepmnn.exporters.mnn.folder import MnnFolder

    artifact = None if exported else Artifact.open(holds[0].path)
    if artifact is not None:
        holds.append(exported_model(artifact, progress))
    folder = MnnFolder.open(holds[-1].path)
    if options.memory_nbytes is not None:
        check_mnn(folder, options)
    backend = MnnBackend(folder, options.threads or 0, options.mnn)
    return Opened(artifact or folder, folder.text_files, backend)


def _open_reference(path: Path, options: LoadOptions) -> Opened:
    """What `convert` wrote, and numpy to run it."""
    from deepmnn.artifact.reader import Artifact
    from deepmnn.backends.reference import ReferenceBackend
    from deepmnn.quant.store import stored_values

    artifact = Artifact.open(path)
    parts = artifact.parts()
    weights = parts.weights

    def read_weight(name: str) -> F32:
        return stored_values(weights[name], artifact.tensor(name))

    form = "absorbed" if options.mla_form == "absorbed" else "expanded"
    draft = parts.draft if options.draft_part else None
    backend = ReferenceBackend(parts.main, read_weight, form, draft)
    if options.kv_disk_nbytes:
        size = block_size(backend.caches)
        block = backend.new_cache(1, size, options.kv_dtype or DEFAULT_KV_DTYPE)
        check_room(options.kv_disk_nbytes, block.block_nbytes)
    return Opened(artifact, artifact.text_files, backend)
