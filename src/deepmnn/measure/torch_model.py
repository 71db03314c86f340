"""A checkpoint run by PyTorch and transformers: a reference that shares no code with deepmnn."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from deepmnn.backends.base import F32
from deepmnn.conversion.bundled import NAME, bundled_checkpoint
from deepmnn.errors import CheckpointError, MissingDependencyError
from deepmnn.measure.predictions import ROWS
from deepmnn.source.hub import fetched
from deepmnn.text.tokenizer import Tokenizer

INSTALL = 'Run: pip install "deepmnn[torch]"'


class TorchModel:
    """Computes in float32 on the CPU. Code of the checkpoint is never run.

    Args:
        name: a directory as transformers reads it, or OWNER/NAME of the hub.
        threads: of PyTorch; None leaves them as they are.

    Attributes:
        path: the directory.
        vocab_size: width of the logits.
        has_tokenizer: whether there is a tokenizer.json.

    Raises MissingDependencyError without PyTorch or transformers, CheckpointError when transformers
    cannot load the checkpoint.
    """

    def __init__(self, name: str | os.PathLike[str], threads: int | None = None) -> None:
        self._torch, transformers = _library("torch"), _library("transformers")
        self.path = _directory(name)
        if threads is not None:
            self._torch.set_num_threads(threads)
        self._model = _loaded(transformers, self.path, self._torch.float32)
        self.vocab_size = int(self._model.config.get_text_config().vocab_size)
        self.has_tokenizer = (self.path / "tokenizer.json").is_file()

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's. Raises TokenizerError when it has none."""
        return Tokenizer(self.path)

    def predict(self, ids: Sequence[int]) -> Iterator[F32]:
        """A `Predict`: the logits after each token."""
        for start in range(0, len(ids), ROWS):  # each time from the beginning: no cache to trust
            end = min(start + ROWS, len(ids))
            given = self._torch.tensor([list(ids[:end])])
            with self._torch.inference_mode():
                found = self._model(input_ids=given, use_cache=False, logits_to_keep=end - start)
            logits: F32 = found.logits[0].float().numpy()
            yield logits


def _loaded(transformers: Any, path: Path, dtype: Any) -> Any:
    """The model, whole. Raises CheckpointError."""
    log = transformers.utils.logging
    before = log.get_verbosity()
    log.set_verbosity_error()  # of weights that are not read, such as those of token prediction
    log.disable_progress_bar()
    try:
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # of a library that raises all kinds of them
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"transformers cannot load {path}: {reason:.300}", "a checkpoint that it reads"
        ) from error
    finally:
        log.set_verbosity(before)
    missing = sorted(report["missing_keys"])
    if missing:  # transformers would go on with random numbers
        raise CheckpointError(
            f"{path} lacks {len(missing)} weights, the first one {missing[0]:.80}", "all of them"
        )
    model.train(False)
    return model


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise MissingDependencyError(
            f"{name} is not installed", "PyTorch and transformers", INSTALL
        ) from None


def _directory(name: str | os.PathLike[str]) -> Path:
    """Raises CheckpointError unless it is a checkpoint's directory."""
    here = os.path.lexists(name)
    path = bundled_checkpoint() if name == NAME and not here else fetched(name)
    if not (path / "config.json").is_file():
        raise CheckpointError(
            f"{path} has no config.json", "a checkpoint's directory, as transformers reads it"
        )
    if (path / "deepmnn.json").exists():
        raise CheckpointError(
            f"{path} is a converted model",
            "a checkpoint for PyTorch",
            "Give the checkpoint that it was made of, or another backend.",
        )
    return path
