"""Every fuzz target by name."""

from __future__ import annotations

import importlib

from fuzz.harness import Target

TARGETS = {
    "safetensors": ("weights", "Safetensors"),
    "torch": ("weights", "Torch"),
    "pickle": ("weights", "Pickle"),
    "gguf": ("gguf", "Gguf"),
    "checkpoint": ("checkpoint", "Checkpoint"),
    "tokenizer": ("text", "TokenizerFiles"),
    "chat_template": ("text", "Template"),
    "config": ("config", "Config"),
    "artifact": ("artifact", "Converted"),
    "export": ("artifact", "Exported"),
    "mnn": ("mnn", "Mnn"),
}
"""Name → file here, and class. Imported when it is wanted: fuzzers instrument imports."""


def target_class(name: str) -> type[Target]:
    """The class of a target."""
    module, cls = TARGETS[name]
    found: type[Target] = getattr(importlib.import_module(f"fuzz.targets.{module}"), cls)
    return found
