"""A folder exported for MNN, run by the stock wheel, its values by the names of our graph.

MNN hands out a network's logits and nothing else. So the network runs with more in its logits: the
very ops of the folder, with its values appended (exporters/mnn/tapped.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from deepmnn.backends.base import F32, I32, Batch
from deepmnn.backends.mnn.backend import MnnBackend
from deepmnn.backends.mnn.options import MnnOptions
from deepmnn.errors import ArtifactError, RequestError, StorageError
from deepmnn.exporters.mnn.folder import MnnFolder
from deepmnn.exporters.mnn.names import locate
from deepmnn.exporters.mnn.network import check_network, decode_network
from deepmnn.exporters.mnn.tapped import write_tapped
from deepmnn.exporters.mnn.values import Held, held_values
from deepmnn.graph.stages import LAYER
from deepmnn.inspect.side import Layer
from deepmnn.inspect.sides.original import Original
from deepmnn.inspect.sides.samples import check_samples
from deepmnn.models import build, read_config

MOST_BYTES = 128 << 20
"""Of the values that one run hands out: what is more takes several, each of the whole network."""


class MnnSide:
    """A model on MNN.

    What shows: the embedding's rows, both sums of each layer, what every norm gives and every
    linear map whose rows MNN has in the model's order, queries and keys after RoPE, what attention
    gives; of experts the router's logits, choice and weights, and the sum of those chosen. A folder
    of an older deepmnn, whose tensors have no names, shows its logits alone. Where the model's own
    weights were rotated for MNN, what norms give does not show (original.py).

    Args:
        folder: what `export` wrote.
        threads: worker threads; 0: one for each physical core.
        options: how MNN computes.
    """

    def __init__(
        self, folder: MnnFolder, threads: int = 0, options: MnnOptions | None = None
    ) -> None:
        self._folder, self._threads = folder, threads
        self._options = options or MnnOptions()
        self.label = f"MNN, memory {self._options.memory}, precision {self._options.precision}"
        self.vocab_size = folder.vocab_size
        self._directory, self._names = locate(folder.path)
        self._file = self._directory / self._names.model
        self._net = decode_network(self._file, _read(self._file))
        weights = self._directory / self._names.weight
        self._network = check_network(self._net, self._file, weights)
        graph = build(folder.config, ("hidden", "logits"))
        self._integers = {name for name, value in graph.values.items() if value.dtype == "i32"}
        names, config = self._net["tensorName"], read_config(folder.config)
        self._original = Original(folder.manifest.get("changes", []), graph, config)
        held = held_values(names, self._network.tensors, graph.values, config)
        found = [value for value in held if self._original.tells(value.name)]
        self._layers = _by_layer(found, config.num_hidden_layers)

    def layers(self, samples: Sequence[I32]) -> Iterator[Layer]:
        """As `Side`. A run gives several layers, as many as fit into MOST_BYTES.

        Raises RequestError for samples longer than the model's context, too, and what `MnnBackend`
        raises.
        """
        check_samples(samples, self.vocab_size)
        longest, most = max(map(len, samples)), self._network.context_length
        if longest > most:
            raise RequestError(f"a sample of {longest} tokens", f"at most {most}, the context")
        for run in _runs(self._layers, sum(map(len, samples))):
            values = self._run([held for layer in run for held in layer], samples)
            for layer in run:
                yield {held.name: values.pop(held.name) for held in layer}

    def _run(self, wanted: Sequence[Held], samples: Sequence[I32]) -> Layer:
        """One run of the network that hands out these values."""
        if not wanted:
            return {}
        ends = np.cumsum([held.width for held in wanted])
        with TemporaryDirectory(prefix="deepmnn-tapped-") as place:
            folder = self._tapped(Path(place), wanted, int(ends[-1]))
            backend = MnnBackend(folder, self._threads, self._options)
            rows = np.concatenate([_whole(backend, sample) for sample in samples])
            del backend
        values: Layer = {}
        for held, part in zip(wanted, np.split(rows, ends[:-1], axis=1), strict=True):
            value = part.copy() if held.columns is None else part[:, held.columns]
            if held.name in self._integers:
                values[held.name] = np.rint(value).astype(np.int32)
            else:
                values[held.name] = self._original.value(held.name, value)
        return values

    def _tapped(self, place: Path, wanted: Sequence[Held], width: int) -> _Tapped:
        """The folder in another place, its network with these values for logits."""
        settings = self._folder.runtime_config.name
        try:
            for name in {*self._folder.manifest["files"], settings} - {self._names.model}:
                if "/" not in name:
                    (place / name).symlink_to((self._directory / name).resolve())
        except OSError as fault:
            raise StorageError(f"{place}: {fault.strerror}", "room for a few links") from fault
        made = place / self._names.model
        write_tapped(self._file, self._net, self._network, wanted, made)
        return _Tapped(place, place / settings, width, self._folder.cache_width)


@dataclass
class _Tapped:
    """The `Folder` that MnnBackend loads."""

    path: Path
    runtime_config: Path
    vocab_size: int
    cache_width: int


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as fault:
        raise ArtifactError(f"{path} cannot be read: {fault.strerror}") from None


def _by_layer(found: Sequence[Held], layers: int) -> list[list[Held]]:
    """Values by layer, those before the first with it; those after the last come last."""
    groups: list[list[Held]] = [[] for _ in range(layers + 1)]
    for held in found:
        layer = LAYER.match(held.name)
        last = layers if held.name in ("hidden", "logits") else 0
        groups[int(layer[1]) if layer else last].append(held)
    return groups


def _runs(groups: Sequence[list[Held]], tokens: int) -> Iterator[list[list[Held]]]:
    """Neighbouring groups as long as their values fit; one that does not is alone."""
    run: list[list[Held]] = []
    size = 0
    for group in groups:
        nbytes = 4 * tokens * sum(held.width for held in group)
        if run and size + nbytes > MOST_BYTES:
            yield run
            run, size = [], 0
        run.append(group)
        size += nbytes
    yield run


def _whole(backend: MnnBackend, sample: I32) -> F32:
    """The rows of one sample, [tokens, width]."""
    count = len(sample)
    rows = np.arange(count, dtype=np.int32)
    starts, length = np.array([0, count], np.int32), np.array([count], np.int32)
    batch = Batch(sample, rows, starts, length, np.zeros((1, 1), np.int32), rows)
    return backend.step(backend.new_cache(1, count), batch)
