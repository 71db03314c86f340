"""Models: one file for each config.json "model_type", found by its name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepmnn.errors import ConfigError, RequestError, UnsupportedModelError
from deepmnn.graph.ir import Graph
from deepmnn.graph.rewrite import prune

_SHARED = {"__init__", "config", "decoder", "gqa", "mla", "moe", "rope"}


def model_types() -> list[str]:
    """The model types deepmnn runs, in alphabetical order."""
    files = (path.stem for path in Path(__file__).parent.glob("*.py"))
    return sorted(stem for stem in files if stem not in _SHARED)


def build(config: Mapping[str, Any], outputs: Sequence[str] = ("logits",)) -> Graph:
    """The level-0 graph of a parsed config.json: the model as its paper writes it.

    outputs: what a step gives, by name: "logits" [rows, vocab_size], "hidden" [rows, hidden_size],
    which is what the head reads: Hugging Face's last hidden state, after the final norm.

    Raises:
        RequestError: outputs are none, or not ones that the model has.
        ConfigError: a field is missing, has the wrong type or is out of range.
        UnsupportedModelError: a model_type or an option deepmnn does not run.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"config.json holds {type(config).__name__}", "an object")
    model_type = config.get("model_type")
    if model_type not in model_types():
        raise UnsupportedModelError(
            f"model_type is {model_type!r}",
            f"one of {', '.join(model_types())}",
            "Check that config.json is the model's own.",
        )
    module = importlib.import_module(f"deepmnn.models.{model_type}")
    graph: Graph = module.build(config)
    return _giving(graph, outputs)


def _giving(graph: Graph, outputs: Sequence[str]) -> Graph:
    """The graph with these of its outputs alone."""
    unknown = [name for name in outputs if name not in graph.outputs]
    if unknown or not outputs:
        raise RequestError(
            f"outputs {tuple(outputs)!r:.200}", f"some of {', '.join(graph.outputs)}"
        )
    graph.outputs = list(dict.fromkeys(outputs))
    prune(graph)
    return graph
