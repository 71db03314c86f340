"""Artifact → MNN model folder: the graph lowered, every weight read, rewritten and let go."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from deepmnn.artifact.manifest import CONFIG
from deepmnn.artifact.reader import Artifact
from deepmnn.backends.mnn.wheel import VERSION, convert_tool, runtime
from deepmnn.conversion.write import Progress
from deepmnn.errors import ArtifactError, RequestError
from deepmnn.exporters.mnn import embedding
from deepmnn.exporters.mnn.folder import FORMAT, FORMAT_VERSION
from deepmnn.exporters.mnn.lower import Lowering, choose_mla_form
from deepmnn.exporters.mnn.mtok import FILE as TOKENIZER
from deepmnn.exporters.mnn.names import Names
from deepmnn.exporters.mnn.settings import llm_config, runtime_config, text_side
from deepmnn.exporters.mnn.weights import Storing, WeightFile
from deepmnn.exporters.mnn.writer import FolderWriter
from deepmnn.formats import U8
from deepmnn.graph.ir import Graph, Weight
from deepmnn.graph.workload import Workload
from deepmnn.models import read_config
from deepmnn.source.json_file import is_plain_name
from deepmnn.source.side_files import read_side_files

FLOAT_DTYPES = ("f32", "fp16")


@dataclass(frozen=True)
class ExportReport:
    """What an export did.

    Attributes:
        path: the folder, or the .mnn file.
        nbytes: bytes of the weights and the embedding table.
        mla_form: "expanded" or "absorbed"; "" when the model has no latent attention.
        ops: operators of the network, experts included.
        note: what a template or tokenizer could not carry over; "" when all was.
        seconds: time taken.
    """

    path: Path
    nbytes: int
    mla_form: str
    ops: int
    note: str
    seconds: float

    @property
    def contents(self) -> str:
        """What is in it, in a few words."""
        form = f", latent attention {self.mla_form}" if self.mla_form else ""
        return f"{self.ops} MNN ops{form}"


def export(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    stem: str | None = None,
    mla_form: str = "auto",
    float_dtype: str | None = None,
    bits: int | None = None,
    block_size: int | None = None,
    biz_code: str = "",
    needs_tokenizer: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Exports a converted model for MNN 3.6.1.

    Quantised weights are rounded anew, to MNN's blocks of 4 or 8 bits. Needs memory for one weight
    and for the description of the network. Written to a temporary directory and renamed when
    complete.

    Args:
        source: an artifact.
        target: the folder to create; with `stem`, an existing directory.
        stem: writes STEM.mnn and files named after it beside what is there already.
        mla_form: what latent attention caches: "expanded" keys and values (faster), "absorbed"
            latents (far smaller), or "auto": expanded while 4096 tokens take at most 3 GiB.
        float_dtype: "fp16" stores matrices of floats in half the bytes, "f32" as they are; None:
            bf16 ones as fp16, float32 ones as they are.
        bits: rounds matrices of floats, too, but for routers: 4 (the embedding and MLA's
            up-projections 8) or 8; None: they stay floats.
        block_size: columns of a quantised matrix that share a scale; None: 64 with 4 bits, 128 with
            8, or the largest part of these that divides the columns.
        biz_code: a name stored in the network (MNN's bizCode).
        needs_tokenizer: refuses a tokenizer that MNN has no form for, which a phone needs;
            otherwise the folder then runs from deepmnn, or by token ids.
        overwrite: replaces an earlier export.
        progress: called after each weight.

    Raises ArtifactError, RequestError, UnsupportedModelError (an op MNN lacks),
    MissingDependencyError (the MNN wheel) or StorageError.
    """
    began = time.monotonic()
    if float_dtype not in (None, *FLOAT_DTYPES):
        raise RequestError(f"float_dtype is {float_dtype!r:.40}", " or ".join(FLOAT_DTYPES))
    if stem is not None and not is_plain_name(stem):
        raise RequestError(f"the model's name is {stem!r:.80}", "a file name without directories")
    storing = Storing(float_dtype == "fp16", bits, block_size)
    runtime()  # that it is missing must not show after all has been written
    artifact = Artifact.open(source)
    graph, names = artifact.graph(), Names(stem)
    form, table = choose_mla_form(graph, mla_form), _embedding_weight(graph)
    text = text_side(artifact, table.shape[0], needs_tokenizer)
    with FolderWriter(Path(target), names, overwrite, (artifact.path,)) as writer:
        writer.check_space(artifact.unshared_nbytes)
        read = _Reader(artifact, graph, progress)
        with writer.stream(names.weight) as sink:
            weights = WeightFile(sink, storing)
            context = read_config(artifact.config).context_length
            low = Lowering(graph, read, weights, context, form, biz_code)
            model = low.run()
        embedded, tied, nbytes = _write_embedding(writer, names, table, read, weights)
        read.finish()
        _convert(writer, names, low)
        writer.add_file(names.of(TOKENIZER), text.tokenizer)
        writer.add_json(names.of("llm_config.json"), llm_config(artifact, low, text, tied))
        settings = runtime_config(artifact, names, text, embedded)
        writer.add_settings(names.of("config.json"), settings)
        config = artifact.path / CONFIG
        for name, data in read_side_files(artifact.path, config, ArtifactError).items():
            if name in artifact.text_files:
                writer.add_file(f"{names.sidecar}/{name}", data)
        workload = replace(Workload.of(graph).in_form(form), cache_width=low.cache_width)
        writer.commit(
            {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "mnn_version": VERSION,
                "model_type": artifact.manifest["model_type"],
                "quant": artifact.manifest["quant"] if bits is None else f"{bits} bits",
                "optimize_level": artifact.manifest["optimize_level"],
                "mla_form": form,
                "changes": artifact.manifest.get("changes", []),
                "vocab_size": low.width("logits"),
                "cache_width": low.cache_width,
                "workload": asdict(workload),
            }
        )
    ops = len(model.ops) + sum(len(block.ops) for _, block, _, _ in model.subgraphs)
    path = Path(target) if stem is None else Path(target) / names.model
    seconds = time.monotonic() - began
    return ExportReport(path, weights.position + nbytes, form, ops, text.note, seconds)


def check_place(
    target: str | os.PathLike[str],
    overwrite: bool,
    sources: Sequence[Path],
    stem: str | None = None,
) -> None:
    """Raises what `export` raises for a target that it may not write, and for a missing wheel, so
    that nobody calibrates for an hour first. sources: what is read meanwhile.
    """
    FolderWriter(Path(target), Names(stem), overwrite, sources).place.check()
    runtime()


class _Reader:
    """Hands out stored weights, and tells how far it is."""

    def __init__(self, artifact: Artifact, graph: Graph, progress: Progress | None) -> None:
        self._artifact, self._progress = artifact, progress
        self._left = set(graph.weights)
        self._done, self._total = 0, artifact.unshared_nbytes

    def __call__(self, name: str) -> U8:
        stored = self._artifact.tensor(name)
        if self._progress is not None and name in self._left:
            self._left.remove(name)
            self._done += stored.nbytes
            self._progress(self._done, self._total, name)
        return stored

    def finish(self) -> None:
        """All is read that MNN needs; some weights are for our engine alone."""
        if self._progress is not None:
            self._progress(self._total, self._total, "")


def _embedding_weight(graph: Graph) -> Weight:
    node = next(node for node in graph.nodes if node.op == "embedding")
    return graph.weights[node.weights[0]]


def _write_embedding(
    writer: FolderWriter, names: Names, table: Weight, read: _Reader, weights: WeightFile
) -> tuple[str, dict[str, Any], int]:
    """→ the table's own file, "tie_embeddings" of llm_config.json, the file's bytes."""
    if table.name in weights.whole:
        return "", embedding.tie(table, weights.storing, *weights.whole[table.name]), 0
    name = names.of(embedding.file_name(table, weights.storing))
    with writer.stream(name) as sink:
        file = WeightFile(sink, weights.storing)
        tied = embedding.write_table(table, read(table.name), file)
    return name, tied, file.position


def _convert(writer: FolderWriter, names: Names, low: Lowering) -> None:
    """The network, by MNN's own converter."""
    text = writer.temp / "model.json"
    with writer.stream(text.name, keep=False) as sink:
        for piece in low.model.to_json():
            sink.write(piece.encode())
    made = writer.temp / names.model
    arguments = ["-f", "JSON", "--modelFile", str(text), "--MNNModel", str(made)]
    convert_tool([*arguments, "--transformerFuseC4=0"])
    text.unlink()
    writer.adopt(names.model)
