"""deepmnn. A recipe is what `convert` takes as `quant`, or the directory of a converted model.
"MNN 4 bits, blocks of 64" is what `export` makes of the checkpoint, run by MNN.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.accuracy import mnn
from bench.accuracy.judged import Logits, Pieces, Stored, Task
from bench.peers.deepmnn_cpu import version

__all__ = ["version"]

TITLE, TIMED = "deepmnn", "deepmnn_cpu"
RECIPES: Sequence[str] = ("bf16", "w8", "w4")
NOTE = "8-bit activations, KV cache float32"
ON_MNN = "MNN "


def refuses(config: Mapping[str, Any], recipe: str) -> str:
    return ""


def needs(recipe: str) -> Sequence[str]:
    return ()


def build(recipe: str, out: Path, task: Task) -> str:
    from deepmnn.conversion.convert import convert

    if (Path(recipe) / "deepmnn.json").is_file():
        return str(Path(recipe).resolve())
    if recipe.startswith(ON_MNN):
        return _export(recipe, out, task)
    convert(task.checkpoint, out / "model", quant=recipe)
    return "model"


def _export(recipe: str, out: Path, task: Task) -> str:
    from deepmnn.exporters.mnn.export import export
    from deepmnn.exporters.mnn.rounded import rounded

    bits, blocks = recipe.removeprefix(ON_MNN).split(", ")
    wanted = {"bits": int(bits.split()[0]), "block_size": int(blocks.split()[-1])}
    with rounded(task.checkpoint, out / "model", **wanted) as made:
        export(made.path, out / "model", **wanted)
    return "model"


def stored(model: Path, source: Path | None) -> Stored:
    from deepmnn.artifact.reader import Artifact
    from deepmnn.exporters.mnn.folder import is_exported

    if is_exported(model):
        return mnn.stored(model, source)
    artifact = Artifact.open(model)
    weights = artifact.graph().weights.values()
    tables = [weight for weight in weights if "embed_tokens" in weight.name]
    heads = [weight for weight in weights if "lm_head" in weight.name]
    others = sorted({str(w.format) for w in weights if w not in tables and w not in heads})
    formats = {
        "embedding": ", ".join(str(weight.format) for weight in tables),
        "head": ", ".join(str(weight.format) for weight in heads),
        "others": ", ".join(others),
    }
    return Stored(artifact.weights_nbytes, sum(weight.nbytes for weight in tables), formats)


def logits(model: Path, pieces: Pieces, threads: int, source: Path | None) -> Iterator[Logits]:
    import deepmnn

    loaded = deepmnn.load(model, threads=threads)
    for ids in pieces:
        yield loaded.logits(ids)
