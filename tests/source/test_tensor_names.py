"""Names as wrappers and libraries write them, in both kinds of files, against transformers."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file, save_model

from deepmnn.errors import CheckpointError
from deepmnn.source.open import open_source
from deepmnn.source.tensor_names import plain_names
from tiny_models import TinyModel, tiny_checkpoint

State = dict[str, torch.Tensor]


def save(path: Path, kind: str, state: State) -> None:
    (path / "model.safetensors").unlink(missing_ok=True)
    if kind == "safetensors":
        save_file({n: t.clone().contiguous() for n, t in state.items()}, path / f"model.{kind}")
    else:
        torch.save(state, path / "pytorch_model.bin")


def everywhere(part: str) -> Callable[[str], str]:
    """As when every layer is wrapped by itself."""
    return lambda name: name.replace("self_attn.", f"{part}.self_attn.").replace(
        "mlp.", f"mlp.{part}."
    )


RENAMED: dict[str, Callable[[str], str]] = {
    "as they are": lambda n: n,
    "DDP": lambda n: f"module.{n}",
    "compiled": lambda n: f"_orig_mod.{n}",
    "compiled DDP": lambda n: f"_orig_mod.module.{n}",
    "PEFT": lambda n: f"base_model.model.{n}",
    "Lightning": lambda n: f"model.{n}",
    "Lightning, compiled": lambda n: f"model._orig_mod.{n}",
    "compiled layers": everywhere("_orig_mod"),
    "FSDP": lambda n: f"_fsdp_wrapped_module.{everywhere('_fsdp_wrapped_module')(n)}",
    "checkpointed": everywhere("_checkpoint_wrapped_module"),
    "the inner model, head beside it": lambda n: n.removeprefix("model."),
    "the inner model, wrapped": lambda n: f"module.{n.removeprefix('model.')}",
}


@pytest.mark.parametrize("rename", RENAMED)
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("model_type", ["llama", "deepseek_v3"])
def test_wrapped_names(tmp_path: Path, model_type: str, kind: str, rename: str) -> None:
    path = tiny_checkpoint(model_type, 0, tmp_path).path
    state = load_file(path / "model.safetensors")
    save(path, kind, {RENAMED[rename](name): tensor for name, tensor in state.items()})
    source = open_source(path)
    assert sorted(source.names()) == sorted(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(source.read(name), tensor.numpy(), err_msg=name)


@pytest.mark.parametrize("part", ["model.language_model", "module_x", "my_model"])
def test_names_that_only_look_wrapped(part: str) -> None:
    """Whole components count, and the embedding decides."""
    names = [f"{part}.norm.weight", f"{part}_model.embed_tokens.weight", "submodule.x", "modules.y"]
    assert plain_names(names, "x") == {name: name for name in names}


def test_an_extra_layers_own_embedding_is_no_root() -> None:
    """Multi-token prediction has an embedding of its own; here the model's is missing."""
    names = ["model.layers.2.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"]
    assert plain_names(names, "x") == {name: name for name in names}


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_two_tensors_of_one_name(tmp_path: Path, kind: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    a = torch.ones(2)
    save(tmp_path, kind, {"module.model.embed_tokens.weight": a, "module.x": a, "x": a})
    with pytest.raises(CheckpointError, match=r"with and without 'module\.'"):
        open_source(tmp_path)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("model_type", ["deepseek_v2", "deepseek_v3"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_stacked_experts(
    tmp_path: Path, model_type: str, dtype: torch.dtype, kind: str, prefix: str
) -> None:
    """model.state_dict() of transformers 5, and what save_pretrained writes of it."""
    tiny = tiny_checkpoint(model_type, 1, tmp_path / "hf")
    model = copy.deepcopy(tiny.model).to(dtype)
    state = model.state_dict()
    assert any(name.endswith("experts.gate_up_proj") for name in state)
    save(tiny.path, kind, {prefix + name: tensor for name, tensor in state.items()})
    model.save_pretrained(tmp_path / "want")
    want = load_file(tmp_path / "want" / "model.safetensors")
    source = open_source(tiny.path)
    for name, tensor in want.items():
        np.testing.assert_array_equal(source.read(name), tensor.float().numpy(), err_msg=name)
    assert set(source.names()) - {"lm_head.weight"} == want.keys() - {"lm_head.weight"}


def test_an_expert_by_itself_and_stacked(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    stacked = {"l.experts.down_proj": torch.ones(2, 3, 4)}
    for state in (
        stacked | {"l.experts.1.down_proj.weight": torch.zeros(3, 4)},
        {"l.experts.1.down_proj.weight": torch.zeros(3, 4)} | stacked,
    ):
        torch.save(state, tmp_path / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match=r"both by itself and in 'l\.experts\.down_proj'"):
            open_source(tmp_path)


def tied(path: Path) -> TinyModel:
    return tiny_checkpoint("llama", 1, path)


def test_only_the_head_of_tied_weights(tmp_path: Path) -> None:
    """safetensors' save_model keeps the first of two names by the alphabet."""
    tiny = tied(tmp_path / "hf")
    save_model(tiny.model, str(tmp_path / "hf" / "model.safetensors"))
    assert "model.embed_tokens.weight" not in load_file(tmp_path / "hf" / "model.safetensors")
    want = transformers.AutoModelForCausalLM.from_pretrained(tiny.path).get_input_embeddings()
    source = open_source(tiny.path)
    np.testing.assert_array_equal(
        source.read("model.embed_tokens.weight"), want.weight.detach().numpy()
    )
    assert "lm_head.weight" not in source


def test_a_base_model_of_tied_weights(tmp_path: Path) -> None:
    """LlamaModel.save_pretrained: no "model.", no head."""
    tiny = tied(tmp_path / "hf")
    config = (tiny.path / "config.json").read_text()
    shutil.rmtree(tiny.path)
    tiny.model.model.save_pretrained(tiny.path)
    (tiny.path / "config.json").write_text(config)
    source = open_source(tiny.path)
    for name, tensor in tiny.model.state_dict().items():
        if name != "lm_head.weight":
            np.testing.assert_array_equal(source.read(name), tensor.numpy(), err_msg=name)
