"""The reference backend: every op of docs/ops.md in numpy, the definition of what it does."""

from deepmnn.backends.reference.backend import Evaluator, ReferenceBackend
from deepmnn.backends.reference.cache import PagedCache

__all__ = ["Evaluator", "PagedCache", "ReferenceBackend"]
