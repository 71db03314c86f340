"""What transformers lacks of DeepSeek's published code, in PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

MOE_16B = "deepseek"
"""model_type of DeepSeek-MoE-16B, whose modeling_deepseek.py lies beside its weights."""

_EPS = 1e-20


def moe_16b(torch: Any, transformers: Any, fields: Mapping[str, Any]) -> tuple[type, Any]:
    """The class of a DeepSeek-MoE-16B, and its config.

    Llama, but that some layers' MLPs are experts (arXiv:2401.06066, section 3).

    fields: those of config.json.
    """
    llama = transformers.models.llama.modeling_llama
    base: Any = llama.LlamaForCausalLM
    moe = _expert_layer(torch, torch.nn.Module, llama.LlamaMLP)

    class DeepseekForCausalLM(base):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            if config.n_routed_experts is None:
                return
            for number, layer in enumerate(self.model.layers):
                if number >= config.first_k_dense_replace and number % config.moe_layer_freq == 0:
                    layer.mlp = moe(config)

    defaults = {
        "n_routed_experts": None,
        "n_shared_experts": None,
        "first_k_dense_replace": 0,
        "moe_layer_freq": 1,
        "norm_topk_prob": False,
    }
    known = {
        name: value for name, value in fields.items() if name not in ("model_type", "auto_map")
    }
    return DeepseekForCausalLM, transformers.LlamaConfig(**defaults | known)


def _expert_layer(torch: Any, module: Any, mlp: Any) -> Any:
    """The class of a layer of experts; its modules are called as in transformers' DeepSeek-V2."""
    nn = torch.nn
    module_list: Any = nn.ModuleList

    def sized(config: Any, size: int) -> Any:
        own = copy.copy(config)
        own.intermediate_size = size
        return mlp(own)

    class Gate(module):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
            self.top_k = int(config.num_experts_per_tok)
            self.normalize = config.norm_topk_prob and self.top_k > 1

        def forward(self, x: Any) -> tuple[Any, Any, Any]:
            logits = nn.functional.linear(x, self.weight)
            weights, indices = logits.softmax(-1).topk(self.top_k, dim=-1)
            return logits, _normalized(weights) if self.normalize else weights, indices

    class Experts(module_list):  # type: ignore[misc]
        def forward(self, x: Any, indices: Any, weights: Any) -> Any:
            out = torch.zeros_like(x)
            for number, expert in enumerate(self):
                rows, place = (indices == number).nonzero(as_tuple=True)
                out.index_add_(0, rows, expert(x[rows]) * weights[rows, place, None])
            return out

    class DeepseekMoE(module):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__()
            size, shared = config.moe_intermediate_size, config.n_shared_experts
            self.gate = Gate(config)
            self.experts = Experts(sized(config, size) for _ in range(config.n_routed_experts))
            self.shared_experts = sized(config, size * shared) if shared else None

        def forward(self, x: Any) -> Any:
            rows = x.reshape(-1, x.shape[-1])
            _, weights, indices = self.gate(rows)
            out = self.experts(rows, indices, weights).view(x.shape)
            return out if self.shared_experts is None else out + self.shared_experts(x)

    return DeepseekMoE


def normalize_weights(model: Any) -> None:
    """Makes a DeepSeek-V2 obey norm_topk_prob, which transformers ignores.

    DeepSeek's MoEGate: with norm_topk_prob and more than one expert the weights are normalised
    and not scaled.
    """
    config = model.config
    if config.model_type != "deepseek_v2" or not getattr(config, "norm_topk_prob", False):
        return
    for layer in model.model.layers:
        gate = getattr(layer.mlp, "gate", None)
        if gate is not None and gate.top_k > 1:
            gate.routed_scaling_factor = 1.0
            gate.register_forward_hook(_normalizing)


def _normalizing(_module: Any, _given: Any, made: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
    logits, weights, indices = made
    return logits, _normalized(weights), indices


def _normalized(weights: Any) -> Any:
    return weights / (weights.sum(-1, keepdim=True) + _EPS)
