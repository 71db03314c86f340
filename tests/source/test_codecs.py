"""What a new scheme brings: one class and one line in CODECS. Here, one that packs nibbles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from deepmnn.artifact.reader import Artifact
from deepmnn.conversion.convert import convert
from deepmnn.errors import TensorNotFoundError, UnsupportedModelError
from deepmnn.formats import Codes, named
from deepmnn.graph.tensors import tensor_shapes
from deepmnn.graph.weights import F32
from deepmnn.models import build
from deepmnn.quant.layout import unpack_codes
from deepmnn.quant.rotation import unrotate
from deepmnn.quant.rounding import round_to_nearest
from deepmnn.source import codecs
from deepmnn.source.codecs.codec import Codec
from deepmnn.source.open import open_source
from deepmnn.source.store import Store
from tiny_models import CONFIGS

PARTS = ("packed", "scales")


class Nibbles(Codec):
    """NAME.weight is NAME.packed, int32 [rows, columns / 8], rotated and with scales beside it: as
    AWQ and GPTQ have no tensor of the model's own name, and integers that float32 cannot hold.
    """

    scheme = "nibbles"

    def __init__(self, store: Store) -> None:
        self._store = store

    @classmethod
    def recognise(cls, quantization: Mapping[str, Any] | None, store: Store) -> Self | None:
        named = quantization is not None and quantization.get("quant_method") == cls.scheme
        return cls(store) if named else None

    def parts(self) -> dict[str, tuple[str, ...]]:
        stems = [name[:-7] for name in self._store.names() if name.endswith(".packed")]
        return {f"{stem}.weight": tuple(f"{stem}.{part}" for part in PARTS) for stem in stems}

    def shape(self, name: str) -> tuple[int, ...]:
        rows, words = self._store.shape(name.removesuffix("weight") + "packed")
        return rows, words * 8

    def read(self, name: str) -> F32:
        return unrotate(self.codes(name).values())[:, : self.shape(name)[1]]

    def codes(self, name: str) -> Codes:
        stem = name.removesuffix("weight")
        packed, scales = (self._store.stored(stem + part) for part in PARTS)
        assert packed.dtype == np.int32
        shifts = np.arange(0, 32, 4, dtype=np.uint32)
        nibbles = packed.view(np.uint32)[:, :, None] >> shifts & 15
        levels = np.array(named("w4").levels, np.int8)[nibbles.reshape(len(packed), -1)]
        return Codes("w4", levels, scales)


def nibbles_of(codes: Codes) -> dict[str, np.ndarray]:
    order = list(named("w4").levels)
    nibbles = np.vectorize(order.index, otypes=[np.uint32])(codes.levels)
    words = nibbles.reshape(len(nibbles), -1, 8)
    packed = (words << np.arange(0, 32, 4, dtype=np.uint32)).sum(axis=2, dtype=np.uint32)
    return {"packed": packed.view(np.int32), "scales": codes.scales}


CONFIG = {
    "model_type": "llama",
    **CONFIGS["llama"][0],
    "hidden_size": 96,
    "intermediate_size": 64,
    "quantization_config": {"quant_method": "nibbles"},
}


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Codes]:
    """Writes tmp_path / "hf", projections in nibbles; returns their codes."""
    monkeypatch.setattr(codecs, "CODECS", (*codecs.CODECS, Nibbles))
    random, coded, raw = np.random.default_rng(0), {}, {}
    for name, shape in tensor_shapes(build(CONFIG)).items():
        values = random.standard_normal(shape, np.float32)
        if "_proj" in name:
            coded[name] = round_to_nearest(values, "w4")
            parts = nibbles_of(coded[name])
            raw |= {f"{name.removesuffix('weight')}{part}": a for part, a in parts.items()}
        else:
            raw[name] = values
    (tmp_path / "hf").mkdir()
    save_file(raw, tmp_path / "hf" / "model.safetensors")
    (tmp_path / "hf" / "config.json").write_text(json.dumps(CONFIG))
    return coded


def test_a_codecs_tensors_are_the_models(tmp_path: Path, checkpoint: dict[str, Codes]) -> None:
    source = open_source(tmp_path / "hf")
    shapes = tensor_shapes(build(CONFIG))
    assert sorted(source.names()) == sorted(shapes)
    for name, shape in shapes.items():
        assert name in source
        assert source.shape(name) == shape
        assert source.sample(name)
        if name in checkpoint:
            values = unrotate(checkpoint[name].values())[:, : shape[1]]
            np.testing.assert_array_equal(source.read(name), values)
        else:
            assert source.codes(name) is None
    assert "model.layers.0.mlp.up_proj.packed" not in source
    with pytest.raises(TensorNotFoundError, match=r"'model\.layers\.9\.mlp\.up_proj\.weight'"):
        source.read("model.layers.9.mlp.up_proj.weight")


@pytest.mark.parametrize("level", [0, 3])
def test_its_codes_reach_the_artifact(
    tmp_path: Path, checkpoint: dict[str, Codes], level: int
) -> None:
    """Code by code, whatever was fused: each row of the checkpoint is found in a stored matrix."""
    artifact = Artifact.open(convert(tmp_path / "hf", tmp_path / "out", "w4", level).path)
    found = set()
    for weight in artifact.graph().weights.values():
        if weight.format == "w4":
            stored = unpack_codes(artifact.tensor(weight.name), "w4", weight.shape[1])
            found |= set(rows_of(stored))
    expected = {row for codes in checkpoint.values() for row in rows_of(codes)}
    assert expected <= found
    assert len(expected) > 500


def rows_of(codes: Codes) -> list[bytes]:
    return [
        b"".join(part.tobytes() for part in row)
        for row in zip(codes.levels, codes.scales, strict=True)
    ]


def test_without_the_codec_the_scheme_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file({"x": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"quant_method 'nibbles'.*or unquantised"):
        open_source(tmp_path)


def test_tensors_in_their_stored_type(tmp_path: Path) -> None:
    """Both kinds of files hand out integers that float32 would round."""
    numbers = torch.tensor([[2**24 + 1, -1, 5], [7, -(2**31), 3]], dtype=torch.int32)
    torch.save({"x": numbers, "turned": numbers.T}, tmp_path / "model.pt")
    save_file({"x": numbers.numpy()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    plain, pickled = Store(tmp_path), Store(tmp_path / "model.pt")
    np.testing.assert_array_equal(plain.stored("x"), numbers.numpy(), strict=True)
    np.testing.assert_array_equal(pickled.stored("x"), numbers.numpy(), strict=True)
    np.testing.assert_array_equal(pickled.stored("turned"), numbers.numpy().T, strict=True)
    for store in (plain, pickled):
        with pytest.raises(TensorNotFoundError, match="'y'"):
            store.stored("y")
