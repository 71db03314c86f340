"""OpenVINO with weights compressed by NNCF: --python has both and optimum-intel, which exports."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version as installed
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.accuracy.judged import Logits, Pieces, Stored, Task
from bench.peers import openvino as timed

TITLE, TIMED = "OpenVINO", "openvino"
RECIPES: Sequence[str] = (
    "int8",
    "int4, groups of 64, AWQ, scale estimation",
    "int4, groups of 128, AWQ, scale estimation",
)
NOTE = (
    "NNCF, asymmetric; with int4, embedding and lm_head in int8, and groups halved where they do "
    "not divide a row; activations and KV cache as the plugin chooses"
)
FLOAT = "float"
IR = "openvino_model.xml"


def version(source: Path | None) -> str | None:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # it reports usage
    if not all(map(find_spec, ("openvino", "nncf", "optimum"))):
        return None
    return f"{installed('openvino')}, NNCF {installed('nncf')}"


def refuses(config: Mapping[str, Any], recipe: str) -> str:
    return ""


def needs(recipe: str) -> Sequence[str]:
    return () if recipe == FLOAT else (f"openvino {FLOAT}",)


def build(recipe: str, out: Path, task: Task) -> str:
    if recipe == FLOAT:
        command = [sys.executable, "-c", timed.ENTRY, "export", "openvino"]
        command += ["--model", str(task.checkpoint), "--task", "text-generation-with-past"]
        command += ["--weight-format", "fp32", str(out / "model")]
        subprocess.run(command, check=True)
        return "model"
    compress(recipe, task.needed[f"openvino {FLOAT}"], out / "model", task.calibration)
    return "model"


def compress(recipe: str, exported: Path, out: Path, calibration: Pieces) -> None:
    """Writes the folder of a compressed model."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import nncf
    import openvino

    model = openvino.Core().read_model(exported / IR)
    if recipe == "int8":
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    else:
        adjust = nncf.AdvancedCompressionParameters(
            group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST
        )
        model = nncf.compress_weights(
            model,
            mode=nncf.CompressWeightsMode.INT4_ASYM,
            ratio=1.0,
            group_size=int(recipe.split(", ")[1].split()[-1]),
            dataset=nncf.Dataset([inputs(model, ids) for ids in calibration]),
            awq=True,
            scale_estimation=True,
            advanced_parameters=adjust,
        )
    out.mkdir()
    for path in exported.iterdir():
        if path.is_file() and path.stem != Path(IR).stem:
            (out / path.name).write_bytes(path.read_bytes())
    openvino.save_model(model, out / IR, compress_to_fp16=False)


def inputs(model: Any, ids: Sequence[int]) -> dict[str, Any]:
    """What the model reads for one piece."""
    import numpy as np

    row = np.asarray([ids], np.int64)
    known = {
        "input_ids": row,
        "attention_mask": np.ones_like(row),
        "position_ids": np.arange(len(ids), dtype=np.int64)[None],
        "beam_idx": np.zeros(1, np.int32),
    }
    return {port.any_name: known[port.any_name] for port in model.inputs}


def stored(model: Path, source: Path | None) -> Stored:
    import openvino

    read = openvino.Core().read_model(model / IR)
    constants = {
        op.get_friendly_name(): (op.get_element_type().get_type_name(), op.get_byte_size())
        for op in read.get_ops()
        if op.get_type_name() == "Constant"
    }
    tables = {name: made for name, made in constants.items() if "embed_tokens" in name}
    heads = {name: made for name, made in constants.items() if "lm_head" in name}
    formats = {"embedding": _largest(tables), "head": _largest(heads)}
    formats["others"] = _largest(
        {name: made for name, made in constants.items() if name not in tables | heads}
    )
    total = sum(nbytes for _, nbytes in constants.values())
    return Stored(total, sum(nbytes for _, nbytes in tables.values()), formats)


def _largest(constants: Mapping[str, tuple[str, int]]) -> str:
    return max(constants.values(), key=lambda made: made[1], default=("", 0))[0]


def logits(model: Path, pieces: Pieces, threads: int, source: Path | None) -> Iterator[Logits]:
    import numpy as np
    import openvino

    core = openvino.Core()
    read = core.read_model(model / IR)
    request = core.compile_model(
        read, "CPU", {"INFERENCE_NUM_THREADS": threads}
    ).create_infer_request()
    for ids in pieces:
        request.reset_state()
        yield np.array(request.infer(inputs(read, ids))["logits"][0], np.float32)
