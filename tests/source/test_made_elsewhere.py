"""Weights that GPTQModel, AutoAWQ, AutoRound, bitsandbytes, ModelOpt, HQQ and an older
compressed-tensors made.

tools/make_codec_fixtures.py says how; what the libraries make of them again is known by a checksum.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from deepmnn.artifact.reader import Artifact
from deepmnn.backends.reference import ReferenceBackend
from deepmnn.conversion.convert import convert, plan_conversion
from deepmnn.models import build
from deepmnn.quant.store import stored_values
from deepmnn.source.open import open_source
from parity import reference, relative_error, run_schedule

FIXTURES = Path(__file__).parent / "fixtures"
FILES = sorted(FIXTURES.glob("*.safetensors"))
MODELS = sorted(path.parent for path in FIXTURES.glob("*/logits.npy"))
Expected = str | np.ndarray[Any, Any]
"""The checksum of a library's numbers, or the numbers."""

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 31]


def cases() -> list[tuple[Path, str]]:
    found = []
    for file in FILES:
        with safe_open(file, "np") as opened:
            found += [(file, case) for case in json.loads(opened.metadata()["configs"])]
    return found


def checkpoint(path: Path, file: Path, case: str) -> tuple[dict[str, Any], Expected]:
    """A checkpoint of one case in a file: its quantization_config, and the library's numbers."""
    state = {
        name.replace(case, "layer", 1): tensor
        for name, tensor in load_file(file).items()
        if name.startswith(case + ".")
    }
    numbers = state.pop("layer.expected", None)
    save_file(state, path / "model.safetensors")
    with safe_open(file, "np") as opened:
        metadata = opened.metadata()
    config = json.loads(metadata["configs"])[case]
    (path / "config.json").write_text(json.dumps({"quantization_config": config}))
    checksum = json.loads(metadata["sha256"])[case]
    return config, checksum if numbers is None else numbers.numpy()


def check(values: np.ndarray[Any, Any], expected: Expected) -> None:
    """That numbers are the library's, bit for bit where it multiplies once."""
    assert values.dtype == np.float32
    if isinstance(expected, str):
        data = np.ascontiguousarray(values + np.float32(0)).tobytes()  # no zeros below zero
        assert hashlib.sha256(data).hexdigest() == expected
    else:
        np.testing.assert_allclose(values, expected, rtol=2.5e-7)


def test_every_library_left_some() -> None:
    assert {file.stem for file in FILES} == {
        "auto_round",
        "awq",
        "bitsandbytes",
        "compressed",
        "gptq",
        "hqq",
        "modelopt",
    }
    assert len(MODELS) == 6


@pytest.mark.parametrize(("file", "case"), cases(), ids=lambda value: getattr(value, "stem", value))
def test_the_librarys_numbers_bit_for_bit(tmp_path: Path, file: Path, case: str) -> None:
    _, expected = checkpoint(tmp_path, file, case)
    source = open_source(tmp_path)
    assert source.names() == ["layer.weight"]
    values = source.read("layer.weight")
    assert values.shape == source.shape("layer.weight")
    check(values, expected)


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.name)
def test_whole_models_give_the_logits_of_the_librarys_numbers(model: Path) -> None:
    source = open_source(model)
    config = json.loads((model / "config.json").read_text())
    got = run_schedule(reference(build(config), source), [IDS], [(len(IDS),)])[0]
    assert relative_error(got, np.load(model / "logits.npy")) <= 1e-4


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.name)
def test_whole_models_are_converted(tmp_path: Path, model: Path) -> None:
    """Nothing is left over, and what is written has the logits of what was read."""
    assert plan_conversion(model).unused == ()
    artifact = Artifact.open(convert(model, tmp_path / "out", "fp32", 0).path)
    graph = artifact.graph()
    weights = {w.name: stored_values(w, artifact.tensor(w.name)) for w in graph.weights.values()}
    backend = ReferenceBackend(graph, weights.__getitem__)
    got = run_schedule(backend, [IDS], [(len(IDS),)])[0]
    assert relative_error(got, np.load(model / "logits.npy")) <= 1e-4


@pytest.mark.parametrize(
    ("scheme", "file", "renamed"),
    [
        ("gptq", "quantize_config.json", {}),
        ("awq", "quant_config.json", {"bits": "w_bit", "group_size": "q_group_size"}),
        ("modelopt", "hf_quant_config.json", {}),
    ],
)
def test_settings_in_a_file_beside(
    tmp_path: Path, scheme: str, file: str, renamed: dict[str, str]
) -> None:
    """As AutoGPTQ, AutoAWQ and ModelOpt left them before config.json had them."""
    fixture = FIXTURES / f"{scheme}.safetensors"
    config, expected = checkpoint(tmp_path, fixture, cases_of(fixture)[0])
    del config["quant_method"]
    settings: dict[str, Any] = {renamed.get(key, key): value for key, value in config.items()}
    if scheme == "modelopt":
        settings = {"producer": {"name": "modelopt"}, "quantization": settings}
    (tmp_path / file).write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text("{}")
    check(open_source(tmp_path).read("layer.weight"), expected)


def cases_of(fixture: Path) -> list[str]:
    return [case for file, case in cases() if file == fixture]


def test_a_file_of_weights_finds_its_settings(tmp_path: Path) -> None:
    """The directory of config.json is looked at, too."""
    fixture = FIXTURES / "gptq.safetensors"
    (tmp_path / "settings").mkdir()
    (tmp_path / "weights").mkdir()
    config, expected = checkpoint(tmp_path / "weights", fixture, cases_of(fixture)[0])
    shutil.move(tmp_path / "weights" / "config.json", tmp_path / "settings" / "config.json")
    (tmp_path / "settings" / "config.json").write_text("{}")
    (tmp_path / "settings" / "quantize_config.json").write_text(json.dumps(config))
    source = open_source(tmp_path / "weights" / "model.safetensors", tmp_path / "settings")
    check(source.read("layer.weight"), expected)


@pytest.mark.parametrize(
    ("case", "fields"),
    [
        ("4 bits", {"packing_format": "auto_round:gptq"}),
        ("4 bits", {"packing_format": "auto_round:auto_gptq:exllamav2"}),
        ("4 bits, asymmetric", {"packing_format": "auto_round:exllamav2"}),
        ("4 bits, asymmetric", {"quant_method": "intel/auto-round", "backend": "auto_round"}),
        ("awq", {"packing_format": "auto_round:awq"}),
        ("awq", {"bits": 4, "extra_config": {"other": {"group_size": 48}}}),
        ("4 bits", {"extra_config": {"lm_head": {"bits": 16, "data_type": "float"}}}),
        ("4 bits", {"extra_config": {".*mlp.*": {"bits": 2}, "b": {"bits": 8, "group_size": 64}}}),
        ("4 bits", {"act_bits": 16, "act_data_type": "float", "rotation_config": None}),
    ],
)
def test_other_names_for_what_auto_round_packs(
    tmp_path: Path, case: str, fields: dict[str, Any]
) -> None:
    """Those that other versions of it wrote, and layers that other settings are for."""
    config, expected = checkpoint(tmp_path, FIXTURES / "auto_round.safetensors", case)
    if "backend" in fields:
        del config["packing_format"]
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config | fields}))
    check(open_source(tmp_path).read("layer.weight"), expected)
