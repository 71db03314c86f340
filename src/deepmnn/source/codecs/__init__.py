"""Quantised schemes of checkpoints, one file each."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from deepmnn.errors import UnsupportedModelError
from deepmnn.source.codecs.auto_round import AutoRound
from deepmnn.source.codecs.awq import Awq
from deepmnn.source.codecs.bitsandbytes import Bitsandbytes
from deepmnn.source.codecs.codec import Codec
from deepmnn.source.codecs.compressed_tensors import CompressedTensors
from deepmnn.source.codecs.foreign import UNREAD, UNSAID, check_scheme
from deepmnn.source.codecs.fp8 import METHODS, Fp8
from deepmnn.source.codecs.gptq import Gptq
from deepmnn.source.codecs.hqq import Hqq
from deepmnn.source.codecs.modelopt import Modelopt
from deepmnn.source.codecs.settings import quantization_of
from deepmnn.source.store import Store

CODECS: tuple[type[Codec], ...] = (
    Gptq,
    Awq,
    AutoRound,
    CompressedTensors,
    Modelopt,
    Bitsandbytes,
    Hqq,
    Fp8,
)
"""The schemes that are read, in the order they are tried."""


def codec_of(
    config: Mapping[str, Any], store: Store, directories: Collection[Path] = ()
) -> Codec | None:
    """The codec of a checkpoint, None when all of its tensors are stored plainly.

    Args:
        config: the fields of config.json.
        store: the raw tensors.
        directories: where files may say of the scheme what config.json does not.

    Raises UnsupportedModelError when the weights are quantised in a way that is not read.
    """
    quantization = quantization_of(config, directories)
    check_scheme(UNREAD, store.names())
    for kind in CODECS:
        codec = kind.recognise(quantization, store)
        if codec is not None:
            return codec
    if quantization is None:
        check_scheme(UNSAID, store.names())
        return None
    schemes = dict.fromkeys([*(kind.scheme for kind in CODECS), *METHODS])
    raise UnsupportedModelError(
        "these weights are already quantised "
        f"(quant_method {quantization.get('quant_method')!r:.80})",
        f"{', '.join(schemes)} or unquantised weights",
        "Convert from the original checkpoint.",
    )
