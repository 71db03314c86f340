"""A converted model or an exported folder, opened and given to its backend."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deepmnn.api.llm import LLM
from deepmnn.api.options import BACKENDS, KV_DTYPES, MAX_SIZE, NUMA_MODES
from deepmnn.backends.base import F32, Backend
from deepmnn.errors import ArtifactError, RequestError

if TYPE_CHECKING:
    from deepmnn.artifact.reader import Artifact
    from deepmnn.backends.mnn.backend import MnnOptions
    from deepmnn.conversion.convert import Progress
    from deepmnn.exporters.mnn.folder import MnnFolder


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
    progress: Progress | None = None,
) -> LLM:
    """Loads a converted model.

    Args:
        path: the directory that `convert` wrote, or the folder that `export` wrote for MNN.
        backend: "cpu" (the C++ engine), "mnn" (the MNN wheel; exports a converted model at first
            use, into the user's cache) or "reference" (numpy; slow, the oracle). None takes "mnn"
            for an exported folder and "cpu" for anything else.
        threads: worker threads; None takes one for each physical core. Not more than there are
            hardware threads are started.
        kv_dtype: how the KV cache is stored, "f32", "bf16" or "int8" (by MNN always
            "f32").
        cache_tokens: rows of the KV cache, shared by all sequences that run together; None takes
            four full contexts, but at most 1 GiB.
        max_batch_tokens: tokens of one step; longer prompts are prefilled in chunks.
        max_sequences: sequences that run together; MNN runs one at a time.
        mnn: how MNN computes.
        numa: for machines with several memory nodes, the C++ engine only: "distribute" spreads
            threads and a private copy of the weights over all nodes, "isolate" keeps to the node
            this process runs on (docs/numa.md). With one node nothing changes.
        progress: called while a converted model is exported for MNN, as by `export`.

    Raises ArtifactError when the directory is not a sound converted model, RequestError when an
    argument is impossible, MissingDependencyError when MNN is wanted and not installed.
    """
    from deepmnn.exporters.mnn.folder import is_exported

    path = Path(path)
    exported = is_exported(path)
    backend = ("mnn" if exported else "cpu") if backend is None else backend
    _check_backend(path, backend, exported, kv_dtype, mnn)
    if numa not in NUMA_MODES or (numa != "off" and backend != "cpu"):
        expected = " or ".join(map(repr, NUMA_MODES)) + ", other than 'off' with the backend 'cpu'"
        raise RequestError(f"numa is {numa!r:.80} with the backend {backend!r}", expected)
    sizes = {"max_batch_tokens": max_batch_tokens, "max_sequences": max_sequences}
    optional = {"threads": threads, "cache_tokens": cache_tokens}
    for name, value in {**sizes, **{k: v for k, v in optional.items() if v is not None}}.items():
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_SIZE:
            raise RequestError(f"{name} is {value!r}", f"an integer from 1 to {MAX_SIZE}")
    opened = (
        _open_mnn(path, exported, threads, mnn, progress)
        if backend == "mnn"
        else _open_converted(path, backend, threads, numa)
    )
    return LLM(*opened, kv_dtype, cache_tokens, max_batch_tokens, max_sequences)


def _check_backend(
    path: Path, backend: str, exported: bool, kv_dtype: str, mnn: MnnOptions | None
) -> None:
    """Raises RequestError unless the backend can run this with these options."""
    if backend not in BACKENDS:
        raise RequestError(f"backend is {backend!r:.80}", " or ".join(map(repr, BACKENDS)))
    if kv_dtype not in tuple(KV_DTYPES):
        raise RequestError(f"kv_dtype is {kv_dtype!r}", " or ".join(map(repr, KV_DTYPES)))
    if backend == "mnn":
        from deepmnn.backends.mnn.backend import MnnOptions, check_kv_dtype

        check_kv_dtype(kv_dtype)
        if not isinstance(mnn, MnnOptions | None):
            raise RequestError(f"mnn is {mnn!r:.80}", "deepmnn.MnnOptions")
    elif exported:
        raise RequestError(
            f"{path} is a folder for MNN, the backend is {backend!r}",
            "backend 'mnn'",
            "Load the converted model that it was exported from.",
        )
    elif mnn is not None:
        raise RequestError(
            f"memory, precision or mmap are given with the backend {backend!r}", "backend 'mnn'"
        )


def _open_mnn(
    path: Path,
    exported: bool,
    threads: int | None,
    options: MnnOptions | None,
    progress: Progress | None,
) -> tuple[Artifact | MnnFolder, Path, Backend]:
    """The model as it was given, its tokenizer's directory and the backend."""
    from deepmnn.backends.mnn.backend import MnnBackend
    from deepmnn.exporters.mnn.cached import exported_model
    from deepmnn.exporters.mnn.folder import MnnFolder

    artifact = None if exported else open_artifact(path)
    folder = MnnFolder.open(path if artifact is None else exported_model(artifact, progress))
    backend = MnnBackend(folder, threads or 0, options)
    return artifact or folder, folder.sidecar, backend


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
    path: Path, backend: str, threads: int | None, numa: str
) -> tuple[Artifact, Path, Backend]:
    """What `convert` wrote, its tokenizer's directory and the backend."""
    artifact = open_artifact(path)
    if backend == "cpu":
        from deepmnn.backends.cpu.backend import CpuBackend

        return artifact, path, CpuBackend(path, threads or 0, numa=numa)
    from deepmnn.backends.reference import ReferenceBackend
    from deepmnn.quant.store import stored_values

    graph = artifact.graph()

    def read_weight(name: str) -> F32:
        return stored_values(graph.weights[name], artifact.tensor(name))

    return artifact, path, ReferenceBackend(graph, read_weight)
