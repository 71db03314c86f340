"""Loading a model and asking it."""

from deepmnn.api.llm import LLM
from deepmnn.api.loading import load

__all__ = ["LLM", "load"]
