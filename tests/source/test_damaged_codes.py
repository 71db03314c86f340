"""GPTQ, AWQ, ModelOpt and bitsandbytes: what does not fit is refused, variants by their names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from deepmnn.errors import CheckpointError, UnsupportedModelError
from deepmnn.source.open import open_source

FIXTURES = Path(__file__).parent / "fixtures"
Array = np.ndarray[Any, Any]
Change = dict[str, Callable[[Array], Array | None] | Array]
"""Part → what it becomes (None: nothing)."""


def damaged(path: Path, scheme: str, case: str, change: Change, config: Any = None) -> Path:
    """A case of a library's fixtures, some of its parts changed."""
    import torch
    from safetensors.torch import load_file
    from safetensors.torch import save_file as save_torch

    file = FIXTURES / f"{scheme}.safetensors"
    state = {
        name.replace(case, "layer", 1): tensor
        for name, tensor in load_file(file).items()
        if name.startswith(case + ".")
    }
    state.pop("layer.expected", None)
    for part, make in change.items():
        name = f"layer.{part}"
        old = state.pop(name, None)
        new = make if not callable(make) or make is gone else make(old.numpy())
        if isinstance(new, np.ndarray):
            state[name] = torch.from_numpy(np.ascontiguousarray(new).copy().reshape(new.shape))
    save_torch(state, path / "model.safetensors")
    with safe_open(file, "np") as opened:
        quantization = json.loads(opened.metadata()["configs"])[case]
    fields = quantization | (config or {})
    (path / "config.json").write_text(json.dumps({"quantization_config": fields}))
    return path


def gone(_: Array) -> None:
    return None


def state(**fields: Any) -> Array:
    """A quant_state of bitsandbytes."""
    text = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [32, 64]} | fields
    return np.frombuffer(json.dumps(text).encode(), np.uint8)


G, A, B4, B44, B8, M = (
    ("gptq", "4 bits, act-order"),
    ("awq", "groups of 32"),
    ("bitsandbytes", "nf4"),
    ("bitsandbytes", "nf4, twice"),
    ("bitsandbytes", "int8"),
    ("modelopt", "NVFP4"),
)
R, RM = ("auto_round", "4 bits"), ("auto_round", "8 bits, 4 elsewhere")
STATE = "weight.quant_state.bitsandbytes__nf4"

DAMAGED: dict[str, tuple[tuple[str, str], Change, str]] = {
    "no qzeros": (G, {"qzeros": gone}, "layer.qzeros"),
    "no scales": (G, {"scales": gone}, "layer.scales"),
    "no g_idx with act-order": (G, {"g_idx": gone}, "layer.g_idx"),
    "g_idx too large": (G, {"g_idx": lambda g: g + 1}, "holds groups 1 to 3.*0 to 2"),
    "g_idx below 0": (G, {"g_idx": lambda g: g - 1}, "holds groups -1 to 1"),
    "g_idx of floats": (G, {"g_idx": lambda g: g.astype(np.float32)}, "g_idx.*stored as F32"),
    "g_idx too short": (G, {"g_idx": lambda g: g[:-1]}, "12 rows of words for 95 columns"),
    "g_idx of none": (G, {"g_idx": lambda g: g[:0]}, "g_idx.*one dimension"),
    "g_idx as a matrix": (G, {"g_idx": lambda g: g[None]}, "g_idx.*one dimension"),
    "g_idx as a number": (G, {"g_idx": np.array(3, np.int32)}, "g_idx.*one dimension"),
    "scales of a group too few": (G, {"scales": lambda s: s[1:]}, r"scales.*\[2, 32\].*\[3, 32\]"),
    "scales of a row too few": (G, {"scales": lambda s: s[:, 1:]}, r"scales.*\[3, 31\]"),
    "scales of integers": (G, {"scales": lambda s: s.astype(np.int32)}, "scales.*stored as I32"),
    "scales that are NaN": (G, {"scales": lambda s: s * np.float16(np.nan)}, "NaN"),
    "qzeros of another shape": (G, {"qzeros": lambda z: z[:, 1:]}, r"qzeros.*\[3, 3\].*\[3, 4\]"),
    "qzeros of bytes": (G, {"qzeros": lambda z: z.view(np.uint8)}, "qzeros.*stored as U8"),
    "qweight of floats": (G, {"qweight": lambda q: q.view(np.float32)}, "qweight.*stored as F32"),
    "qweight of none": (G, {"qweight": lambda q: q[:, :0]}, "qweight.*a matrix"),
    "qweight of three dimensions": (G, {"qweight": lambda q: q[None]}, "qweight.*a matrix"),
    "qweight too short": (G, {"qweight": lambda q: q[1:]}, "11 rows of words for 96 columns"),
    "AWQ without qzeros": (A, {"qzeros": gone}, "layer.qzeros"),
    "AWQ without scales": (A, {"scales": gone}, "layer.scales"),
    "AWQ, scales of another shape": (A, {"scales": lambda s: s[1:]}, r"scales.*\[2, 32\]"),
    "AWQ, scales that are infinite": (A, {"scales": lambda s: s / np.float16(0)}, "infinite"),
    "AWQ, qzeros of another shape": (A, {"qzeros": lambda z: z[1:]}, r"qzeros.*\[2, 4\]"),
    "AWQ, qweight of floats": (A, {"qweight": lambda q: q.view(np.float32)}, "stored as F32"),
    "AutoRound without qzeros": (R, {"qzeros": gone}, "layer.qzeros"),
    "AutoRound, qzeros of another shape": (
        R,
        {"qzeros": lambda z: z[:, 1:]},
        r"\[3, 3\].*\[3, 4\]",
    ),
    "AutoRound, some bits, no qzeros": (RM, {"qzeros": gone}, "layer.qzeros"),
    "AutoRound, bits of no layer": (RM, {"qzeros": lambda z: z[:, 2:]}, "codes of 4 or 8 bits"),
    "AutoRound, no group": (RM, {"qzeros": lambda z: z[:, :0]}, "qzeros.*a matrix"),
    "AutoRound, groups of no layer": (RM, {"scales": lambda s: s[:1]}, r"\[2, 32\] or \[4, 32\]"),
    "nf4 without a state": (B4, {STATE: gone}, "quant_state"),
    "nf4 without a map": (B4, {"weight.quant_map": gone}, "quant_map"),
    "nf4, a short map": (B4, {"weight.quant_map": lambda m: m[:15]}, r"quant_map.*\[15\].*\[16\]"),
    "nf4, a map of NaN": (B4, {"weight.quant_map": lambda m: m * np.nan}, "NaN"),
    "nf4, too few scales": (B4, {"weight.absmax": lambda a: a[1:]}, r"absmax.*\[31\].*\[32\]"),
    "nf4, scales that are NaN": (B4, {"weight.absmax": lambda a: a * np.nan}, "NaN"),
    "nf4, a state that is no JSON": (B4, {STATE: np.arange(9, dtype=np.uint8)}, "JSON"),
    "nf4, a huge state": (B4, {STATE: np.full(9999, 32, np.uint8)}, "9999 bytes.*at most"),
    "nf4, a state of floats": (B4, {STATE: np.ones(9, np.float32)}, "stored as F32"),
    "nf4, no shape": (B4, {STATE: state(shape=None)}, "shape None"),
    "nf4, a shape of text": (B4, {STATE: state(shape=["a", 2])}, "two sizes"),
    "nf4, a negative shape": (B4, {STATE: state(shape=[-32, -64])}, "two sizes"),
    "nf4, another shape": (B4, {STATE: state(shape=[32, 65])}, "1024 bytes.*half a byte"),
    "nf4, a huge shape": (B4, {STATE: state(shape=[1 << 30, 1 << 30])}, "1024 bytes"),
    "nf4, no blocks": (B4, {STATE: state(blocksize=0)}, "blocksize.*0"),
    "nf4, huge blocks": (B4, {STATE: state(blocksize=(1 << 31) - 1)}, r"absmax.*\[1\]"),
    "nf4, blocks of text": (B4, {STATE: state(blocksize="64")}, "blocksize"),
    "nf4 twice, no map": (B44, {"weight.nested_quant_map": gone}, "nested_quant_map"),
    "nf4 twice, no nested blocks": (
        B44,
        {STATE: state(shape=[300, 64], nested_offset=0.1)},
        "nested_blocksize",
    ),
    "nf4 twice, no offset": (
        B44,
        {STATE: state(shape=[300, 64], nested_blocksize=256)},
        "nested_offset",
    ),
    "nf4 twice, a huge offset": (
        B44,
        {STATE: state(shape=[300, 64], nested_blocksize=256, nested_offset=1e300)},
        "nested_offset",
    ),
    "int8, too few scales": (B8, {"SCB": lambda s: s[1:]}, r"SCB.*\[15\].*\[16\]"),
    "int8, scales that are NaN": (B8, {"SCB": lambda s: s * np.nan}, "NaN"),
    "int8 in a GPU's order": (B8, {"weight_format": np.array(2, np.uint8)}, "order.*newer"),
    "int8, a vector": (B8, {"weight": lambda w: w[0]}, "a matrix"),
    "NVFP4 without scales": (M, {"weight_scale": gone}, "weight_scale"),
    "NVFP4 without the second": (M, {"weight_scale_2": gone}, "weight_scale_2"),
    "NVFP4, the second for rows": (M, {"weight_scale_2": np.ones(32, np.float32)}, r"\[32\]"),
    "NVFP4, the second NaN": (M, {"weight_scale_2": np.array(np.nan, np.float32)}, "NaN"),
    "NVFP4, scales of floats": (M, {"weight_scale": np.ones((32, 6), np.float32)}, "as F32"),
    "NVFP4, a vector": (M, {"weight": lambda w: w[0]}, "a matrix"),
    "NVFP4, too few columns": (M, {"weight": lambda w: w[:, 1:9]}, r"weight_scale.*\[32, 6\]"),
}


@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
@pytest.mark.parametrize("case", DAMAGED)
def test_parts_that_do_not_fit(tmp_path: Path, case: str) -> None:
    (scheme, of), change, message = DAMAGED[case]
    with np.errstate(all="ignore"):
        source = open_source(damaged(tmp_path, scheme, of, change))
    with pytest.raises((CheckpointError, UnsupportedModelError), match=message) as caught:
        source.read("layer.weight")
    assert caught.value.hint or caught.value.expected
    with pytest.raises((CheckpointError, UnsupportedModelError), match=message):
        source.codes("layer.weight")


CONFIGS: dict[str, tuple[tuple[str, str], dict[str, Any], str]] = {
    "GPTQ of 5 bits": (G, {"bits": 5}, "bits is 5.*2, 3, 4, 8"),
    "GPTQ of unknown bits": (G, {"bits": None}, "bits is None"),
    "GPTQ of bits as text": (G, {"bits": "4"}, "bits is '4'"),
    "GPTQ of groups of 0": (G, {"group_size": 0}, "group_size is 0"),
    "GPTQ of groups of -2": (G, {"group_size": -2}, "group_size is -2"),
    "GPTQ of groups of half": (G, {"group_size": 32.5}, "group_size"),
    "GPTQ of a format as number": (G, {"checkpoint_format": 3}, "checkpoint_format is 3"),
    "GPTQ, planar": (G, {"checkpoint_format": "gptq_p"}, "'gptq_p'.*gptq_v2"),
    "GPTQ in other words": (G, {"pack_dtype": "int16"}, "pack_dtype int32"),
    "GPTQ with rules of a wrong type": (G, {"dynamic": [1]}, "dynamic"),
    "GPTQ with a rule of 5 bits": (G, {"dynamic": {"x": {"bits": 5}}}, "bits is 5"),
    "AWQ of 3 bits": (A, {"bits": 3}, "bits is 3"),
    "AWQ, gemv": (A, {"version": "GEMV"}, "'gemv'.*version gemm"),
    "AWQ of GPTQModel, gemv": (A, {"checkpoint_format": "gemv_fast"}, "'gemv_fast'"),
    "AWQ of groups of 0": (A, {"group_size": 0}, "group_size"),
    "ModelOpt SVDQuant": (M, {"quant_algo": "NVFP4_SVD"}, "NVFP4_SVD"),
    "ModelOpt of a wrong type": (M, {"quantization": 3}, "an object"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_settings_that_are_refused(tmp_path: Path, case: str) -> None:
    (scheme, of), config, message = CONFIGS[case]
    with pytest.raises(UnsupportedModelError, match=message):
        open_source(damaged(tmp_path, scheme, of, {}, config))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"group_size": 64}, r"scales.*\[3, 32\].*\[2, 32\]"),
        ({"group_size": -1}, r"scales.*\[3, 32\].*\[1, 32\]"),
        ({"bits": 8}, "12 rows of words for 96 columns.*codes of 8 bits"),
    ],
)
def test_tensors_that_config_json_contradicts(tmp_path: Path, config: Any, message: str) -> None:
    source = open_source(damaged(tmp_path, *G, {}, config))
    with pytest.raises((CheckpointError, UnsupportedModelError), match=message):
        source.shape("layer.weight")


def test_rules_allow_what_they_say(tmp_path: Path) -> None:
    """GPTQModel's `dynamic`: the layer has 4 bits and groups of 32, most others 8 and 128."""
    want = open_source(damaged(tmp_path, *G, {})).read("layer.weight")
    rules = {"+:.*layer": {"bits": 4, "group_size": 32}, "-:(a+)+$": {}}
    changed = damaged(tmp_path, *G, {}, {"bits": 8, "group_size": 128, "dynamic": rules})
    np.testing.assert_array_equal(open_source(changed).read("layer.weight"), want)


def test_zero_points_that_readers_disagree_on(tmp_path: Path) -> None:
    """Only GPTQModel's own are known to be subtracted from whole words."""
    case = ("gptq", "4 bits, asymmetric")
    full: Change = {"qzeros": lambda z: np.full_like(z, -1)}
    source = open_source(damaged(tmp_path, *case, full, {"meta": {"quantizer": ["optimum:1"]}}))
    with pytest.raises(UnsupportedModelError, match=r"0 below one.*gptq_v2"):
        source.read("layer.weight")
    zeros = open_source(damaged(tmp_path, *case, full)).read("layer.weight")
    assert np.isfinite(zeros).all()


def test_neighbours_need_no_g_idx(tmp_path: Path) -> None:
    """As the first versions of GPTQ wrote it."""
    case = ("gptq", "4 bits, groups of 32")
    want = open_source(damaged(tmp_path, *case, {})).read("layer.weight")
    got = open_source(damaged(tmp_path, *case, {"g_idx": gone})).read("layer.weight")
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("method", ["gptq", "awq", "modelopt", "bitsandbytes"])
def test_a_config_left_from_before(tmp_path: Path, method: str) -> None:
    """Numbers that were written back, beside the config of the quantised checkpoint."""
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    save_file({"w.weight": weight}, tmp_path / "model.safetensors")
    config = {"quant_method": method, "bits": 4, "group_size": 32}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
    np.testing.assert_array_equal(open_source(tmp_path).read("w.weight"), weight)


@pytest.mark.parametrize("case", [G, A, R], ids=str)
def test_a_weight_that_is_stored_plainly_too(tmp_path: Path, case: tuple[str, str]) -> None:
    damaged(tmp_path, *case, {"weight": np.zeros((32, 96), np.float16)})
    with pytest.raises(CheckpointError, match=r"'layer.weight' twice: plainly.*layer\.qweight"):
        open_source(tmp_path)
