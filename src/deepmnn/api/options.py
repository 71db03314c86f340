"""How a model is loaded: the choices, and what each may be."""

from __future__ import annotations

BACKENDS = ("cpu", "mnn", "reference")

NUMA_MODES = ("off", "distribute", "isolate")

KV_DTYPES = {"f32": 4.0, "bf16": 2.0, "int8": 1.0625}
"""Storage formats of the KV cache and their bytes per element."""

DEFAULT_CACHE_BYTES = 1 << 30
"""The KV cache may take this much unless cache_tokens says otherwise."""

MAX_SIZE = (1 << 31) - 1
"""No argument of `load` is larger: the core counts in 32 bits."""
