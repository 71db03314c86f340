"""Files of weights: safetensors and PyTorch's."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deepmnn.source.entry import Entry
from deepmnn.source.safetensors import read_safetensors
from deepmnn.source.torch_file import read_torch
from fuzz.harness import FileTarget
from fuzz.mutations import mutate_bytes, mutate_json, with_header

MAX_PICKLE = 4096


def read_all(entries: Mapping[str, Entry]) -> None:
    """Every tensor."""
    for entry in entries.values():
        array = entry.read()
        assert array.shape == entry.shape
        assert array.dtype == np.float32
        entry.sample()


class Safetensors(FileTarget):
    """A .safetensors file."""

    file = "a.safetensors"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        kinds = (("F32", [2, 3]), ("BF16", [4, 4]), ("F8_E4M3", [3, 3]), ("F32", []), ("F4", [4]))
        header, at = {}, 0
        for number, (dtype, shape) in enumerate((*kinds, ("F64", [0, 5]))):
            nbytes = {"F32": 4, "BF16": 2, "F8_E4M3": 1, "F4": 0.5, "F64": 8}[dtype]
            end = at + int(np.prod(shape) * nbytes)
            header[f"{number}.weight"] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
            at = end
        del header["4.weight"]  # its numbers are not read
        at -= 2
        header["5.weight"]["data_offsets"] = [at, at]
        self.seeds = [with_header({"__metadata__": {"format": "pt"}} | header, bytes(range(at)))]

    def use(self) -> None:
        read_all(read_safetensors(self.path))

    def mutate(self, rng: np.random.Generator, data: bytes) -> bytes:
        if rng.integers(2):
            return mutate_bytes(rng, data)
        end = 8 + int.from_bytes(data[:8], "little")
        try:
            header = json.loads(data[8:end])
        except ValueError:
            return mutate_bytes(rng, data)
        return with_header(mutate_json(rng, header), data[end:])


class Torch(FileTarget):
    """An archive that torch.save wrote."""

    file = "a.pt"

    def use(self) -> None:
        read_all(read_torch(self.path))


class Pickle(Torch):
    """The pickle in such an archive, which is sound; what follows its end is filled up."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        room = b"." * MAX_PICKLE
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
            file.writestr("archive/data.pkl", room)
            for key in range(16):
                file.writestr(f"archive/data/{key}", bytes(range(256)))
        self._head, _, self._tail = buffer.getvalue().partition(room)

    def put(self, data: bytes) -> None:
        super().put(self._head + data[:MAX_PICKLE].ljust(MAX_PICKLE, b".") + self._tail)
