"""What a config.json leaves out, says with null, or writes as a float: transformers' defaults."""

import dataclasses
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import transformers

from deepmnn import convert, load
from deepmnn.errors import ConfigError
from deepmnn.models import build, read_config
from deepmnn.models.config import MAX_LAYERS, ModelConfig
from deepmnn.models.v4_config import DeepseekV4Config
from tiny_models import ALL, CONFIGS, checkpoint_of

HUB = {"moe_layer_freq", "scoring_func", "topk_method", "num_nextn_predict_layers", "head_dim"}
HUB |= {"qk_rope_head_dim", "compress_rate_csa", "compress_rate_hca", "intermediate_size"}
HUB |= {"rope_interleave", "indexer_rope_interleave"}  # of deepseek_v32: other classes have them
"""Fields that published configs have and transformers' classes lack or name otherwise."""

LATENT = ("deepseek_v3", "deepseek_v32")

WINDOWS = {"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"}
"""Fields of qwen2 and qwen3 that every config may have here."""

MOE_16B = {
    # configuration_deepseek.py of deepseek-ai/deepseek-moe-16b-base; transformers has no such class
    "vocab_size": 102400,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "moe_intermediate_size": 1407,
    "num_hidden_layers": 30,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "n_shared_experts": None,
    "n_routed_experts": None,
    "num_experts_per_tok": None,
    "moe_layer_freq": 1,
    "first_k_dense_replace": 0,
    "norm_topk_prob": False,
    "scoring_func": "softmax",
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
}


def config_class(model_type: str) -> type[ModelConfig]:
    found: type[ModelConfig] = import_module(f"deepmnn.models.{model_type}").CONFIG
    return found


def fields_of(model_type: str) -> list[str]:
    """What config.json may say, but for the scaling of positions."""
    names = [field.name for field in dataclasses.fields(config_class(model_type))]
    return [name for name in names if name != "rope_parameters"]


def config_of(model_type: str, index: int = 0) -> dict[str, Any]:
    return {"model_type": model_type} | CONFIGS[model_type][index]


@pytest.mark.parametrize("model_type", CONFIGS)
def test_defaults_are_those_of_transformers(model_type: str) -> None:
    if model_type == "deepseek":
        theirs: dict[str, Any] = MOE_16B
    else:
        found = type(transformers.AutoConfig.for_model(model_type))
        theirs = {field.name: field.default for field in dataclasses.fields(found)}
    ours = {name: getattr(config_class(model_type), name) for name in fields_of(model_type)}
    assert ours.keys() - theirs.keys() <= HUB | WINDOWS
    same = ours.keys() & theirs.keys()
    heads = {"num_key_value_heads"} if model_type in LATENT else set()  # latent: not read
    assert {n: ours[n] for n in same - heads} == {n: theirs[n] for n in same - heads}


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"head_dim": 128},
        {"head_dim": 144},
        {"head_dim": 128, "qk_rope_head_dim": None, "partial_rotary_factor": None},
        {"head_dim": 128, "qk_rope_head_dim": 32},
        {"head_dim": 128, "partial_rotary_factor": 0.5},
        {"head_dim": 128, "qk_rope_head_dim": 32, "partial_rotary_factor": 0.5},
        {"qk_rope_head_dim": 32},
    ],
)
def test_as_much_of_a_head_is_rotated_as_by_transformers(said: dict[str, Any]) -> None:
    ours = DeepseekV4Config.from_dict({"model_type": "deepseek_v4"} | said).qk_rope_head_dim
    assert ours == transformers.AutoConfig.for_model("deepseek_v4", **said).qk_rope_head_dim


@pytest.mark.parametrize("model_type", CONFIGS)
def test_no_class_loses_a_limit(model_type: str) -> None:
    """A dataclass that names a field again, for another default, must repeat its limits."""
    for name in ("num_hidden_layers", "vocab_size", "hidden_size"):
        limit = MAX_LAYERS if name == "num_hidden_layers" else 1 << 24
        with pytest.raises(ConfigError, match=f"^{name} is {limit + 1}; expected a number from 1"):
            build(config_of(model_type) | {name: limit + 1})


@pytest.mark.parametrize("model_type", CONFIGS)
def test_null_is_the_default_unless_it_has_a_meaning(model_type: str) -> None:
    """No query rank, as many kv_heads as heads. Where true is the default null is refused:
    transformers takes it for false.
    """
    cls, config = config_class(model_type), {"model_type": model_type, "num_experts_per_tok": 2}
    hints = {field.name: str(field.type) for field in dataclasses.fields(cls)}
    for name in fields_of(model_type):
        default = getattr(cls, name)
        if default is True or name in ("num_experts_per_tok", "n_group", "topk_group"):
            continue
        if (model_type, name) == ("deepseek_v32", "q_lora_rank"):  # which its indexer reads
            continue
        null = None if "None" in hints[name] else default
        assert read_config(config | {name: None}) == read_config(config | {name: null})
        assert getattr(read_config(config | {name: None}), name) == null
    for name in ("norm_topk_prob", "rope_interleave", "num_experts_per_tok"):
        if model_type in LATENT:
            with pytest.raises(ConfigError, match=f"^{name} is missing"):
                read_config(config | {name: None})


@pytest.mark.parametrize(("model_type", "index"), ALL)
def test_a_number_may_be_a_float_without_a_fraction(model_type: str, index: int) -> None:
    config = config_of(model_type, index)
    whole = {name: value for name, value in config.items() if type(value) is int}
    assert len(whole) >= 7
    graph = build(config | {name: float(value) for name, value in whole.items()})
    assert graph == build(config)
    assert repr(graph) == repr(build(config))  # 2 == 2.0, but a shape is of integers
    for name, value in whole.items():
        for wrong in (value + 0.5, str(value), [value], value > 0):
            with pytest.raises(ConfigError, match=f"^{name} is "):
                build(config | {name: wrong})


@pytest.mark.parametrize("model_type", CONFIGS)
def test_strings_and_numbers_are_no_booleans(model_type: str) -> None:
    cls, config = config_class(model_type), config_of(model_type)
    booleans = [n for n in fields_of(model_type) if isinstance(getattr(cls, n), bool)]
    assert "tie_word_embeddings" in booleans
    for name in booleans:
        for wrong in ("false", "true", "", 0, 1, 1.0, []):
            with pytest.raises(ConfigError, match=f"^{name} is .*; expected true or false"):
                build(config | {name: wrong})


@pytest.mark.parametrize("value", ["1e-6", True, 0, -1e-6, "x" * 100_000, [[[[[[[[]]]]]]]]])
def test_a_wrong_number_is_named_in_few_words(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^rms_norm_eps is ") as error:
        build(config_of("llama") | {"rms_norm_eps": value})
    assert len(str(error.value)) < 200


def test_fields_that_change_no_number_are_ignored() -> None:
    config = config_of("deepseek_v3")
    idle = {
        "attention_dropout": 0.1,
        "pretraining_tp": 4,
        "torch_dtype": "bfloat16",
        "dtype": None,
        "auto_map": {"AutoConfig": "x.Y"},
        "aux_loss_alpha": 0.001,
        "seq_aux": True,
        "ep_size": 8,
        "initializer_range": "?",
        "use_cache": None,
        "attn_logit_softcapping": None,
        "mlp_bias": None,
    }
    assert build(config | idle) == build(config)


def test_swish_is_silu() -> None:
    assert build(config_of("qwen2") | {"hidden_act": "swish"}) == build(config_of("qwen2"))


@pytest.mark.parametrize("model_type", CONFIGS)
def test_what_converts_loads(tmp_path: Path, model_type: str) -> None:
    """Without the fields whose defaults fit: the context length is that of the model's class."""
    tiny = checkpoint_of(model_type, CONFIGS[model_type][0], tmp_path / "source")
    names = ("max_position_embeddings", "rope_theta", "rope_parameters", "sliding_window")
    config = {name: value for name, value in tiny.config.items() if name not in names}
    (tmp_path / "config.json").write_text(json.dumps(config))
    convert(tiny.path, tmp_path / "model", "fp32", config=tmp_path / "config.json")
    model = load(tmp_path / "model", threads=1)
    default = config_class(model_type).max_position_embeddings
    assert model.context_length == default
    assert model.logits([1, 2, 3]).shape == (3, model.vocab_size)
