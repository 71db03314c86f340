"""DeepSeek-V3 in plain PyTorch, small enough to train on one CPU core.

Module names are the checkpoint's names, except that a layer's routed experts are stacked for speed
and that an MTP layer shares the trunk's embedding and head; `DeepSeekV3.checkpoint` writes both out
as DeepSeek publishes them. The architecture is that of the DeepSeek-V3 report (arXiv:2412.19437),
sections 2.1 (MLA, MoE) and 2.2 (MTP).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


@dataclass(frozen=True)
class Config:
    """`config.json` in Hugging Face's field names; the defaults are tiny-r1's."""

    vocab_size: int = 512
    hidden_size: int = 192
    intermediate_size: int = 512
    moe_intermediate_size: int = 128
    num_hidden_layers: int = 4
    num_nextn_predict_layers: int = 1
    num_attention_heads: int = 6
    num_key_value_heads: int = 6
    q_lora_rank: int = 128
    kv_lora_rank: int = 64
    qk_nope_head_dim: int = 32
    qk_rope_head_dim: int = 32
    v_head_dim: int = 32
    n_routed_experts: int = 8
    n_shared_experts: int = 1
    num_experts_per_tok: int = 2
    n_group: int = 4
    topk_group: int = 2
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.5
    scoring_func: str = "sigmoid"
    topk_method: str = "noaux_tc"
    first_k_dense_replace: int = 1
    moe_layer_freq: int = 1
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_position_embeddings: int = 4096
    attention_bias: bool = False
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02

    def to_json(self, bos: int, eos: int, pad: int) -> dict[str, object]:
        """The whole of `config.json`."""
        head = {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3"}
        tail = {
            "rope_scaling": None,
            "attention_dropout": 0.0,
            "pretraining_tp": 1,
            "use_cache": True,
        }
        ids = {
            "bos_token_id": bos,
            "eos_token_id": eos,
            "pad_token_id": pad,
            "torch_dtype": "bfloat16",
        }
        return {**head, **asdict(self), **tail, **ids}


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on interleaved pairs, DeepSeek's layout.

    x: [batch, heads, tokens, dim], cos and sin: [tokens, dim / 2]
    """
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.cat((even * cos - odd * sin, odd * cos + even * sin), dim=-1)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def linear(rows: int, columns: int) -> nn.Linear:
    return nn.Linear(rows, columns, bias=False)


class Attention(nn.Module):
    """Multi-head latent attention, in its expanded form."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        heads, qk = c.num_attention_heads, c.qk_nope_head_dim + c.qk_rope_head_dim
        self.q_a_proj = linear(c.hidden_size, c.q_lora_rank)
        self.q_a_layernorm = RMSNorm(c.q_lora_rank, c.rms_norm_eps)
        self.q_b_proj = linear(c.q_lora_rank, heads * qk)
        self.kv_a_proj_with_mqa = linear(c.hidden_size, c.kv_lora_rank + c.qk_rope_head_dim)
        self.kv_a_layernorm = RMSNorm(c.kv_lora_rank, c.rms_norm_eps)
        self.kv_b_proj = linear(c.kv_lora_rank, heads * (c.qk_nope_head_dim + c.v_head_dim))
        self.o_proj = linear(heads * c.v_head_dim, c.hidden_size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: [batch, tokens, hidden] -> [batch, tokens, hidden]"""
        c = self.c
        batch, tokens, _ = x.shape
        heads = (batch, tokens, c.num_attention_heads, -1)
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))).view(heads).transpose(1, 2)
        q_nope, q_rope = q.split((c.qk_nope_head_dim, c.qk_rope_head_dim), dim=-1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split(
            (c.kv_lora_rank, c.qk_rope_head_dim), dim=-1
        )
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).view(heads).transpose(1, 2)
        k_nope, v = kv.split((c.qk_nope_head_dim, c.v_head_dim), dim=-1)
        k_rope = rotate(k_rope.unsqueeze(1), cos, sin).expand(-1, c.num_attention_heads, -1, -1)
        q = torch.cat((q_nope, rotate(q_rope, cos, sin).to(q.dtype)), dim=-1)
        k = torch.cat((k_nope, k_rope.to(q.dtype)), dim=-1)
        # PyTorch's fused CPU attention wants one head size for q, k and v.
        v = F.pad(v, (0, q.shape[-1] - v.shape[-1]))
        q, k, v = q.float(), k.float(), v.float()  # its bfloat16 gradient is slower than float32
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)[..., : c.v_head_dim]
        mixed: Tensor = self.o_proj(out.transpose(1, 2).reshape(batch, tokens, -1))
        return mixed


class MLP(nn.Module):
    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = linear(hidden, inner)
        self.up_proj = linear(hidden, inner)
        self.down_proj = linear(inner, hidden)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Router(nn.Module):
    """Sigmoid scores, a selection bias for balance, experts picked from the best groups."""

    e_score_correction_bias: Tensor

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.weight = nn.Parameter(torch.empty(c.n_routed_experts, c.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(c.n_routed_experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: [tokens, hidden] -> weights [tokens, top_k], experts [tokens, top_k]"""
        c = self.c
        with torch.autocast("cpu", enabled=False):
            scores = F.linear(x.float(), self.weight).sigmoid()
        choice = scores.detach() + self.e_score_correction_bias
        groups = choice.view(-1, c.n_group, c.n_routed_experts // c.n_group)
        best = groups.topk(2, dim=-1).values.sum(-1).topk(c.topk_group, dim=-1).indices
        kept = torch.zeros(groups.shape[:2], dtype=torch.bool).scatter_(1, best, True)
        choice = groups.masked_fill(~kept.unsqueeze(-1), float("-inf")).flatten(1)
        experts = choice.topk(c.num_experts_per_tok, dim=-1).indices
        weights = scores.gather(1, experts)
        if c.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * c.routed_scaling_factor, experts


class MoE(nn.Module):
    load: Tensor

    def __init__(self, c: Config) -> None:
        super().__init__()
        experts, hidden, inner = c.n_routed_experts, c.hidden_size, c.moe_intermediate_size
        self.gate = Router(c)
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * inner, hidden))
        self.down = nn.Parameter(torch.empty(experts, hidden, inner))
        self.shared_experts = MLP(hidden, inner * c.n_shared_experts)
        self.register_buffer(
            "load", torch.zeros(experts), persistent=False
        )  # tokens per expert, last forward

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        weights, experts = self.gate(x)
        chosen = experts.flatten()
        order = chosen.argsort(stable=True)
        counts = torch.bincount(chosen, minlength=len(self.gate_up))
        self.load = counts.float()
        rows = order // experts.shape[1]
        out = []
        parts = torch.split(x[rows], counts.tolist())
        # unbind: the gradient of an index would be as large as all experts, for each of them
        experts_of = zip(parts, self.gate_up.unbind(), self.down.unbind(), strict=True)
        for part, gate_up, down in experts_of:
            gate, up = F.linear(part, gate_up).chunk(2, dim=-1)
            out.append(F.linear(F.silu(gate) * up, down))
        routed = torch.cat(out) * weights.flatten()[order].unsqueeze(-1)
        total: Tensor = self.shared_experts(x).float().index_add(0, rows, routed.float())
        return total.view(shape)

    @torch.no_grad()
    def balance(self, speed: float) -> None:
        """A step of auxiliary-loss-free balancing: overloaded experts are picked a little less."""
        bias = self.gate.e_score_correction_bias
        bias += speed * torch.sign(self.load.mean() - self.load)
        bias -= bias.mean()


class Layer(nn.Module):
    def __init__(self, c: Config, index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        dense = index < c.first_k_dense_replace
        self.mlp: nn.Module = MLP(c.hidden_size, c.intermediate_size) if dense else MoE(c)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class MTPLayer(Layer):
    """Predicts the token after the next from the trunk's output and the next token's embedding."""

    def __init__(self, c: Config) -> None:
        super().__init__(c, c.num_hidden_layers)
        self.enorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.hnorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.eh_proj = linear(2 * c.hidden_size, c.hidden_size)
        self.shared_head = nn.ModuleDict({"norm": RMSNorm(c.hidden_size, c.rms_norm_eps)})

    def draft(self, hidden: Tensor, embedded: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """hidden, embedded (one token ahead), result (normed): [batch, tokens, hidden]"""
        x = self.eh_proj(torch.cat((self.enorm(embedded), self.hnorm(hidden)), dim=-1))
        normed: Tensor = self.shared_head["norm"](self(x.float(), cos, sin))
        return normed


class Trunk(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        layers: list[nn.Module] = [Layer(c, index) for index in range(c.num_hidden_layers)]
        layers += [MTPLayer(c) for _ in range(c.num_nextn_predict_layers)]
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)


class DeepSeekV3(nn.Module):
    """The trunk, its head, and at most one MTP layer."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.model = Trunk(c)
        self.lm_head = linear(c.hidden_size, c.vocab_size)
        for name, weight in self.named_parameters():
            if weight.dim() > 1:
                depth = (
                    (2 * c.num_hidden_layers) ** 0.5 if "down" in name or "o_proj" in name else 1.0
                )
                std = (
                    c.initializer_range
                    if name.endswith("embed_tokens.weight")
                    else weight.shape[-1] ** -0.5
                )
                nn.init.normal_(weight, std=std / depth)

    @property
    def mtp(self) -> MTPLayer:
        layer = self.model.layers[-1]
        assert isinstance(layer, MTPLayer)
        return layer

    def moes(self) -> Iterator[MoE]:
        return (module for module in self.modules() if isinstance(module, MoE))

    def rope(self, tokens: int) -> tuple[Tensor, Tensor]:
        dim = self.c.qk_rope_head_dim
        frequencies = self.c.rope_theta ** (-torch.arange(0, dim, 2).float() / dim)
        angles = torch.outer(torch.arange(tokens).float(), frequencies)
        return angles.cos(), angles.sin()

    def hidden(self, ids: Tensor) -> Tensor:
        """ids: [batch, tokens] -> the trunk's normed output [batch, tokens, hidden]"""
        cos, sin = self.rope(ids.shape[1])
        x = self.model.embed_tokens(ids)
        for layer in list(self.model.layers)[: self.c.num_hidden_layers]:
            x = layer(x, cos, sin)
        normed: Tensor = self.model.norm(x)
        return normed

    def draft_hidden(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """The MTP layer's normed output for tokens two ahead: [batch, tokens - 1, hidden]"""
        cos, sin = self.rope(ids.shape[1] - 1)
        return self.mtp.draft(hidden[:, :-1], self.model.embed_tokens(ids[:, 1:]), cos, sin)

    def forward(self, ids: Tensor) -> Tensor:
        """ids: [batch, tokens] -> logits [batch, tokens, vocab]"""
        logits: Tensor = self.lm_head(self.hidden(ids))
        return logits

    def checkpoint(self) -> dict[str, Tensor]:
        """Weights under DeepSeek-V3's names, in bfloat16, the selection bias in float32."""
        out: dict[str, Tensor] = {}
        for name, weight in self.state_dict().items():
            stem, _, last = name.rpartition(".")
            if last == "e_score_correction_bias":
                out[name] = weight.float().clone()
            elif last == "gate_up":
                for expert, both in enumerate(weight.bfloat16()):
                    gate, up = both.chunk(2)
                    out[f"{stem}.experts.{expert}.gate_proj.weight"] = gate.clone()
                    out[f"{stem}.experts.{expert}.up_proj.weight"] = up.clone()
            elif last == "down":
                for expert, down in enumerate(weight.bfloat16()):
                    out[f"{stem}.experts.{expert}.down_proj.weight"] = down.clone()
            else:
                out[name] = weight.bfloat16().clone()
        if self.c.num_nextn_predict_layers:
            mtp = f"model.layers.{self.c.num_hidden_layers}"
            out[f"{mtp}.embed_tokens.weight"] = out["model.embed_tokens.weight"].clone()
            out[f"{mtp}.shared_head.head.weight"] = out["lm_head.weight"].clone()
        return out
