"""What an exported folder holds, checked before MNN reads it.

MNN itself checks next to nothing, and opens whatever else its configuration names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepmnn.errors import ArtifactError, ConfigError
from deepmnn.exporters.mnn.configs import check_embedding, check_model, check_settings
from deepmnn.exporters.mnn.embedding import name_of
from deepmnn.exporters.mnn.mtok import FILE as TOKENIZER
from deepmnn.exporters.mnn.mtok_reader import check_tokenizer
from deepmnn.exporters.mnn.names import Names
from deepmnn.exporters.mnn.network import Network, read_network
from deepmnn.models import read_config
from deepmnn.source.json_file import read_object

_AGAIN = "Export the model again."


def check_contents(directory: Path, names: Names, manifest: dict[str, Any]) -> None:
    """Raises ArtifactError unless every file holds what `export` writes there.

    Args:
        directory, names: where the files are.
        manifest: deepmnn.json, checked: the sizes of the files are those it says.
    """
    settings, model_file = (directory / names.of(n) for n in ("config.json", "llm_config.json"))
    model = read_object(model_file, ArtifactError)
    check_model(model, model_file)
    table = model.get("tie_embeddings", {"quant_bit": 16})
    tied = table.get("weight_offset", 0) > 0
    opened = {
        "llm_model": names.model,
        "llm_weight": names.weight,
        "llm_config": model_file.name,
        "tokenizer_file": names.of(TOKENIZER),
        **({} if tied else {"embedding_file": names.of(name_of(table["quant_bit"]))}),
    }
    check_settings(read_object(settings, ArtifactError), settings, opened)
    files, vocab_size = manifest["files"], manifest["vocab_size"]
    for key, name in opened.items():
        if name not in files:
            raise ArtifactError(f"{settings}: {key} is {name!r}", "a file in the manifest", _AGAIN)
    nbytes = files[opened["llm_weight" if tied else "embedding_file"]]["nbytes"]
    check_embedding(model, model_file, vocab_size, nbytes, tied)
    tokenizer, network = directory / opened["tokenizer_file"], directory / names.model
    check_tokenizer(_read(tokenizer), tokenizer, vocab_size)
    found = read_network(network, _read(network), directory / names.weight)
    _check_facts(directory, names, found, {**manifest, **model})


def _check_facts(directory: Path, names: Names, found: Network, told: dict[str, Any]) -> None:
    """Raises ArtifactError unless the network is the one that the other files tell of."""
    network, config = directory / names.model, directory / names.sidecar / "config.json"
    facts = {
        "hidden_size": found.hidden_size,
        "layer_nums": found.layers,
        "vocab_size": found.vocab_size,
        "cache_width": found.cache_width,
    }
    for key, value in facts.items():
        if told[key] != value:
            raise ArtifactError(f"{network}: {key} is {value}", f"{told[key]}", _AGAIN)
    try:
        context = read_config(read_object(config, ArtifactError)).context_length
    except ConfigError as fault:
        raise ArtifactError(f"{config}: {fault.found}", fault.expected, _AGAIN) from None
    if found.context_length < context:
        raise ArtifactError(
            f"{network} knows {found.context_length} positions", f"{context}, as {config}", _AGAIN
        )


def _read(path: Path) -> bytes:
    """A file whose size has been checked. Raises ArtifactError."""
    try:
        return path.read_bytes()
    except OSError as fault:
        raise ArtifactError(f"{path} cannot be read: {fault}") from None
