"""DeepSeek models from checkpoint to phone and server.

import deepmnn

model = deepmnn.load("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B")  # converted at first use
answer = model.generate([{"role": "user", "content": "What is 347 + 285?"}])
print(answer.reasoning, answer.text)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from deepmnn import errors
from deepmnn.errors import DeepmnnError

if TYPE_CHECKING:
    from deepmnn.api.chat import Chat
    from deepmnn.api.exporting import export
    from deepmnn.api.llm import LLM
    from deepmnn.api.loading import load
    from deepmnn.api.options import LoadOptions
    from deepmnn.backends.mnn.options import MnnOptions
    from deepmnn.conversion.convert import convert
    from deepmnn.engine.completion import Chunk, Completion, TokenLogprobs
    from deepmnn.quant.recipe import Recipe, Rule
    from deepmnn.text.sampling_params import SamplingParams

__all__ = [
    "LLM",
    "Chat",
    "Chunk",
    "Completion",
    "DeepmnnError",
    "LoadOptions",
    "MnnOptions",
    "Recipe",
    "Rule",
    "SamplingParams",
    "TokenLogprobs",
    "convert",
    "errors",
    "export",
    "load",
]

__version__ = "0.1.0"

_HOMES = {
    "LLM": "deepmnn.api.llm",
    "Chat": "deepmnn.api.chat",
    "LoadOptions": "deepmnn.api.options",
    "load": "deepmnn.api.loading",
    "MnnOptions": "deepmnn.backends.mnn.options",
    "convert": "deepmnn.conversion.convert",
    "Recipe": "deepmnn.quant.recipe",
    "Rule": "deepmnn.quant.recipe",
    "export": "deepmnn.api.exporting",
    "Chunk": "deepmnn.engine.completion",
    "Completion": "deepmnn.engine.completion",
    "TokenLogprobs": "deepmnn.engine.completion",
    "SamplingParams": "deepmnn.text.sampling_params",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `import deepmnn` is quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'deepmnn' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
