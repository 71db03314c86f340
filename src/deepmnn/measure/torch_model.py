"""A checkpoint run by PyTorch and transformers: a reference that shares no code with deepmnn.

Of a GGUF file, or a file of weights, transformers computes with the config and the numbers that
deepmnn reads: that reference shares the reading. Where transformers departs from the code that
DeepSeek published, or has no such model, torch_deepseek.py has what DeepSeek's does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from deepmnn.backends.base import F32
from deepmnn.conversion.bundled import NAME, bundled_checkpoint
from deepmnn.errors import CheckpointError, MissingDependencyError
from deepmnn.measure.predictions import ROWS
from deepmnn.measure.torch_deepseek import MOE_16B, moe_16b, normalize_weights
from deepmnn.source.gguf.splits import models_in
from deepmnn.source.hub import fetched
from deepmnn.source.json_file import read_object
from deepmnn.source.open import open_source
from deepmnn.source.source import Source
from deepmnn.text.text_files import SourceFiles, TextFiles
from deepmnn.text.tokenizer import FILE, Tokenizer

INSTALL = 'Run: pip install "deepmnn[torch]"'


class TorchModel:
    """Computes in float32 on the CPU. Code of the checkpoint is never run.

    Args:
        name: a directory as transformers reads it, OWNER/NAME of the hub, or a file.
        threads: of PyTorch; None leaves them as they are.

    Attributes:
        path: the directory or file.
        model: transformers' own, for causal language modelling.
        vocab_size: width of the logits.
        has_tokenizer: whether there is a tokenizer.json.

    Raises MissingDependencyError without PyTorch or transformers, CheckpointError when transformers
    cannot load the checkpoint.
    """

    def __init__(self, name: str | os.PathLike[str], threads: int | None = None) -> None:
        self._torch, transformers = _library("torch"), _library("transformers")
        self.path = _checkpoint(name)
        if threads is not None:
            self._torch.set_num_threads(threads)
        self._files = TextFiles(self.path)
        whole: dict[str, Any] = {
            "pretrained_model_name_or_path": self.path,
            "trust_remote_code": False,
        }
        kind = transformers.AutoModelForCausalLM
        if not self.path.is_dir() or not (self.path / "config.json").is_file():
            source = open_source(self.path)
            self._files = SourceFiles(source, self.path)
            kind, whole = _given(self._torch, transformers, source, self.path)
        elif (fields := read_object(self.path / "config.json", CheckpointError)).get(
            "model_type"
        ) == MOE_16B:
            kind, whole["config"] = _moe_16b(self._torch, transformers, fields, self.path)
        self.model = _loaded(transformers, kind, whole, self.path, self._torch.float32)
        normalize_weights(self.model)
        self.vocab_size = int(self.model.config.get_text_config().vocab_size)
        self.has_tokenizer = FILE in self._files

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's. Raises TokenizerError when it has none."""
        return Tokenizer(self._files)

    def predict(self, ids: Sequence[int]) -> Iterator[F32]:
        """A `Predict`: the logits after each token."""
        for start in range(0, len(ids), ROWS):  # each time from the beginning: no cache to trust
            end = min(start + ROWS, len(ids))
            given = self._torch.tensor([list(ids[:end])])
            with self._torch.inference_mode():
                found = self.model(input_ids=given, use_cache=False, logits_to_keep=end - start)
            logits: F32 = found.logits[0].float().numpy()
            yield logits


def _given(torch: Any, transformers: Any, source: Source, path: Path) -> tuple[Any, dict[str, Any]]:
    """The class of a model, and what it is made of instead of a directory's files."""
    if source.config.get("model_type") == MOE_16B:
        kind, config = _moe_16b(torch, transformers, source.config, path)
    else:
        try:
            config = transformers.AutoConfig.for_model(**source.config)
            kind = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        except Exception as error:  # as below
            raise _unread(path, error) from error
    state = {name: torch.from_numpy(source.read(name)) for name in source.names()}
    return kind, {"pretrained_model_name_or_path": None, "config": config, "state_dict": state}


def _moe_16b(
    torch: Any, transformers: Any, fields: Mapping[str, Any], path: Path
) -> tuple[Any, Any]:
    """As `moe_16b`. Raises CheckpointError when transformers refuses the fields."""
    try:
        return moe_16b(torch, transformers, fields)
    except Exception as error:  # as below
        raise _unread(path, error) from error


def _unread(path: Path, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())
    return CheckpointError(
        f"transformers cannot load {path}: {reason:.300}", "a checkpoint that it reads"
    )


def _loaded(transformers: Any, kind: Any, whole: Mapping[str, Any], path: Path, dtype: Any) -> Any:
    """The model, whole. Raises CheckpointError.

    kind: the class. whole: what its from_pretrained is to load.
    """
    log = transformers.utils.logging
    before = log.get_verbosity()
    log.set_verbosity_error()  # of weights that are not read, such as those of token prediction
    log.disable_progress_bar()
    try:
        model, report = kind.from_pretrained(
            **whole,
            dtype=dtype,
            experts_implementation="eager",  # the others want rows of 16 bytes
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # of a library that raises all kinds of them
        raise _unread(path, error) from error
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


def _checkpoint(name: str | os.PathLike[str]) -> Path:
    """Raises CheckpointError unless it is a checkpoint."""
    here = os.path.lexists(name)
    path = bundled_checkpoint() if name == NAME and not here else fetched(name)
    if path.is_dir() and not (path / "config.json").is_file() and not models_in(path):
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
