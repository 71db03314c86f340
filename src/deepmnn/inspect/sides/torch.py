"""A checkpoint run by PyTorch and transformers, its values by the names of our level-0 graph.

The modules of transformers are called one after another, with hooks on all of them. What happens
inside a module and between two of them does not show, but for attention, which is a function that
transformers lets one give it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

import numpy as np

from deepmnn.backends.base import I32
from deepmnn.inspect.side import Layer
from deepmnn.inspect.sides.samples import check_samples
from deepmnn.measure.torch_model import TorchModel
from deepmnn.models import build
from deepmnn.source.open import open_source

_ATTENTION = "deepmnn"
"""What our attention is called in transformers' table."""

_WEIGHTS = ("mlp.gate.scale", "mlp.gate.normalize", "mlp.gate.gather")
"""The experts' weights: the last step that a router takes to them."""

_SUMS = {"mlp": "mlp.add", "mlp.experts": "mlp.experts.combine"}
"""What modules give that add up experts, under our names; an MLP gives what its last map does."""

Record = Callable[[str, Any], None]
"""(name after the layer's, tensor) → keeps it."""


class TorchSide:
    """A model in PyTorch.

    What shows: the embedding's rows, what every linear map and every norm gives, queries and keys
    after RoPE, what attention gives, both sums of each layer; of experts the router's logits,
    choice and weights, and the sum of those chosen, but not what one expert computes.

    Args:
        model: with an architecture that deepmnn has, too.
    """

    def __init__(self, model: TorchModel) -> None:
        self.label = "PyTorch, float32"
        self.vocab_size = model.vocab_size
        self._torch: Any = import_module("torch")
        self._causal: Any = model.model
        graph = build(open_source(model.path).config, ("hidden", "logits"))
        self._names = frozenset(graph.values)
        _register()

    def layers(self, samples: Sequence[I32]) -> Iterator[Layer]:
        """As `Side`: the samples are one batch, padded on the right, which a causal model does not
        see.
        """
        check_samples(samples, self.vocab_size)
        longest = max(len(sample) for sample in samples)
        ids = np.zeros((len(samples), longest), np.int64)
        for row, sample in zip(ids, samples, strict=True):
            row[: len(sample)] = sample
        lengths = np.array([len(sample) for sample in samples])
        rows = np.flatnonzero(np.arange(longest) < lengths[:, None])
        run = _Run(self._torch, self._causal, rows, self._names)
        first = run.begin(ids)
        for number in range(len(self._causal.model.layers)):
            yield first | run.layer(number)
            first = {}
        yield run.end()


class _Run:
    """One pass through the model."""

    def __init__(self, torch: Any, causal: Any, rows: Any, names: frozenset[str]) -> None:
        self._torch, self._causal, self._model = torch, causal, causal.model
        self._rows, self._names = torch.from_numpy(rows), names
        self._hidden: Any = None
        self._given: dict[str, Any] = {}

    def begin(self, ids: Any) -> Layer:
        """Embeds ids [samples, tokens]."""
        with self._torch.inference_mode():
            self._hidden = self._model.embed_tokens(self._torch.from_numpy(ids))
            positions = self._torch.arange(ids.shape[1])[None]
            angles = self._model.rotary_emb(self._hidden, position_ids=positions)
            self._given = {"position_ids": positions, "position_embeddings": angles}
        return {"embed_tokens": self._kept(self._hidden)}

    def layer(self, number: int) -> Layer:
        """Runs the next decoder layer."""
        values: Layer = {}

        def record(name: str, tensor: Any) -> None:
            names = _WEIGHTS if name == _WEIGHTS[0] else (name,)
            for full in (f"layers.{number}.{name}" for name in names):
                if full in self._names:
                    values[full] = self._kept(tensor)
                    break

        module = self._model.layers[number]
        with self._torch.inference_mode(), _watched(module, record), _attending(self._causal):
            mask = None
            if hasattr(module.self_attn, "indexer"):  # which must not choose what comes later
                tokens = self._hidden.shape[1]
                mask = self._torch.ones(tokens, tokens, dtype=self._torch.bool).tril()[None, None]
            self._hidden = module(self._hidden, attention_mask=mask, **self._given)
        record("mlp_residual", self._hidden)
        return values

    def end(self) -> Layer:
        """The final norm and the head, of the rows that count alone."""
        with self._torch.inference_mode():
            hidden = self._model.norm(self._hidden.flatten(0, 1)[self._rows])
            logits = self._causal.lm_head(hidden)
        return {"hidden": hidden.numpy(), "logits": logits.numpy()}

    def _kept(self, tensor: Any) -> Any:
        """[samples, tokens, ...], or the first two as one → [rows that count, width]."""
        count = self._hidden.shape[0] * self._hidden.shape[1]
        kept = tensor.reshape(count, -1)[self._rows]
        return kept.numpy() if kept.is_floating_point() else kept.int().numpy()


@contextmanager
def _watched(layer: Any, record: Record) -> Iterator[None]:
    """Records what the modules of a decoder layer are given and give."""
    with ExitStack() as stack:
        for name, module in layer.named_modules():
            if not name.startswith("mlp.experts."):  # of some rows only
                handle = module.register_forward_hook(_hook(name, record))
                stack.callback(handle.remove)
        attention = layer.self_attn
        attention.record = record
        stack.callback(delattr, attention, "record")
        yield


def _hook(name: str, record: Record) -> Callable[[Any, Any, Any], None]:
    """What a module's call tells, under the names of our values."""
    parent, _, kind = name.rpartition(".")

    def hook(module: Any, given: Any, made: Any) -> None:
        if name == "mlp.gate":
            _record_router(module, made, record)
        elif kind == "act_fn":
            record(f"{parent}.silu", made)
        elif name in _SUMS:
            record(_SUMS[name], made)
        elif not isinstance(made, tuple):
            record(name, made)
        if kind == "post_attention_layernorm":
            record("attention_residual", given[0])
        elif kind == "down_proj":
            record(f"{parent}.mul", given[0])

    return hook


def _record_router(gate: Any, made: tuple[Any, Any, Any], record: Record) -> None:
    """The choice best first, as our graph has it: transformers gives it in any order."""
    logits, weights, indices = made
    order = indices.argsort(dim=-1)  # of equal ones the lower index is first
    weights, indices = weights.gather(-1, order), indices.gather(-1, order)
    bias = getattr(gate, "e_score_correction_bias", None)
    choice = weights if bias is None else (logits.sigmoid() + bias).gather(-1, indices)
    order = choice.argsort(dim=-1, descending=True, stable=True)
    record("mlp.gate", logits)
    record("mlp.gate.top_k", indices.gather(-1, order))
    record(_WEIGHTS[0], weights.gather(-1, order))


@contextmanager
def _attending(causal: Any) -> Iterator[None]:
    """Has attention computed by `_attention`."""
    config = causal.config
    before = config._attn_implementation
    config._attn_implementation = _ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


def _register() -> None:
    import_module("transformers").AttentionInterface.register(_ATTENTION, _attention)


def _attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    _mask: Any,
    scaling: float,
    indices: Any = None,
    **_: Any,
) -> tuple[Any, None]:
    """Causal attention as it is defined, of one sample at a time: their scores take much memory.

    query [samples, heads, tokens, head_dim], key and value with kv heads →
    [samples, tokens, heads, v_head_dim]. indices [samples, tokens, top_k]: the keys that an indexer
    chose, where the model has one.
    """
    torch = import_module("torch")
    tokens = query.shape[2]
    causal = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    out = []
    for sample, (q, k, v) in enumerate(zip(query, key, value, strict=True)):
        later = causal
        if indices is not None:
            others = torch.ones(tokens, tokens, dtype=torch.bool)
            later = causal | others.scatter(-1, indices[sample].long(), False)
        shared = len(q) // len(k)  # query heads that read the same keys
        k, v = (x.repeat_interleave(shared, dim=0) for x in (k, v))
        scores = (q @ k.transpose(1, 2) * scaling).masked_fill(later, -torch.inf)
        out.append((scores.softmax(-1) @ v).transpose(0, 1))
    made = torch.stack(out).contiguous()
    for name, rotated in (("q_rope", query), ("k_rope", key)):
        module.record(f"self_attn.{name}", _rotated(module, name, rotated).transpose(1, 2))
    module.record("self_attn.attention", made)
    return made, None


def _rotated(module: Any, name: str, x: Any) -> Any:
    """The rotated part of queries or keys, its pairs where our graph has them."""
    size = getattr(module, "qk_rope_head_dim", None)
    if size is None:
        return x
    x = x[..., -size:]
    if name == "k_rope":
        x = x[:, :1]  # all heads share it
    if not getattr(module.config, "rope_interleave", hasattr(module, "indexer")):
        return x
    # transformers' DeepSeek-V3 takes interleaved pairs and leaves their halves apart
    return x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
