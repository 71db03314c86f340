"""Quantised schemes of checkpoints, one file each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepmnn.errors import UnsupportedModelError
from deepmnn.source.codecs.codec import Codec
from deepmnn.source.codecs.foreign import check_scheme, quantization_of
from deepmnn.source.codecs.fp8 import Fp8
from deepmnn.source.store import Store

CODECS: tuple[type[Codec], ...] = (Fp8,)
"""The schemes that are read."""


def codec_of(config: Mapping[str, Any], store: Store) -> Codec | None:
    """The codec of a checkpoint, None when all of its tensors are stored plainly.

    Raises UnsupportedModelError when the weights are quantised in a way that is not read.
    """
    quantization = quantization_of(config)
    check_scheme(quantization or {}, store.names())
    for kind in CODECS:
        codec = kind.recognise(quantization, store)
        if codec is not None:
            return codec
    if quantization is not None:
        raise UnsupportedModelError(
            "these weights are already quantised "
            f"(quant_method {quantization.get('quant_method')!r:.80})",
            f"{', '.join(kind.scheme for kind in CODECS)} or unquantised weights",
            "Convert from the original checkpoint.",
        )
    return None
