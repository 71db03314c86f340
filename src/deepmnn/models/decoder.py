"""The frame all models share: embedding, pre-norm decoder layers, final norm, output head."""

from __future__ import annotations

from collections.abc import Callable

from deepmnn.graph.builder import GraphBuilder
from deepmnn.models.config import ModelConfig

Block = Callable[[GraphBuilder, str, int], str]
"""(builder, x [tokens, hidden], layer index) → [tokens, hidden]."""


def decoder(name: str, config: ModelConfig, attention: Block, feed_forward: Block) -> GraphBuilder:
    """The whole model: ids [tokens] → hidden [rows, hidden_size], logits [rows, vocab_size].

    The final norm, which gives hidden, and the head run only on the rows whose logits are wanted.
    """
    b = GraphBuilder(name)
    x = b.embedding(b.ids, "embed_tokens", config.vocab_size, config.hidden_size)
    for layer in range(config.num_hidden_layers):
        x = decoder_layer(b, x, layer, config, attention, feed_forward)
    x = b.select_rows(x, "select_rows")
    x = b.output(b.rms_norm(x, "norm", config.rms_norm_eps), "hidden")
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    logits = b.linear(x, "lm_head", config.vocab_size, role="lm_head", tensor=head)
    b.output(logits, "logits")
    return b


def decoder_layer(
    b: GraphBuilder,
    x: str,
    layer: int,
    config: ModelConfig,
    attention: Block,
    feed_forward: Block,
) -> str:
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""
    name = f"layers.{layer}"
    normed = b.rms_norm(x, f"{name}.input_layernorm", config.rms_norm_eps)
    x = b.add(x, attention(b, normed, layer), f"{name}.attention_residual")
    normed = b.rms_norm(x, f"{name}.post_attention_layernorm", config.rms_norm_eps)
    return b.add(x, feed_forward(b, normed, layer), f"{name}.mlp_residual")


def mlp(
    b: GraphBuilder,
    x: str,
    name: str,
    intermediate_size: int,
    bias: bool = False,
    limit: float = 0.0,
) -> str:
    """SwiGLU (arXiv:2002.05202): down(silu(gate(x)) · up(x)). limit: see `gated`."""
    hidden_size = b.value(x).width
    gate = b.linear(x, f"{name}.gate_proj", intermediate_size, bias)
    up = b.linear(x, f"{name}.up_proj", intermediate_size, bias)
    return b.linear(gated(b, gate, up, name, limit), f"{name}.down_proj", hidden_size, bias)


def gated(b: GraphBuilder, gate: str, up: str, name: str, limit: float = 0.0) -> str:
    """silu(gate) · up. limit: gate is at most that, and up within ±limit; 0: no limit."""
    if limit:
        gate = b.clamp(gate, f"{name}.gate_clamp", limit, two_sided=False)
        up = b.clamp(up, f"{name}.up_clamp", limit, two_sided=True)
    return b.mul(b.silu(gate, f"{name}.silu"), up, f"{name}.mul")
