"""A converted model or an exported folder, opened and given to its backend."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from deepmnn.api.llm import LLM
from deepmnn.api.options import LoadOptions
from deepmnn.backends.base import F32, Backend
from deepmnn.errors import ArtifactError, RequestError

if TYPE_CHECKING:
    from deepmnn.artifact.reader import Artifact
    from deepmnn.backends.mnn.options import MnnOptions
    from deepmnn.conversion.write import Progress
    from deepmnn.exporters.mnn.folder import MnnFolder
    from deepmnn.text.text_files import TextFiles


def load(
    path: str | Path,
    backend: str | None = None,
    threads: int | None = None,
    kv_dtype: str = "f32",
    *,
    cache_tokens: int | None = None,
    max_batch_tokens: int = 512,
    max_sequences: int = 64,
    mnn: MnnOptions | None = None,
    numa: str = "off",
    isa: str | None = None,
    mla_form: str = "auto",
    options: LoadOptions | None = None,
    progress: Progress | None = None,
) -> LLM:
    """Loads a converted model.

    Args:
        path: the directory that `convert` wrote, or the folder that `export` wrote for MNN.
        backend, threads, kv_dtype, cache_tokens, max_batch_tokens, max_sequences, mnn, numa, isa,
            mla_form: as `LoadOptions` says.
        options: all of these as one value, instead of them.
        progress: called while a converted model is exported for MNN, as by `export`.

    Raises ArtifactError when the directory is not a sound converted model, RequestError when an
    argument is impossible, MissingDependencyError when MNN is wanted and not installed.
    """
    from deepmnn.exporters.mnn.folder import is_exported

    given = LoadOptions(
        backend=backend,
        threads=threads,
        kv_dtype=kv_dtype,
        cache_tokens=cache_tokens,
        max_batch_tokens=max_batch_tokens,
        max_sequences=max_sequences,
        mnn=mnn,
        numa=numa,
        isa=isa,
        mla_form=mla_form,
    )
    chosen = given if options is None else _only(options, given)
    path = Path(path)
    exported = is_exported(path)
    name = chosen.backend or ("mnn" if exported else "cpu")
    _check_backend(path, name, exported, chosen)
    if name == "mnn":
        return LLM(*_open_mnn(path, exported, chosen, progress), chosen)
    return LLM(*_open_converted(path, name, chosen), chosen)


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


def _check_backend(path: Path, backend: str, exported: bool, options: LoadOptions) -> None:
    """Raises RequestError unless the backend can run this with these options."""
    if backend == "mnn":
        from deepmnn.backends.mnn.backend import check_kv_dtype

        check_kv_dtype(options.kv_dtype)
    elif exported:
        raise RequestError(
            f"{path} is a folder for MNN, the backend is {backend!r}",
            "backend 'mnn'",
            "Load the converted model that it was exported from.",
        )
    elif options.mnn is not None:
        raise RequestError(
            f"memory, precision or mmap are given with the backend {backend!r}", "backend 'mnn'"
        )
    options.check_backend(backend)


def _open_mnn(
    path: Path,
    exported: bool,
    options: LoadOptions,
    progress: Progress | None,
) -> tuple[Artifact | MnnFolder, TextFiles, Backend]:
    """The model as it was given, its tokenizer's files and the backend."""
    from deepmnn.backends.mnn.backend import MnnBackend
    from deepmnn.exporters.mnn.cached import exported_model
    from deepmnn.exporters.mnn.folder import MnnFolder

    artifact = None if exported else open_artifact(path)
    folder = MnnFolder.open(path if artifact is None else exported_model(artifact, progress))
    backend = MnnBackend(folder, options.threads or 0, options.mnn)
    return artifact or folder, folder.text_files, backend


def open_artifact(path: str | Path) -> Artifact:
    """The converted model at path, checked. Raises ArtifactError."""
    from deepmnn.artifact.reader import Artifact

    path = Path(path)
    if (path / "config.json").is_file() and not (path / "deepmnn.json").is_file():
        raise ArtifactError(
            f"{path} is a checkpoint",
            "a converted model (a directory with deepmnn.json)",
            f"Run: deepmnn convert {path} OUT",
        )
    return Artifact.open(path)


def _open_converted(
    path: Path, backend: str, options: LoadOptions
) -> tuple[Artifact, TextFiles, Backend]:
    """What `convert` wrote, its tokenizer's files and the backend."""
    artifact = open_artifact(path)
    if backend == "cpu":
        from deepmnn.backends.cpu.backend import CpuBackend

        threads, isa = options.threads or 0, options.isa or ""
        cpu = CpuBackend(path, threads, isa, options.mla_form, options.numa)
        return artifact, artifact.text_files, cpu
    from deepmnn.backends.reference import ReferenceBackend
    from deepmnn.quant.store import stored_values

    graph = artifact.graph()

    def read_weight(name: str) -> F32:
        return stored_values(graph.weights[name], artifact.tensor(name))

    form = "absorbed" if options.mla_form == "absorbed" else "expanded"
    return artifact, artifact.text_files, ReferenceBackend(graph, read_weight, form)
