"""DeepSeek-V4, Flash and Pro, as transformers' modeling_deepseek_v4.py computes it.

The rounding of keys and indexer to FP8 and FP4 that DeepSeek's own code simulates is left out, as
it is there.
"""

from __future__ import annotations

from deepmnn.graph.builder import GraphBuilder
from deepmnn.graph.draft import STATE
from deepmnn.graph.ir import Graph
from deepmnn.models.compressed_attention import CompressedAttention
from deepmnn.models.hash_moe import LimitedExperts
from deepmnn.models.hyper_connections import HyperConnections
from deepmnn.models.v4_config import SLIDING, DeepseekV4Config

CONFIG = DeepseekV4Config


def build(c: DeepseekV4Config) -> Graph:
    """The graph of a config. Besides logits and hidden it offers `streams`, the residual after the
    last layer, [rows, hc_mult · hidden_size], which multi-token prediction goes on from.
    """
    b = GraphBuilder("deepseek_v4")
    x = b.embedding(b.ids, "embed_tokens", c.vocab_size, c.hidden_size)
    x = b.broadcast(x, "embed_streams", c.hc_mult)
    for layer in range(c.num_hidden_layers):
        x = decoder_layer(b, x, f"layers.{layer}", c, c.kinds[layer], c.is_hashed(layer))
    x = b.output(b.select_rows(x, "select_rows"), "streams")
    x = connections(c).head(b, x, "hc_head")
    x = b.output(b.rms_norm(x, "norm", c.rms_norm_eps), "hidden")
    b.output(lm_head(b, x, c), "logits")
    return b.graph


def build_draft(c: DeepseekV4Config) -> Graph | None:
    """The draft part of a config; None without layers for multi-token prediction.

    MTPBlock of DeepSeek's inference/model.py: e_proj(enorm(embedding of token i + 1)) +
    h_proj(hnorm(stream of token i)) of every stream, a whole layer that attends to its window, and
    an own weighted sum. Embedding and head are the model's. Of several such layers the first makes
    all guesses; every published model has one.
    """
    if c.num_nextn_predict_layers == 0:
        return None
    name, hidden, count = "mtp.0", c.hidden_size, c.hc_mult
    b = GraphBuilder("deepseek_v4 draft")
    streams = b.state("streams", count * hidden)
    x = b.embedding(b.ids, "embed_tokens", c.vocab_size, hidden)
    x = b.linear(b.rms_norm(x, f"{name}.enorm", c.rms_norm_eps), f"{name}.e_proj", hidden)
    normed = b.rms_norm(streams, f"{name}.hnorm", c.rms_norm_eps, count)
    parts = b.split(normed, f"{name}.hnorm_split", (hidden,) * count)
    shared = b.weight(f"{name}.h_proj.weight", (hidden, hidden), "linear")
    moved = [
        b.linear(part, f"{name}.h_proj.{i}", hidden, weight=shared) for i, part in enumerate(parts)
    ]
    moved_streams = b.concat(moved, f"{name}.h_proj")
    x = b.add(b.broadcast(x, f"{name}.broadcast", count), moved_streams, f"{name}.sum")
    x = decoder_layer(b, x, name, c, SLIDING, hashed=False)
    x = b.output(b.select_rows(x, f"{name}.select_rows"), STATE)
    x = connections(c).head(b, x, f"{name}.hc_head")
    x = b.rms_norm(x, f"{name}.norm", c.rms_norm_eps)
    b.output(lm_head(b, x, c), "logits")
    return b.graph


def decoder_layer(
    b: GraphBuilder, x: str, name: str, c: DeepseekV4Config, kind: str, hashed: bool
) -> str:
    """Streams [tokens, streams, hidden] → the same, after attention and experts.

    name: what names of nodes and weights begin with. kind: one of `layer_types`. hashed: whether
    ids choose the experts.
    """
    hyper = connections(c)
    block, post, comb = hyper.enter(b, x, f"{name}.attn_hc", f"{name}.input_layernorm")
    out = CompressedAttention(c)(b, block, name, kind)
    x = hyper.leave(b, out, post, comb, x, f"{name}.attn_hc")
    norm = f"{name}.post_attention_layernorm"
    block, post, comb = hyper.enter(b, x, f"{name}.ffn_hc", norm)
    out = LimitedExperts(c)(b, block, name, hashed)
    return hyper.leave(b, out, post, comb, x, f"{name}.ffn_hc")


def connections(c: DeepseekV4Config) -> HyperConnections:
    """What joins the blocks of a model."""
    return HyperConnections(c.hc_mult, c.hc_sinkhorn_iters, c.hc_eps, c.rms_norm_eps)


def lm_head(b: GraphBuilder, x: str, c: DeepseekV4Config) -> str:
    """Logits [n, vocab_size]."""
    head = "model.embed_tokens.weight" if c.tie_word_embeddings else "lm_head.weight"
    return b.linear(x, "lm_head", c.vocab_size, role="lm_head", tensor=head)
