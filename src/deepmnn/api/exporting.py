"""A model for MNN, on this machine or on a phone, or for other programs."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepmnn.conversion.write import Progress
    from deepmnn.exporters.targets import Report


def export(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    target: str = "mnn",
    *,
    type: str | None = None,
    mla_form: str | None = None,
    bits: int | None = None,
    block_size: int | None = None,
    calibration: str | os.PathLike[str] | bool | None = None,
    samples: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Exports a model, as `deepmnn export` does (docs/export.md, docs/mnn.md, docs/android.md).

    What is written appears under its name when it is complete.

    Args:
        model: a converted model, a checkpoint, or OWNER/NAME on the hub.
        out: the folder, or the GGUF file, to write.
        target: "mnn" (a model folder), "android" (that, and an Android Studio project), "hf" (a
            Hugging Face directory) or "gguf" (one file for llama.cpp).
        type: of "hf": "bf16" (the default), "fp16", "fp32" or "compressed-tensors", which keeps
            codes. Of "gguf": "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "BF16", "F16" or "F32";
            without it, codes of GGUF's types stay as they are, and other matrices get Q8_0.
        mla_form: of "mnn" and "android", as the following: latent attention caches keys and values
            ("expanded"), latents ("absorbed"), or "auto".
        bits: 4 or 8: rounds a checkpoint for MNN from its own numbers; without it, from w8.
        block_size: columns that share a scale; default: 64 with 4 bits, 128 with 8.
        calibration: a file of texts to round the weights by, or False for rounding each to the
            nearest number; default: the set that comes with deepmnn. It needs `bits`.
        samples: of the calibration, at most.
        overwrite: replaces an earlier export that nobody has changed.
        progress: called with (done, of how much, what) while the model is prepared, rounded and
            written.

    Returns what was written: `path`, `nbytes`, `contents`, `note`, `seconds`.

    Raises RequestError (options that do not fit the target), ArtifactError (no such model),
    UnsupportedModelError (what the other program does not compute), MissingDependencyError,
    TokenizerError, CheckpointError, ConfigError or StorageError.
    """
    from deepmnn.exporters.targets import Stages, export_model

    asked = {
        "type": type,
        "mla_form": mla_form,
        "bits": bits,
        "block_size": block_size,
        "calibration": calibration,
        "samples": samples,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    stages = Stages(*[lambda: nullcontext(progress)] * 3)
    return export_model(model, out, target, given, overwrite, stages)[0]
