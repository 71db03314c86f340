"""Tiny random checkpoints of every architecture, with the model that made them as the oracle.

`tiny_checkpoint("deepseek_v3", 0, path)` writes a Hugging Face directory (config.json, float32
safetensors) and returns what computes its logits. Sizes are odd on purpose, and every parameter is
random, those that libraries initialise to zero or one too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

from deepmnn.backends.base import F32
from deepmnn.graph.tensors import tensors as tensors_of
from deepmnn.models import build_draft

Config = dict[str, Any]
YARN: Config = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 48,
    "beta_fast": 8,
    "beta_slow": 1,
}

LLAMA: Config = {
    "vocab_size": 97,
    "hidden_size": 36,
    "intermediate_size": 53,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "max_position_embeddings": 256,
    "rms_norm_eps": 0.02,
}
MLA: Config = LLAMA | {
    "moe_intermediate_size": 19,
    "n_routed_experts": 12,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "q_lora_rank": 21,
    "kv_lora_rank": 18,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 14,
}

INDEXED: Config = MLA | {
    "num_nextn_predict_layers": 0,
    "index_n_heads": 13,
    "index_head_dim": 14,
    "index_topk": 7,
}
"""Latent attention to few of the keys that prompts in tests have. With many heads no score is a sum
of zeros, of which equal ones would tie; and random weights leave a margin between the last key that
is chosen and the next, so that sums in any order choose alike. Logits are compared, not choices."""

V4: Config = {
    "vocab_size": 97,
    "hidden_size": 36,
    "moe_intermediate_size": 19,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "head_dim": 20,
    "qk_rope_head_dim": 6,
    "q_lora_rank": 21,
    "o_groups": 2,
    "o_lora_rank": 11,
    "n_routed_experts": 7,
    "num_experts_per_tok": 3,
    "num_hash_layers": 1,
    "compress_ratios": [0, 4, 128, 4, 0],
    "sliding_window": 5,
    "index_n_heads": 9,  # with fewer, products are often all negative, and scores all zero: ties
    "index_head_dim": 12,
    "index_topk": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 0.02,
    "hc_eps": 0.01,
}


def _rates(sparse: int, heavily: int) -> dict[str, int]:
    """Tokens of an entry in each kind of layer."""
    return {"compressed_sparse_attention": sparse, "heavily_compressed_attention": heavily}


CONFIGS: dict[str, list[Config]] = {
    "llama": [
        LLAMA,
        LLAMA | {"num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": True},
        LLAMA
        | {
            "num_key_value_heads": 1,
            "attention_bias": True,
            "mlp_bias": True,
            "head_dim": 10,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
        LLAMA | {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e5, "factor": 4.0}},
        LLAMA | {"vocab_size": 131, "rope_parameters": YARN | {"rope_theta": 1e4}},
    ],
    "qwen2": [
        LLAMA,
        LLAMA | {"num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": True},
        LLAMA | {"num_key_value_heads": 1, "vocab_size": 101, "num_hidden_layers": 3},
        LLAMA
        | {"hidden_size": 70, "num_attention_heads": 5, "num_key_value_heads": 5}
        | {"rope_parameters": YARN | {"rope_theta": 1e6}, "intermediate_size": 33},
    ],
    "qwen3": [
        LLAMA | {"head_dim": 14},
        LLAMA
        | {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8}
        | {"tie_word_embeddings": True},
        LLAMA | {"num_key_value_heads": 1, "head_dim": 6, "attention_bias": True},
        LLAMA
        | {"hidden_size": 35, "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 18}
        | {"rope_parameters": YARN | {"rope_theta": 1e6}},
        LLAMA
        | {"head_dim": 16, "rope_parameters": YARN | {"rope_theta": 1e4, "attention_factor": 0.8}},
    ],
    "deepseek": [
        LLAMA | {"n_routed_experts": None},
        LLAMA
        | {"n_routed_experts": 11, "n_shared_experts": 2, "num_experts_per_tok": 4}
        | {"moe_intermediate_size": 13, "first_k_dense_replace": 1, "num_hidden_layers": 3},
        LLAMA
        | {"n_routed_experts": 8, "n_shared_experts": None, "num_experts_per_tok": 3}
        | {"moe_intermediate_size": 17, "norm_topk_prob": True, "moe_layer_freq": 2},
        LLAMA
        | {"n_routed_experts": 5, "n_shared_experts": 1, "num_experts_per_tok": 1}
        | {"moe_intermediate_size": 31, "norm_topk_prob": True, "num_attention_heads": 6}
        | {"num_key_value_heads": 2, "rope_parameters": YARN | {"rope_theta": 1e4}},
    ],
    "deepseek_v2": [
        MLA,
        MLA
        | {"q_lora_rank": None, "n_shared_experts": 2, "routed_scaling_factor": 1.7}
        | {"num_hidden_layers": 3, "tie_word_embeddings": True},
        MLA
        | {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
        | {"routed_scaling_factor": 16.0, "first_k_dense_replace": 0, "num_attention_heads": 4}
        | {"num_key_value_heads": 4, "v_head_dim": 7, "qk_nope_head_dim": 22},
        MLA
        | {"norm_topk_prob": True, "routed_scaling_factor": 3.0, "attention_bias": True}
        | {
            "rope_parameters": YARN | {"rope_theta": 1e4, "mscale": 0.707, "mscale_all_dim": 0.707},
        },
        MLA
        | {"num_experts_per_tok": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.0}
        | {"rope_parameters": YARN | {"rope_theta": 1e4, "mscale": 1.0, "mscale_all_dim": 0.5}},
    ],
    "deepseek_v3": [
        MLA | {"n_group": 4, "topk_group": 2, "num_nextn_predict_layers": 1},
        MLA
        | {"n_group": 1, "topk_group": 1, "q_lora_rank": None, "n_routed_experts": 9}
        | {"num_nextn_predict_layers": 0, "tie_word_embeddings": True},
        MLA
        | {"n_group": 3, "topk_group": 3, "norm_topk_prob": False, "n_shared_experts": 2}
        | {"num_nextn_predict_layers": 0, "attention_bias": True, "rope_interleave": False},
        MLA
        | {"n_group": 2, "topk_group": 1, "num_attention_heads": 4, "num_key_value_heads": 4}
        | {
            "num_nextn_predict_layers": 0,
            "v_head_dim": 9,
            "qk_nope_head_dim": 7,
            "num_hidden_layers": 3,
        }
        | {
            "kv_lora_rank": 33,
            "rope_parameters": YARN | {"rope_theta": 1e4, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ],
    "deepseek_v32": [
        INDEXED | {"n_group": 4, "topk_group": 2, "num_nextn_predict_layers": 1},
        INDEXED  # every token attends to all it sees
        | {"n_group": 1, "topk_group": 1, "index_topk": 64, "tie_word_embeddings": True},
        INDEXED
        | {"n_group": 3, "topk_group": 3, "norm_topk_prob": False, "n_shared_experts": 2}
        | {"attention_bias": True, "index_n_heads": 19, "index_topk": 3, "index_head_dim": 6},
        INDEXED
        | {"n_group": 2, "topk_group": 1, "num_attention_heads": 4, "num_key_value_heads": 4}
        | {"v_head_dim": 9, "qk_nope_head_dim": 7, "num_hidden_layers": 3, "kv_lora_rank": 33}
        | {"first_k_dense_replace": 2, "index_head_dim": 17, "index_topk": 11}
        | {"rope_parameters": YARN | {"rope_theta": 1e4, "mscale": 1.0, "mscale_all_dim": 1.0}},
        INDEXED
        | {"first_k_dense_replace": 0, "n_group": 1, "topk_group": 1, "index_n_heads": 16}
        | {"index_topk": 1, "num_experts_per_tok": 2, "index_head_dim": 32},
        INDEXED
        | {"first_k_dense_replace": 0, "num_hidden_layers": 3}
        | {"n_group": 2, "topk_group": 2, "kv_lora_rank": 64, "index_topk": 10}
        | {"qk_rope_head_dim": 32, "index_head_dim": 64, "qk_nope_head_dim": 32, "v_head_dim": 20}
        | {"num_nextn_predict_layers": 1, "rope_parameters": YARN | {"rope_theta": 1e5}},
    ],
    "deepseek_v4": [
        # both ways to write a config; windows and entries on either side of a prompt's length
        V4,
        V4
        | {"compress_rates": _rates(3, 7), "sliding_window": 2, "index_topk": 1}
        | {"num_hash_layers": 0, "swiglu_limit": 0.4, "hc_mult": 3, "hc_sinkhorn_iters": 4}
        | {"layer_types": ["heavily_compressed_attention", "compressed_sparse_attention"] * 2}
        | {"num_attention_heads": 6, "o_groups": 3, "o_lora_rank": 16, "num_hidden_layers": 4},
        V4
        | {"layer_types": ["sliding_attention"] * 2, "num_hidden_layers": 2}
        | {"sliding_window": 40, "tie_word_embeddings": True, "qk_rope_head_dim": 20},
        V4
        | {"compress_rates": _rates(1, 2), "index_topk": 40, "scoring_func": "sigmoid"}
        | {"mlp_layer_types": ["moe", "hash_moe", "moe"], "num_hidden_layers": 3}
        | {"rope_scaling": YARN | {"original_max_position_embeddings": 24}, "hc_mult": 2}
        | {"layer_types": ["compressed_sparse_attention", "heavily_compressed_attention"] * 2},
        V4
        | {"compress_rates": _rates(5, 4), "sliding_window": 9, "o_groups": 1, "head_dim": 34}
        | {"index_head_dim": 22, "qk_rope_head_dim": 10, "index_n_heads": 11, "hc_mult": 1}
        | {"num_nextn_predict_layers": 0, "rope_scaling": YARN, "index_topk": 3},
        V4
        | {"compress_rates": _rates(4, 128), "sliding_window": 1}
        | {"num_experts_per_tok": 1, "n_routed_experts": 4, "compress_rope_theta": 300.0}
        | {"swiglu_limit": 1.0, "routed_scaling_factor": 2.5, "rope_theta": 50.0},
    ],
}
"""model_type → configs, in Hugging Face's field names; the rest has the library's default."""

ALL = [(model_type, index) for model_type in CONFIGS for index in range(len(CONFIGS[model_type]))]
"""Every (model_type, index), to parametrise a test with."""

DENSE = [case for case in ALL if case[0] not in ("deepseek_v32", "deepseek_v4")]
"""Those whose tokens attend to all they see: MNN's ops and our GGUF files know no others."""

LOADED = [case for case in ALL if case[0] != "deepseek_v4"]
"""Those whose checkpoints transformers loads: V4's it knows by the published names alone."""

_EVEN: Config = {"hidden_size": 256, "intermediate_size": 512, "rms_norm_eps": 1e-6}
_GROUPED = _EVEN | {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32}
_LATENT = _EVEN | {"moe_intermediate_size": 256, "kv_lora_rank": 256, "q_lora_rank": 256}
_LATENT |= {"num_attention_heads": 4, "num_key_value_heads": 4, "n_group": 1, "topk_group": 1}
_LATENT |= {"qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 64}

WHOLE_BLOCKS: dict[str, Config] = {
    "llama": LLAMA | _GROUPED,
    "qwen2": LLAMA | _GROUPED,
    "qwen3": LLAMA | _GROUPED,
    "deepseek": CONFIGS["deepseek"][1] | _GROUPED | {"moe_intermediate_size": 256},
    "deepseek_v2": MLA | _LATENT,
    "deepseek_v3": MLA | _LATENT | {"num_nextn_predict_layers": 0},
}
"""model_type → a config whose rows are whole blocks of every type of GGUF."""


@dataclass(frozen=True)
class TinyModel:
    """A checkpoint on disk and its oracle, which other tests use too: copy it to change it."""

    path: Path
    config: Config
    model: torch.nn.Module

    def logits(self, ids: Sequence[int]) -> F32:
        """Float32 logits of the whole prompt, [len(ids), vocab_size]."""
        with torch.no_grad():
            out = self.model(input_ids=torch.tensor([list(ids)])).logits[0]
        return np.asarray(out, np.float32)

    def hidden(self, ids: Sequence[int]) -> F32:
        """Float32 last hidden state of the whole prompt, [len(ids), hidden_size]."""
        with torch.no_grad():
            out = self.model.model(input_ids=torch.tensor([list(ids)]))
        return np.asarray(out.last_hidden_state[0], np.float32)

    def names(self) -> list[str]:
        """The tensors of the checkpoint."""
        return list(self._tensors)

    def read(self, name: str) -> F32:
        """A tensor of the checkpoint: what `deepmnn.graph.weights.TensorSource` asks for."""
        return np.asarray(self._tensors[name], np.float32)

    @cached_property
    def _tensors(self) -> dict[str, torch.Tensor]:
        return load_file(self.path / "model.safetensors")


def tiny_checkpoint(model_type: str, index: int, path: Path, seed: int = 0) -> TinyModel:
    """Writes CONFIGS[model_type][index] with random weights to `path`."""
    return checkpoint_of(model_type, CONFIGS[model_type][index], path, seed)


def checkpoint_of(
    model_type: str, fields: Config, path: Path, seed: int = 0, bf16_embedding: bool = False
) -> TinyModel:
    """Writes a model with random weights to `path`.

    bf16_embedding: the embedding table's values are all bf16's.
    """
    config, model, files = _made(json.dumps([model_type, fields, seed, bf16_embedding]))
    path.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (path / name).write_bytes(data)
    return TinyModel(path, json.loads(config), model)


@lru_cache(maxsize=128)
def _made(arguments: str) -> tuple[str, torch.nn.Module, dict[str, bytes]]:
    """What `checkpoint_of` makes of its arguments: config, oracle, and files by name.

    Kept, since dozens of tests ask for the same few models.
    """
    model_type, fields, seed, bf16_embedding = json.loads(arguments)
    make = _deepseek if model_type == "deepseek" else _transformers(model_type)
    model, config = make(fields)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if name.endswith("tid2eid"):
            scores = torch.rand((len(tensor), fields["n_routed_experts"]), generator=generator)
            tensor.copy_(scores.argsort(-1)[:, : tensor.shape[1]])
            continue
        values = _random(name, tensor.shape, generator)
        rounded = bf16_embedding and ("embed_tokens" in name or "lm_head" in name)  # tied, perhaps
        tensor.copy_(values.bfloat16().float() if rounded else values)
    text = json.dumps(config, indent=1)
    with TemporaryDirectory() as folder:
        path = Path(folder)
        if model_type == "deepseek":
            tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            save_file(tensors, path / "model.safetensors", {"format": "pt"})
        elif model_type == "deepseek_v4":
            # save_pretrained writes half of the published names (tests/source/test_v4_names.py)
            save_file(_unstacked(model.state_dict()), path / "model.safetensors", {"format": "pt"})
        else:
            model.save_pretrained(path)
        (path / "config.json").write_text(text)
        _add_draft_weights(path, config, generator)
        files = {file.name: file.read_bytes() for file in path.iterdir()}
    return text, model.eval(), files


def _unstacked(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every expert by itself, as other models' checkpoints have them."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        stem, stacked, kind = name.rpartition(".experts.")
        if not stacked or kind not in ("gate_up_proj", "down_proj"):
            found[name] = tensor.clone()
            continue
        for expert, matrix in enumerate(tensor):
            names = ["down_proj"] if kind == "down_proj" else ["gate_proj", "up_proj"]
            for part, rows in zip(names, matrix.chunk(len(names)), strict=True):
                found[f"{stem}.experts.{expert}.{part}.weight"] = rows.clone()
    return found


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Values that keep activations near one and leave nothing at its neutral value."""
    noise = torch.randn(shape, generator=generator)
    if name.endswith("norm.weight"):
        return 1.0 + 0.3 * noise
    if name.endswith("bias"):
        return 0.2 * noise
    if "embed_tokens" in name:
        return noise
    return 1.5 * noise / shape[-1] ** 0.5


def _transformers(model_type: str) -> Callable[[Config], tuple[Any, Config]]:
    def make(fields: Config) -> tuple[Any, Config]:
        config = transformers.AutoConfig.for_model(model_type, **fields)
        model = transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation="eager", experts_implementation="eager", dtype=torch.float32
        )
        if model_type == "deepseek_v2" and fields.get("norm_topk_prob"):
            _normalize_like_deepseek(model)
        return model, config.to_dict() | {"architectures": [type(model).__name__]}

    return make


def _normalize_like_deepseek(model: Any) -> None:
    """transformers' DeepSeek-V2 ignores norm_topk_prob and always scales.

    DeepSeek's MoEGate (modeling_deepseek.py): with norm_topk_prob and more than one expert the
    weights are normalised and not scaled.
    """
    for layer in model.model.layers:
        gate = getattr(layer.mlp, "gate", None)
        if gate is None or gate.top_k == 1:
            continue

        def forward(x: torch.Tensor, gate: Any = gate, plain: Any = gate.forward) -> Any:
            logits, weights, indices = plain(x)
            weights = weights / gate.routed_scaling_factor
            return logits, weights / (weights.sum(-1, keepdim=True) + 1e-20), indices

        gate.forward = forward


def _add_draft_weights(path: Path, config: Config, generator: torch.Generator) -> None:
    """transformers writes no multi-token-prediction layers; published checkpoints have them."""
    draft = build_draft(config)
    if draft is not None:
        tensors = load_file(path / "model.safetensors")
        for tensor in (t for weight in draft.weights.values() for t in tensors_of(weight.expr)):
            if tensor.name not in tensors:
                tensors[tensor.name] = _random(tensor.name, torch.Size(tensor.shape), generator)
        save_file(tensors, path / "model.safetensors", {"format": "pt"})


class _DeepseekMoE(torch.nn.Module):
    """The expert layer of DeepSeek-MoE-16B: transformers has no such model, so this follows the
    paper (arXiv:2401.06066, section 3) and the published MoEGate: softmax over all experts, the
    top_k weights normalised only when norm_topk_prob is set and top_k > 1.
    """

    def __init__(self, fields: Config, llama: Any) -> None:
        super().__init__()
        mlp = transformers.models.llama.modeling_llama.LlamaMLP

        def sized(size: int) -> torch.nn.Module:
            config = type(llama)(**(llama.to_dict() | {"intermediate_size": size}))
            return mlp(config)

        size, shared = fields["moe_intermediate_size"], fields["n_shared_experts"]
        experts = fields["n_routed_experts"]
        self.top_k = fields["num_experts_per_tok"]
        self.normalize = fields.get("norm_topk_prob", False) and self.top_k > 1
        self.gate = torch.nn.Linear(llama.hidden_size, experts, bias=False)
        self.experts = torch.nn.ModuleList(sized(size) for _ in range(experts))
        self.shared_experts = sized(size * shared) if shared else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, indices = self.gate(x).softmax(-1).topk(self.top_k, dim=-1)
        if self.normalize:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        out = torch.zeros_like(x) if self.shared_experts is None else self.shared_experts(x)
        for number, expert in enumerate(self.experts):
            weight = (weights * (indices == number)).sum(-1, keepdim=True)
            out = out + weight * expert(x)
        return out


def _deepseek(fields: Config) -> tuple[Any, Config]:
    """Llama whose MLPs are experts where the config says so."""
    known = {key: fields[key] for key in [*LLAMA, "rope_parameters"] if key in fields}
    llama = transformers.LlamaConfig(**known, attn_implementation="eager")
    model = transformers.LlamaForCausalLM(llama)
    first, every = fields.get("first_k_dense_replace", 0), fields.get("moe_layer_freq", 1)
    for number, layer in enumerate(model.model.layers):
        if fields["n_routed_experts"] and number >= first and number % every == 0:
            layer.mlp = _DeepseekMoE(fields, llama)
    return model, {"model_type": "deepseek", "architectures": ["DeepseekForCausalLM"]} | fields
