"""Multi-token prediction (DeepSeek-V3, arXiv:2412.19437, section 2.2): a layer more, which guesses
the token after the next.
"""

from __future__ import annotations

from deepmnn.graph.builder import GraphBuilder
from deepmnn.graph.draft import STATE
from deepmnn.graph.ir import Graph
from deepmnn.models.config import ModelConfig
from deepmnn.models.decoder import Block, decoder_layer


def mtp_part(name: str, c: ModelConfig, layer: int, attention: Block, feed_forward: Block) -> Graph:
    """The draft part (graph/draft.py) of a model whose layer number `layer` predicts further.

    x = eh_proj([enorm(embedding of token i + 1); hnorm(hidden of token i)]), through a decoder
    layer: state [rows, hidden_size]; head(norm(state)): logits of token i + 2. hidden is what the
    main part gives after its final norm; state, before shared_head's norm, is in its place for the
    next guess: both as vLLM has them. Of several such layers, which in the paper guess one further
    token each, the first makes all guesses; every published model has one.
    """
    b, prefix, width = GraphBuilder(f"{name} draft"), f"layers.{layer}", c.hidden_size
    hidden = b.state("hidden", width)
    x = b.embedding(b.ids, f"{prefix}.embed_tokens", c.vocab_size, width)
    x = b.rms_norm(x, f"{prefix}.enorm", c.rms_norm_eps)
    hidden = b.rms_norm(hidden, f"{prefix}.hnorm", c.rms_norm_eps)
    x = b.linear(b.concat([x, hidden], f"{prefix}.concat"), f"{prefix}.eh_proj", width)
    x = decoder_layer(b, x, layer, c, attention, feed_forward)
    x = b.output(b.select_rows(x, f"{prefix}.select_rows"), STATE)
    x = b.rms_norm(x, f"{prefix}.shared_head.norm", c.rms_norm_eps)
    logits = b.linear(x, f"{prefix}.shared_head.head", c.vocab_size, role="lm_head")
    b.output(logits, "logits")
    return b.graph
