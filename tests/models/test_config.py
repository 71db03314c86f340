"""A config.json from anywhere: what is wrong with it is always said in a typed error."""

import math
from typing import Any

import pytest

from deepmnn.errors import ConfigError, UnsupportedModelError
from deepmnn.graph.verify import verify
from deepmnn.models import build, build_draft, model_types
from tiny_models import ALL, CONFIGS, YARN

WRONG: list[Any] = [None, "x", "", -1, 0, 3.5, 7, True, [], [1], {}, {"a": {}}]
EXTREME: list[Any] = [math.nan, math.inf, -math.inf, 1e300, 10**400, 1 << 24]
ROPE_FIELDS = [*YARN, "rope_theta", "mscale", "mscale_all_dim", "attention_factor", "truncate"]


def config_of(model_type: str, index: int = 0) -> dict[str, Any]:
    return {"model_type": model_type} | CONFIGS[model_type][index]


def refusal(config: dict[str, Any]) -> ConfigError | None:
    """Why this config is refused, None when it builds a sound graph; other errors pass through."""
    try:
        verify(build(config))
    except ConfigError as error:
        return error
    return None


def test_models_are_found_by_file_name() -> None:
    assert model_types() == sorted(CONFIGS)


@pytest.mark.parametrize("found", ["gpt2", "rope", "__init__", "../llama", "os", "", None, 3, []])
def test_unknown_model_type(found: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="model_type is"):
        build({"model_type": found})


@pytest.mark.parametrize("found", [[], "x", None, 3])
def test_config_must_be_an_object(found: Any) -> None:
    with pytest.raises(ConfigError, match="an object"):
        build(found)


@pytest.mark.parametrize("value", WRONG + EXTREME, ids=repr)
@pytest.mark.parametrize(("model_type", "index"), ALL)
def test_any_value_in_any_field_builds_or_raises_config_error(
    model_type: str, index: int, value: Any
) -> None:
    fields = config_of(model_type, index)
    for name in fields:
        if value == 1 << 24 and name in ("n_routed_experts", "num_hidden_layers"):
            continue  # refused, but only once: test_sizes_have_a_limit
        problem = refusal(fields | {name: value})
        assert problem is None or problem.expected, f"{name}: {problem}"


@pytest.mark.parametrize("value", WRONG + EXTREME, ids=repr)
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_any_value_in_any_rope_field_builds_or_raises_config_error(key: str, value: Any) -> None:
    for rope_type in ("default", "linear", "llama3", "yarn", "dynamic", "longrope"):
        for name in ROPE_FIELDS:
            rope = YARN | {"rope_type": rope_type, name: value}
            problem = refusal(config_of("qwen2") | {key: rope})
            assert problem is None or problem.expected, f"{name}: {problem}"


@pytest.mark.parametrize(("model_type", "index"), ALL)
def test_a_string_in_a_number_field_is_named(model_type: str, index: int) -> None:
    fields = config_of(model_type, index)
    numbers = [n for n, v in fields.items() if isinstance(v, int | float) and n != "head_dim"]
    assert len(numbers) >= 8
    for name in numbers:
        with pytest.raises(ConfigError, match=f"^{name} is 'x'; expected"):
            build(fields | {name: "x"})


@pytest.mark.parametrize(
    "name", ["num_hidden_layers", "vocab_size", "n_routed_experts", "max_position_embeddings"]
)
def test_sizes_have_a_limit(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is 1000000000; expected a number from"):
        build(config_of("deepseek_v3") | {name: 10**9})


REFUSED = [
    ("llama", {"hidden_act": "gelu"}, "hidden_act"),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type"),
    ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "layer to layer"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("llama", {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope_type"),
    ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ("llama", {"clip_qkv": 8.0}, "clip_qkv"),
    ("deepseek_v4", {"scoring_func": "softmax"}, "scoring_func"),
    ("deepseek_v4", {"n_shared_experts": 2}, "n_shared_experts"),
    ("deepseek_v4", {"num_key_value_heads": 2}, "num_key_value_heads"),
    ("deepseek_v4", {"norm_topk_prob": False}, "norm_topk_prob"),
    ("deepseek_v4", {"layer_types": ["full_attention"] * 4}, "layer_types"),
    ("qwen2", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ("deepseek", {"scoring_func": "sigmoid"}, "scoring_func"),
    ("deepseek_v2", {"scoring_func": "sigmoid"}, "scoring_func"),
    ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method"),
    ("deepseek_v2", {"mlp_bias": True}, "mlp_bias"),
    ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func"),
    ("deepseek_v3", {"topk_method": "greedy"}, "topk_method"),
    ("deepseek_v32", {"rope_interleave": False}, "rope_interleave"),
    ("deepseek_v32", {"mlp_bias": True}, "mlp_bias"),
    ("deepseek_v32", {"layer_types": ["full_attention", "indexed_attention"]}, "layer_types"),
    ("deepseek_v32", {"mlp_layer_types": ["dense", "moe"]}, "mlp_layer_types"),
]


@pytest.mark.parametrize(("model_type", "change", "match"), REFUSED)
def test_what_is_not_run_is_refused(model_type: str, change: dict[str, Any], match: str) -> None:
    with pytest.raises(UnsupportedModelError, match=match):
        build(config_of(model_type) | change)


CONTRADICTIONS = [
    ("llama", {"num_key_value_heads": 2}, "num_key_value_heads"),
    ("llama", {"hidden_size": 37}, "hidden_size"),
    ("llama", {"head_dim": 7}, "head_dim"),
    ("qwen2", {"hidden_size": 33}, "head_dim"),
    ("deepseek_v3", {"qk_rope_head_dim": 5}, "qk_rope_head_dim"),
    ("deepseek_v3", {"num_experts_per_tok": 13}, "num_experts_per_tok"),
    ("deepseek_v3", {"n_group": 5}, "n_group"),
    ("deepseek_v3", {"n_group": 12}, "n_group"),  # one expert in a group has no two best
    ("deepseek_v3", {"topk_group": 5}, "topk_group"),
    ("deepseek_v3", {"n_group": 6, "topk_group": 1}, "topk_group"),  # 2 experts for 3 choices
    ("deepseek_v2", {"topk_method": "group_limited_greedy"}, "n_group"),
    ("deepseek_v32", {"q_lora_rank": None}, "q_lora_rank"),
    ("deepseek_v32", {"index_head_dim": 5}, "index_head_dim"),  # less than what is rotated
    ("deepseek_v32", {"index_topk": 0}, "index_topk"),
    ("deepseek_v32", {"mlp_layer_types": ["dense"]}, "mlp_layer_types"),
    ("deepseek_v32", {"layer_types": ["indexed_attention"] * 3}, "layer_types"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor"),
    ("llama", {"rope_scaling": {"type": "linear"}}, "factor is missing"),
    ("llama", {"rope_scaling": {"type": "yarn", "factor": 1e6}}, "the context length"),
    ("llama", {"rope_theta": 1.0}, "rope_theta"),
    ("deepseek_v4", {"compress_ratios": [0, 8, 4, 128]}, "compress_ratios"),
    ("deepseek_v4", {"compress_ratios": [0, 4]}, "layer_types"),
    ("deepseek_v4", {"o_groups": 3}, "o_groups"),
    ("deepseek_v4", {"qk_rope_head_dim": 14}, "qk_rope_head_dim"),
    ("deepseek_v4", {"compress_rates": {"x": 4}}, "compress_rates"),
    ("deepseek_v4", {"rope_parameters": {"main": {}, "compress": 7}}, "rope_parameters.compress"),
    ("deepseek_v4", {"rope_parameters": {"compress": {}}}, "rope_parameters.main"),
    ("llama", {"num_hidden_layers": 512, "head_dim": 4096}, "1050624 constants"),
    ("deepseek_v3", {"num_hidden_layers": 500, "n_routed_experts": 1200}, " weights or more"),
]


@pytest.mark.parametrize(("model_type", "change", "match"), CONTRADICTIONS)
def test_contradictions(model_type: str, change: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        build(config_of(model_type) | change)


def test_a_full_rank_query_has_no_bias() -> None:
    """modeling_deepseek.py: attention_bias is for q_a_proj, kv_a_proj_with_mqa and o_proj."""
    graph = build(config_of("deepseek_v3") | {"q_lora_rank": None, "attention_bias": True})
    biased = {name for name in graph.weights if name.startswith("layers.0.") and "bias" in name}
    assert biased == {f"layers.0.self_attn.{p}.bias" for p in ("kv_a_proj_with_mqa", "o_proj")}


def test_no_mtp_layer_unless_the_config_names_it() -> None:
    fields = config_of("deepseek_v3")
    assert build_draft(fields) is not None
    del fields["num_nextn_predict_layers"]
    assert build_draft(fields) is None


def test_greedy_routing_has_no_groups() -> None:
    """MoEGate of DeepSeek-V2: topk_method says whether n_group counts."""
    fields = config_of("deepseek_v2") | {"topk_method": "greedy"}
    grouped = build(fields | {"n_group": 4, "topk_group": 2})
    assert grouped == build(fields | {"n_group": 1, "topk_group": 1})
    assert "group_limit" not in grouped.op_counts()


def test_old_and_new_spelling_of_rope_give_the_same_graph() -> None:
    fields = config_of("deepseek_v2")
    scaling = YARN | {"mscale": 0.7, "mscale_all_dim": 0.7}
    new = build(fields | {"rope_parameters": scaling | {"rope_theta": 5e4}, "dtype": "bfloat16"})
    old = {name: value for name, value in scaling.items() if name != "rope_type"}
    old_style = {"rope_theta": 50000, "rope_scaling": old | {"type": "yarn"}}
    assert build(fields | old_style | {"torch_dtype": "bfloat16"}) == new
