"""Models: one file for each config.json "model_type", found by its name.

A model file has CONFIG, the class of its config, and `build`, which writes its graph; one with
multi-token prediction has `build_draft` too, which writes that.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepmnn.errors import ConfigError, RequestError, UnsupportedModelError
from deepmnn.graph.draft import Parts, state_of
from deepmnn.graph.ir import Graph
from deepmnn.graph.rewrite import prune
from deepmnn.models.config import ModelConfig
from deepmnn.models.fields import shown

_SHARED = {"__init__", "config", "decoder", "fields", "gqa", "indexer", "mla", "moe", "mtp", "rope"}
_SHARED |= {"compressed_attention", "compressor", "hash_moe", "hyper_connections", "v4_config"}


def model_types() -> list[str]:
    """The model types deepmnn runs, in alphabetical order."""
    files = (path.stem for path in Path(__file__).parent.glob("*.py"))
    return sorted(stem for stem in files if stem not in _SHARED)


def read_config(config: Mapping[str, Any]) -> ModelConfig:
    """The fields of a parsed config.json that say what the model computes.

    Raises:
        ConfigError: a field is missing, has the wrong type or is out of range.
        UnsupportedModelError: a model_type or an option deepmnn does not run.
    """
    return _module(config).CONFIG.from_dict(config)  # type: ignore[no-any-return]


def build(config: Mapping[str, Any], outputs: Sequence[str] = ("logits",)) -> Graph:
    """The level-0 graph of a parsed config.json: the model as its paper writes it.

    outputs: what a step gives, by name: "logits" [rows, vocab_size], "hidden" [rows, hidden_size],
    which is what the head reads: Hugging Face's last hidden state, after the final norm; of
    DeepSeek-V4 also "streams" [rows, hc_mult · hidden_size], the residual after the last layer.

    Raises:
        RequestError: outputs are none, or not ones that the model has.
        ConfigError: as `read_config`, or the graph would be larger than any model's.
    """
    graph: Graph = _module(config).build(read_config(config))
    return _giving(graph, outputs)


def build_draft(config: Mapping[str, Any]) -> Graph | None:
    """The level-0 graph of a model's draft part (graph/draft.py), which reads what `build` gives as
    "hidden", or "streams" (DeepSeek-V4); None for a model that has none.

    Raises ConfigError as `build`.
    """
    module = _module(config)
    if not hasattr(module, "build_draft"):
        return None
    draft: Graph | None = module.build_draft(read_config(config))
    return draft


def build_parts(config: Mapping[str, Any]) -> Parts:
    """The level-0 graphs of a parsed config.json: a model with a draft part gives its state, too.

    Raises ConfigError as `build`.
    """
    draft = build_draft(config)
    if draft is None:
        return Parts(build(config))
    return Parts(build(config, ("logits", state_of(draft))), draft)


def _module(config: Mapping[str, Any]) -> Any:
    """The model file of a config.json."""
    if not isinstance(config, Mapping):
        raise ConfigError(f"config.json holds {type(config).__name__}", "an object")
    model_type = config.get("model_type")
    if model_type == "deepseek_v41":
        raise UnsupportedModelError(
            "model_type is 'deepseek_v41' (DeepSeek-V4.1)",
            f"one of {', '.join(model_types())}",
            "Its shared caches and n-gram tables are another architecture; DeepSeek-V4 is run.",
        )
    if model_type not in model_types():
        raise UnsupportedModelError(
            f"model_type is {shown(model_type)}",
            f"one of {', '.join(model_types())}",
            "Check that config.json is the model's own.",
        )
    return importlib.import_module(f"deepmnn.models.{model_type}")


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
