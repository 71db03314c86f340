"""Published configs: their graphs have the published sizes and read the published tensors.

published/*.json: config.json of the hub's deepseek-ai repositories, in alphabetical order. That of
V3.2 has the published values, written down from transformers' class and DeepSeek's inference code.
"""

import json
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from deepmnn.graph.draft import Parts
from deepmnn.graph.ir import Graph
from deepmnn.graph.verify import verify
from deepmnn.models import build_draft, build_parts, read_config
from deepmnn.source.codecs import fp8
from tiny_models import ALL, tiny_checkpoint

CONFIGS: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text())
    for path in sorted((Path(__file__).parent / "published").glob("*.json"))
}
PARAMETERS = {
    # what the hub counts in the safetensors files; of V3 and R1 without the MTP layer
    "DeepSeek-V3": 671_026_419_200,
    "DeepSeek-R1": 671_026_419_200,
    # V3's, and in each of 61 layers wq_b, wk, k_norm (weight and bias) and weights_proj
    "DeepSeek-V3.2": 671_026_419_200 + 61 * (8192 * 1536 + 128 * 7168 + 2 * 128 + 64 * 7168),
    "DeepSeek-V2": 235_741_434_880,
    "DeepSeek-V2-Lite": 15_706_484_224,
    "DeepSeek-Coder-V2-Instruct": 235_741_434_880,
    "deepseek-moe-16b-base": 16_375_728_128,
    "deepseek-llm-7b-base": 6_910_365_696,
    "deepseek-llm-67b-base": 67_425_001_472,
    "deepseek-coder-1.3b-base": 1_346_471_936,
    "deepseek-coder-6.7b-base": 6_740_512_768,
    "deepseek-coder-33b-base": 33_342_991_360,
    "DeepSeek-R1-Distill-Llama-8B": 8_030_261_248,
    "DeepSeek-R1-Distill-Llama-70B": 70_553_706_496,
    "DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "DeepSeek-R1-Distill-Qwen-7B": 7_615_616_512,
    "DeepSeek-R1-Distill-Qwen-14B": 14_770_033_664,
    "DeepSeek-R1-Distill-Qwen-32B": 32_763_876_352,
    "DeepSeek-R1-0528-Qwen3-8B": 8_190_735_360,
    # without MTP; cards say 284B and 1.6T
    "DeepSeek-V4-Flash": 284_334_567_511,
    "DeepSeek-V4-Pro": 1_572_999_528_803,
}

MLP = ["mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"]
MOE = [
    *MLP,  # of the first layers
    *(name.replace("mlp.", "mlp.experts.#.") for name in MLP),
    *(name.replace("mlp.", "mlp.shared_experts.") for name in MLP),
    "mlp.gate.weight",
]
QKV = ["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"]
LATENT = [
    "self_attn.kv_a_proj_with_mqa.weight",
    "self_attn.kv_a_layernorm.weight",
    "self_attn.kv_b_proj.weight",
]
LOW_RANK_QUERY = [
    "self_attn.q_a_proj.weight",
    "self_attn.q_a_layernorm.weight",
    "self_attn.q_b_proj.weight",
]
NORMS = ["input_layernorm.weight", "post_attention_layernorm.weight", "self_attn.o_proj.weight"]
LAYER = {
    # the names in model.safetensors.index.json, numbers replaced by #
    "llama": [*NORMS, *QKV, *MLP],
    "qwen2": [*NORMS, *QKV, *(name.replace("weight", "bias") for name in QKV), *MLP],
    "qwen3": [*NORMS, *QKV, "self_attn.q_norm.weight", "self_attn.k_norm.weight", *MLP],
    "deepseek": [*NORMS, *QKV, *MOE],
    "deepseek_v2": [*NORMS, *LATENT, *LOW_RANK_QUERY, *MOE],
    "deepseek_v3": [*NORMS, *LATENT, *LOW_RANK_QUERY, *MOE, "mlp.gate.e_score_correction_bias"],
}
INDEXER = ["wq_b.weight", "wk.weight", "k_norm.weight", "k_norm.bias", "weights_proj.weight"]
LAYER["deepseek_v32"] = [
    *LAYER["deepseek_v3"],
    *(f"self_attn.indexer.{part}" for part in INDEXER),
]
COMPRESSOR = ["kv_proj.weight", "gate_proj.weight", "position_bias", "kv_norm.weight"]
V4_ATTENTION = [
    *("q_a_proj.weight", "q_a_norm.weight", "q_b_proj.weight", "kv_proj.weight", "kv_norm.weight"),
    *("sinks", "o_a_proj.weight", "o_b_proj.weight"),
]
V4_ENTRIES = [
    *(f"compressor.{part}" for part in COMPRESSOR),
    *(f"compressor.indexer.{part}" for part in COMPRESSOR),
    *("compressor.indexer.q_b_proj.weight", "compressor.indexer.scorer.weights_proj.weight"),
]
V4_LAYER = [
    *("input_layernorm.weight", "post_attention_layernorm.weight"),
    *(f"{block}_hc.{part}" for block in ("attn", "ffn") for part in ("fn", "base", "scale")),
    *(f"self_attn.{part}" for part in V4_ATTENTION),
    *MOE[len(MLP) :],
    "mlp.gate.e_score_correction_bias",
]
V4_HEAD = [f"hc_head.hc_{part}" for part in ("fn", "base", "scale")]
V4_MTP = [f"{part}.weight" for part in ("enorm", "hnorm", "e_proj", "h_proj", "norm")]
MTP = ["embed_tokens", "enorm", "hnorm", "eh_proj", "shared_head.norm", "shared_head.head"]


@cache
def parts(name: str) -> Parts:
    return build_parts(CONFIGS[name])


def published(name: str) -> Graph:
    return parts(name).main


def parameters(graph: Graph) -> int:
    return sum(math.prod(weight.shape) for weight in graph.weights.values())


def test_every_published_config_has_a_size() -> None:
    assert PARAMETERS.keys() == CONFIGS.keys()


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes(name: str) -> None:
    graph = published(name)
    verify(graph)
    assert parameters(graph) == PARAMETERS[name]


@pytest.mark.parametrize("name", ["DeepSeek-V4-Flash", "DeepSeek-V4-Pro"])
def test_published_tensor_names_of_v4(name: str) -> None:
    """Under the names of transformers' conversion_mapping.py."""
    found = {re.sub(r"\.\d+\.", ".#.", tensor) for tensor in parts(name).shapes}
    layer = {*V4_LAYER, *(f"self_attn.{part}" for part in V4_ENTRIES), "mlp.gate.tid2eid"}
    ends = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    ends |= {f"model.{part}" for part in V4_HEAD}
    drafts = {f"model.mtp.#.{part}" for part in (*V4_LAYER, *V4_HEAD, *V4_MTP)}
    assert found == ends | drafts | {f"model.layers.#.{part}" for part in layer}


@pytest.mark.parametrize("name", [name for name in PARAMETERS if "V4" not in name])
def test_published_tensor_names(name: str) -> None:
    config = CONFIGS[name]
    layer = set(LAYER[config["model_type"]])
    if "q_lora_rank" in config and config["q_lora_rank"] is None:  # V2-Lite
        layer = layer - {*LOW_RANK_QUERY} | {"self_attn.q_proj.weight"}
    if config.get("num_nextn_predict_layers"):
        layer |= {f"{part}.weight" for part in MTP}
    found = {re.sub(r"\.\d+\.", ".#.", tensor) for tensor in parts(name).shapes}
    ends = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert found == ends | {f"model.layers.#.{part}" for part in layer}


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_context_lengths(name: str) -> None:
    """max_position_embeddings is the extended length already, whatever the scaling."""
    config = CONFIGS[name]
    assert read_config(config).context_length == config["max_position_embeddings"]


def test_the_context_of_qwens_recipe_and_of_llama_3_2() -> None:
    """YaRN's factor is a ratio of lengths (Qwen2.5's model cards), llama3's is none: Llama 3.2 has
    factor 32 and an original length of 8192, and takes 131072 tokens.
    """
    qwen = CONFIGS["DeepSeek-R1-Distill-Qwen-7B"] | {"max_position_embeddings": 32768}
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert read_config(qwen).context_length == 32768
    assert read_config(qwen | {"rope_scaling": yarn}).context_length == 131072
    llama = CONFIGS["DeepSeek-R1-Distill-Llama-8B"]
    scaling = llama["rope_scaling"] | {"factor": 32.0}
    assert read_config(llama | {"rope_scaling": scaling}).context_length == 131072


def test_published_fp8_blocks() -> None:
    assert fp8.block_size(CONFIGS["DeepSeek-V3"]) == (128, 128)
    # model.layers.3.self_attn.kv_a_proj_with_mqa.weight_scale_inv has 5 rows: a ragged edge
    shape = published("DeepSeek-V3").weights["layers.3.self_attn.kv_a_proj_with_mqa.weight"].shape
    assert [math.ceil(size / 128) for size in shape] == [5, 56]


@pytest.mark.parametrize(
    ("name", "rope_scale", "first", "last"),
    [
        # cos and sin times, and the fastest and slowest rotation in radians per token
        ("DeepSeek-V3", 1.0, 1.0, 1e4 ** (-62 / 64) / 40),
        ("DeepSeek-V2-Lite", 1.0, 1.0, 1e4 ** (-62 / 64) / 40),
        ("deepseek-moe-16b-base", 1.0, 1.0, 1e4 ** (-126 / 128)),
        ("deepseek-coder-33b-base", 1.0, 1 / 4, 1e5 ** (-126 / 128) / 4),
        ("DeepSeek-R1-Distill-Llama-8B", 1.0, 1.0, 5e5 ** (-126 / 128) / 8),
        ("DeepSeek-R1-Distill-Qwen-32B", 1.0, 1.0, 1e6 ** (-126 / 128)),
        ("DeepSeek-R1-0528-Qwen3-8B", 1.0, 1.0, 1e6 ** (-126 / 128) / 4),
    ],
)
def test_published_rotations(name: str, rope_scale: float, first: float, last: float) -> None:
    ropes = [node for node in published(name).nodes if node.op == "rope"]
    assert len(ropes) == 2 * CONFIGS[name]["num_hidden_layers"]
    for rope in ropes:
        inv_freq = rope.attrs["inv_freq"]
        assert isinstance(inv_freq, tuple)
        assert (inv_freq[0], inv_freq[-1]) == pytest.approx((first, last))
        assert rope.attrs["rope_scale"] == pytest.approx(rope_scale)


@pytest.mark.parametrize(
    ("name", "mscale"), [("DeepSeek-V3", 1.0), ("DeepSeek-V2-Lite", 0.707), ("DeepSeek-V2", 0.707)]
)
def test_published_softmax_scale(name: str, mscale: float) -> None:
    """modeling_deepseek.py: (128 + 64)^-1/2, times (0.1 mscale ln 40 + 1)²."""
    scales = {node.attrs["scale"] for node in published(name).nodes if node.op == "attention"}
    assert len(scales) == 1
    assert scales.pop() == pytest.approx(192**-0.5 * (0.1 * mscale * math.log(40) + 1) ** 2)


def test_mtp_layer_has_the_tensors_of_the_hub() -> None:
    """Layer 61 of DeepSeek-V3's model.safetensors.index.json."""
    main, draft = parts("DeepSeek-V3").main, parts("DeepSeek-V3").draft
    assert draft is not None
    verify(draft)
    own = {name.removeprefix("layers.61.") for name in draft.weights}
    rest = {name for name in own if not name.startswith(("self_attn.", "mlp."))}
    assert rest == {
        "embed_tokens.weight",
        "enorm.weight",
        "hnorm.weight",
        "eh_proj.weight",
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
        "shared_head.norm.weight",
        "shared_head.head.weight",
    }
    assert draft.weights["layers.61.eh_proj.weight"].shape == (7168, 14336)
    blocks = own - rest
    assert blocks == {
        name.removeprefix("layers.60.")
        for name in main.weights
        if name.startswith(("layers.60.self_attn.", "layers.60.mlp."))
    }
    assert build_draft(CONFIGS["DeepSeek-V3"] | {"num_nextn_predict_layers": 0}) is None
    assert build_draft(CONFIGS["DeepSeek-V2"]) is None


@pytest.mark.parametrize(("model_type", "index"), ALL)
def test_every_tensor_of_a_checkpoint_is_read(tmp_path: Any, model_type: str, index: int) -> None:
    """Except the output head that transformers may write beside tied embeddings."""
    tiny = tiny_checkpoint(model_type, index, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    read = build_parts(tiny.config).shapes
    assert read.items() <= stored.items()
    assert stored.keys() - read.keys() <= {"lm_head.weight"}
