"""Names and keys against the tables of the gguf package."""

from __future__ import annotations

import pytest

from deepmnn.errors import UnsupportedModelError
from deepmnn.exporters.gguf.metadata import metadata
from deepmnn.exporters.gguf.tensors import gguf_tensors
from deepmnn.graph.tensors import tensor_shapes
from deepmnn.models import build, model_types, read_config
from deepmnn.source.gguf import names
from deepmnn.source.gguf.names import ARCHITECTURES, architecture, gguf_name, hf_name
from tiny_models import CONFIGS, DENSE

gguf = pytest.importorskip("gguf")

ARCHES = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}

REFUSED = {("qwen3", 2), ("deepseek", 2), ("deepseek_v2", 3), ("deepseek_v3", 2)}
"""With biases, or a mixture, that llama.cpp does not have."""


def config_of(model_type: str, index: int) -> dict[str, object]:
    return {"model_type": model_type, **CONFIGS[model_type][index]}


def stems(arch: int) -> set[str]:
    """Every tensor that llama.cpp knows in an architecture, of layer 0 where it has layers."""
    return {gguf.TENSOR_NAMES[kind].format(bid=0) for kind in gguf.MODEL_TENSORS[arch]}


def keys() -> set[str]:
    groups = [group for group in vars(gguf.Keys).values() if isinstance(group, type)]
    values = (value for group in groups for value in vars(group).values())
    return {value for value in values if isinstance(value, str)}


def test_every_model_has_an_architecture() -> None:
    assert set(ARCHITECTURES) == set(model_types()) - {"deepseek_v32", "deepseek_v4"}
    assert set(ARCHITECTURES.values()) <= ARCHES.keys()
    for found in ("gemma3", "deepseek_v32", "deepseek_v4", None, 3):
        with pytest.raises(UnsupportedModelError, match="no name in GGUF"):
            architecture(found)


@pytest.mark.parametrize(("model_type", "index"), DENSE)
def test_every_tensor_is_one_of_the_architecture(model_type: str, index: int) -> None:
    fields = config_of(model_type, index)
    shapes = tensor_shapes(build(fields))
    name = architecture(model_type)
    known = stems(ARCHES[name])
    tensors = gguf_tensors(name, read_config(fields), shapes)
    assert len({tensor.name for tensor in tensors}) == len(tensors)
    for tensor in tensors:
        parts = tensor.name.split(".")
        if parts[0] == "blk":
            parts[1] = "0"
        stem, suffix = ".".join(parts[:-1]), parts[-1]
        assert stem in known, tensor.name
        assert suffix in ("weight", "bias")


@pytest.mark.parametrize(("model_type", "index"), DENSE)
def test_every_key_is_one_of_ggufs(model_type: str, index: int) -> None:
    name = architecture(model_type)
    config = read_config(config_of(model_type, index))
    if (model_type, index) in REFUSED:
        with pytest.raises(UnsupportedModelError, match=r"llama\.cpp does not compute"):
            metadata(name, config)
        return
    found = metadata(name, config)
    patterns = keys()
    for key in found.fields:
        assert "{arch}." + key in patterns, key


@pytest.mark.parametrize(("model_type", "index"), DENSE)
def test_what_is_written_is_read_under_its_own_name(model_type: str, index: int) -> None:
    fields = config_of(model_type, index)
    later = f"model.layers.{fields['num_hidden_layers']}."  # multi-token prediction
    for name in tensor_shapes(build(fields)):
        if ".experts." not in name and not name.startswith(later):
            assert hf_name(gguf_name(name)) == name


def test_names_of_no_model() -> None:
    for name in ("blk.0.output.weight", "attn_q.weight", "output.bias", "blk.0.exp_probs_b.weight"):
        assert hf_name(name) is None


def test_special_tokens_and_kinds_are_ggufs() -> None:
    kinds = {kind.name: int(kind) for kind in gguf.TokenType}
    assert all(getattr(names, kind) == number for kind, number in kinds.items())
    known = {vars(gguf.Keys.Tokenizer)[key] for key in vars(gguf.Keys.Tokenizer) if "_ID" in key}
    assert {f"tokenizer.ggml.{key}" for key in names.SPECIAL_TOKENS.values()} <= known
    for scoring, number in names.SCORING.items():
        assert gguf.ExpertGatingFuncType[scoring.upper()] == number


def test_a_tensor_without_a_name() -> None:
    for name in ("model.layers.0.self_attn.sinks", "model.visual.weight"):
        with pytest.raises(UnsupportedModelError, match=name):
            gguf_name(name)
