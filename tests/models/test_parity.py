"""Every architecture against the library that defines it, at every level, in every schedule.

Where transformers and DeepSeek's published code differ, the oracle in tiny_models.py is corrected
to DeepSeek's: V2's norm_topk_prob (ignored by transformers); MoE-16B is no model of transformers.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest

from deepmnn.backends.reference import ReferenceBackend
from deepmnn.errors import GraphError, RequestError
from deepmnn.graph.tensors import tensor_shapes
from deepmnn.models import build
from deepmnn.source.random import RandomSource
from parity import check_outputs, check_parity, reference, reference_absorbed
from tiny_models import ALL, CONFIGS, LLAMA, checkpoint_of, tiny_checkpoint

MLA = [case for case in ALL if case[0] in ("deepseek_v2", "deepseek_v3", "deepseek_v32")]


@pytest.mark.parametrize(("model_type", "index"), ALL)
def test_level_0_gives_the_oracles_logits(tmp_path: Path, model_type: str, index: int) -> None:
    check_parity(tiny_checkpoint(model_type, index, tmp_path), reference, tolerance=1e-5)


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize(("model_type", "index"), ALL)
def test_passes_keep_the_logits(tmp_path: Path, model_type: str, index: int, level: int) -> None:
    tiny = tiny_checkpoint(model_type, index, tmp_path)
    check_parity(tiny, reference, level, 1e-5, schedules=["ragged"])


@pytest.mark.parametrize("level", [0, 1, 2, 3])
@pytest.mark.parametrize(("model_type", "index"), ALL)
def test_hidden_states_are_the_oracles(
    tmp_path: Path, model_type: str, index: int, level: int
) -> None:
    check_outputs(tiny_checkpoint(model_type, index, tmp_path), reference, level, 1e-5, "ragged")


@pytest.mark.parametrize("outputs", [(), ("norm",), ("logits", "hidden", "x"), "logits"])
def test_outputs_that_a_model_has_not_got(outputs: Sequence[str]) -> None:
    with pytest.raises(RequestError, match="expected some of hidden, logits"):
        build({"model_type": "llama", **LLAMA}, outputs)


def test_a_model_without_logits_has_no_head() -> None:
    graph = build({"model_type": "llama", **LLAMA}, ["hidden"])
    assert graph.outputs == ["hidden"]
    assert "lm_head.weight" not in graph.weights
    with pytest.raises(GraphError, match="logits"):
        ReferenceBackend(graph, RandomSource(tensor_shapes(graph)).read)


@pytest.mark.parametrize(("model_type", "index"), MLA)
def test_absorbed_attention_gives_the_same(tmp_path: Path, model_type: str, index: int) -> None:
    check_parity(tiny_checkpoint(model_type, index, tmp_path), reference_absorbed, 3, 1e-5)


def test_mlp_layer_types_say_which_layers_route(tmp_path: Path) -> None:
    kinds = {"mlp_layer_types": ["sparse", "dense", "sparse"], "num_hidden_layers": 3}
    fields = CONFIGS["deepseek_v32"][3] | kinds
    check_parity(checkpoint_of("deepseek_v32", fields, tmp_path), reference, tolerance=1e-5)
