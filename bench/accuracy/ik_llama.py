"""ik_llama.cpp. --source is a checkout, built in its folder `build` with llama-quantize.

llama.cpp's checkout converts the checkpoint for it and makes its importance matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.accuracy.llama_cpp import build, logits, needs, refuses, stored, version

__all__ = ["build", "logits", "needs", "refuses", "stored", "version"]

TITLE, TIMED = "ik_llama.cpp", "ik_llama"
RECIPES: Sequence[str] = ("IQ5_K imatrix", "IQ4_K imatrix", "IQ4_KS imatrix", "IQ4_KSS imatrix")
NOTE = "8-bit activations, KV cache f16; rows that 256 does not divide get formats of blocks of 32"
