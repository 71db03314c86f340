"""A converted model that somebody made on purpose: files say something else, checksums fit."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import deepmnn
from byte_tokenizer import write_tokenizer
from deepmnn.artifact.manifest import MANIFEST
from deepmnn.artifact.reader import Artifact
from deepmnn.artifact.restored import RestoredSource
from deepmnn.backends.cpu import program
from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.backends.cpu.pieces import Piece
from deepmnn.backends.cpu.program import (
    Instruction,
    Program,
    ProgramBuffer,
    ProgramPart,
    ProgramWeight,
    encode,
    format_program,
    read_program,
)
from deepmnn.conversion.convert import convert
from deepmnn.errors import ArtifactError, DeepmnnError
from deepmnn.exporters.gguf.export import export_gguf
from deepmnn.exporters.hf.export import export_hf
from deepmnn.graph.caches import CacheEntry
from deepmnn.quant.store import stored_values
from fuzz.mutations import mutate_bytes, mutate_json, with_header
from fuzz.parts import BASE, SHARD, FolderTarget, files_of
from fuzz.targets.gguf import EXPERTS, LATENT, SMALL, models_of_types
from parity import Runner

Json = dict[str, Any]
PROGRAM = "program.bin"

INDEXED = LATENT | {"index_n_heads": 3, "index_head_dim": 40, "index_topk": 4}
COMPRESSED = EXPERTS | {
    "num_hidden_layers": 3,
    "head_dim": 32,
    "qk_rope_head_dim": 8,
    "q_lora_rank": 32,
    "o_groups": 2,
    "o_lora_rank": 32,
    "num_hash_layers": 1,
    "layer_types": [
        "sliding_attention",
        "compressed_sparse_attention",
        "heavily_compressed_attention",
    ],
    "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 8},
    "sliding_window": 4,
    "index_n_heads": 3,
    "index_head_dim": 32,
    "index_topk": 2,
    "hc_mult": 2,
    "num_nextn_predict_layers": 1,
}

MODELS: tuple[tuple[Json, str, int], ...] = (
    (SMALL | {"model_type": "llama", "vocab_size": 271}, "w4", 3),
    (
        LATENT | {"model_type": "deepseek_v3", "topk_group": 1, "num_nextn_predict_layers": 1},
        *("w4", 3),
    ),
    (LATENT | {"model_type": "deepseek_v2", "topk_group": 1}, "w8", 2),
    (INDEXED | {"model_type": "deepseek_v32", "topk_group": 1}, "w4", 3),
    (COMPRESSED | {"model_type": "deepseek_v4"}, "w4", 3),
    (EXPERTS | {"model_type": "deepseek", "hidden_size": 40}, "fp32", 0),
    (SMALL | {"model_type": "qwen3", "tie_word_embeddings": True}, "bf16", 3),
)
"""Config, recipe and level; the first has a tokenizer."""


def converted_models(folder: Path) -> Iterator[Path]:
    """Converted models: MODELS, then some whose matrices are in kept formats."""
    for number, (config, quant, level) in enumerate(MODELS):
        source = folder / f"source{number}"
        source.mkdir()
        (source / "config.json").write_text(json.dumps(config))
        if number == 0:
            write_tokenizer(source)
            (source / "tokenizer_config.json").write_text("{}")  # a template takes a process
            (source / "generation_config.json").write_text('{"do_sample": true, "top_k": 5}')
        out = folder / f"made{number}"
        yield convert(source, out, quant, level, random_weights=True).path
    for number, data in enumerate(models_of_types(folder)):
        path = folder / f"kept{number}.gguf"
        path.write_bytes(data)
        yield convert(path, folder / f"kept{number}", "w8").path


class Converted(FolderTarget):
    """A converted model: an input says which of MODELS, and what some of its files hold instead."""

    names = (
        BASE,
        MANIFEST,
        "graph.json",
        "draft.json",
        PROGRAM,
        "config.json",
        SHARD,
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    )

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.bases = [*map(files_of, converted_models(folder))]
        for number, files in enumerate(self.bases):
            self.seeds += [
                self.pack({BASE: bytes([number]), name: files[name]})
                for name in self.names
                if name in files
            ]

    def use(self) -> None:
        artifact = Artifact.open(self.model)
        for weight in artifact.parts().weights.values():
            assert stored_values(weight, artifact.tensor(weight.name)).shape == weight.shape
        shown = is_shown((self.model / PROGRAM).read_bytes())
        model = deepmnn.load(self.model, threads=1)
        assert shown, "the core takes what the tables refuse"
        greedy = deepmnn.SamplingParams(max_tokens=3, ignore_eos=True)
        model.generate([1, 2, 3, 4], greedy)
        model.logits([3, 1, 2])
        if model.has_tokenizer:
            model.generate(model.tokenizer.encode("1+1"), greedy)
        use_draft(CpuBackend(self.model, threads=1))

    def mutate_part(self, rng: np.random.Generator, name: str, data: bytes) -> bytes:
        if name == BASE or rng.integers(5) == 0:
            return mutate_bytes(rng, data)
        if name == PROGRAM:
            ways: tuple[Callable[..., bytes], ...] = (mutate_numbers, mutate_numbers, mutate_words)
            try:
                return ways[int(rng.integers(3))](rng, data)
            except DeepmnnError:
                return mutate_bytes(rng, data)
        if name == SHARD:
            end = 8 + int.from_bytes(data[:8], "little")
            try:
                return with_header(mutate_json(rng, json.loads(data[8:end])), data[end:])
            except (ValueError, RecursionError):
                return mutate_bytes(rng, data)
        return super().mutate_part(rng, name, data)


class Exported(Converted):
    """The same, as the checkpoint that it was made of, and exported in each form."""

    def use(self) -> None:
        refused = []
        for export in (self._hf, self._gguf, self._mnn):
            try:
                export()
            except DeepmnnError as error:
                refused.append(error)
        if refused:
            raise refused[0]

    def _hf(self) -> None:
        export_hf(RestoredSource(Artifact.open(self.model)), self.out / "hf", type="fp32")

    def _gguf(self) -> None:
        export_gguf(RestoredSource(Artifact.open(self.model)), self.out / "a.gguf", type="f32")

    def _mnn(self) -> None:
        deepmnn.export(self.model, self.out / "mnn")


def use_draft(backend: CpuBackend) -> None:
    """One guess, where there is a part for it."""
    if backend.draft_state is None:
        return
    runner = Runner(backend, output=backend.draft_state)
    runner.draft({0: [1, 2, 4]}, runner.step({0: [3, 1, 2]}))


def is_shown(data: bytes) -> bool:
    """Whether the tables of a program.bin can be read and shown."""
    try:
        assert format_program(read_program(data))
    except ArtifactError:
        return False
    return True


# ------------------------------------------------------------------------------ program.bin

NUMBERS = (-1, 0, 1, 2, 3, 15, 16, 64, 1 << 16, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 40, 1 << 62)
Places = dict[str, list[tuple[Any, Any]]]
"""Kind of field → (container, key) of each."""


def mutate_numbers(rng: np.random.Generator, data: bytes) -> bytes:
    """A well-formed program.bin in which one or two fields say something else."""
    fields, places = read_fields(data)
    before = []
    for _ in range(int(rng.integers(1, 3))):
        kinds = sorted(places)  # every kind of field equally often, however many there are of it
        here = places[kinds[int(rng.integers(len(kinds)))]]
        container, key = here[int(rng.integers(len(here)))]
        other, other_key = here[int(rng.integers(len(here)))]
        before.append((container, key, container[key]))
        container[key] = changed(rng, container[key], other[other_key])
    try:
        return encode(rebuild(fields))
    except (struct.error, ValueError, IndexError):
        return data  # a number that the format cannot hold
    finally:
        for container, key, value in reversed(before):
            container[key] = value


@lru_cache(maxsize=64)
def read_fields(data: bytes) -> tuple[dict[str, Any], Places]:
    """What a program.bin says, and its leaves. Kept: reading takes longer than a mutation."""
    fields = json.loads(json.dumps(asdict(read_program(data))))
    if fields["draft"] is None:
        del fields["draft"]
    places: Places = {}
    collect(fields, "", places)
    return fields, places


def changed(rng: np.random.Generator, value: Any, other: Any) -> Any:
    kind = int(rng.integers(4))
    if kind == 0 or isinstance(value, str):
        return other
    if kind == 1:
        return value + int(rng.integers(-2, 3))
    number = NUMBERS[int(rng.integers(len(NUMBERS)))]
    return float(number) if isinstance(value, float) else number


def collect(container: Any, kind: str, places: Places) -> None:
    """Every leaf, sorted by the names on the way to it."""
    for key in list(container) if isinstance(container, dict) else range(len(container)):
        below = f"{kind}.{key}" if isinstance(container, dict) else kind
        if isinstance(container[key], dict | list):
            collect(container[key], below, places)
        else:
            places.setdefault(below, []).append((container, key))


def rebuild(fields: dict[str, Any]) -> Program:
    return Program(
        fields["name"],
        tuple(fields["shards"]),
        tuple(map(rebuilt_weight, fields["weights"])),
        {name: CacheEntry(**entry) for name, entry in fields["caches"].items()},
        tuple(ProgramBuffer(**buffer) for buffer in fields["buffers"]),
        tuple(fields["arenas"]),
        tuple(fields["inputs"]),
        tuple(fields["outputs"]),
        tuple(Instruction(**instruction) for instruction in fields["instructions"]),
        rebuilt_part(fields["draft"]) if "draft" in fields else None,
    )


def rebuilt_part(fields: dict[str, Any]) -> ProgramPart:
    instructions = tuple(Instruction(**instruction) for instruction in fields["instructions"])
    return ProgramPart(tuple(fields["inputs"]), tuple(fields["outputs"]), instructions)


def rebuilt_weight(fields: dict[str, Any]) -> ProgramWeight:
    return ProgramWeight(**fields | {"pieces": tuple(Piece(**each) for each in fields["pieces"])})


def mutate_words(rng: np.random.Generator, data: bytes) -> bytes:
    """A count, a length or an id claims something else; nothing after it moves."""
    marks = words(data)
    place = marks[int(rng.integers(len(marks)))]
    number = NUMBERS[int(rng.integers(len(NUMBERS)))] % (1 << 32)
    return data[:place] + struct.pack("<I", number) + data[place + 4 :]


@lru_cache(maxsize=64)
def words(data: bytes) -> list[int]:
    """Where the 32-bit numbers of a program.bin are."""
    places: list[int] = []

    class Marking(program._Reader):
        def u32(self) -> int:
            places.append(self.at)
            return super().u32()

    plain, program._Reader = program._Reader, Marking  # type: ignore[misc]
    try:
        read_program(data)
    finally:
        program._Reader = plain  # type: ignore[misc]
    return places
