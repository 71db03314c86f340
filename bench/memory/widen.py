"""A trained mixture, widened: as large as a published model, with the routing of the small one.

    python -m bench.memory.widen MIXTURE --w4 OUT --gguf OUT.gguf

MIXTURE is a Hugging Face directory of `bench.memory.train_mixture`. Its widened model computes the
same function, in a hidden state of 2,048 numbers instead of 64, experts of 1,280 neurons instead of
16, and 16 heads instead of 2: 8 x 128 experts of 4.4 MB at 4 bits. It is never stored in 16 bits:
its tensors are made while they are rounded, to an artifact in w4 and to a GGUF file in Q4_0.

How: a number x of the small model stands at k places of the large one, as s_j x. The signs and
sizes s_j have a mean square of 1, so that an RMS norm divides by the same length. A matrix that
writes such places has its rows k times, times s_j; one that reads them has its columns k times,
times s_j / k, plus noise which is as large as that, and orthogonal to s: it multiplies to zero. So
no two blocks of weights are equal, and none is easily compressed. Neurons and heads are repeated in
the same way, with s_j = 1.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from deepmnn.conversion.carry_out import carry_out
from deepmnn.conversion.plan import plan
from deepmnn.exporters.gguf.export import export_gguf
from deepmnn.graph.weights import F32
from deepmnn.quant.recipe import recipe_of
from deepmnn.source.open import open_source
from deepmnn.source.source import Source
from deepmnn.source.wrapped import WrappedSource

POOL = 3000
"""Rows of noise that matrices draw theirs from."""


@dataclass(frozen=True)
class Axis:
    """Numbers of the small model at several places each of the large one.

    small: how many there are. times: places of each; number i is at c * small + i for every c.
    signs: what stands there, times the number [times, small]; their mean square over c is 1.
    run, runs: every `run` numbers stand `runs` times in a row (heads), and all that as above.
    """

    small: int
    times: int
    signs: F32
    run: int = 1
    runs: int = 1

    @staticmethod
    def signed(small: int, times: int, rng: np.random.Generator) -> Axis:
        """Signs and sizes drawn at random."""
        drawn = np.exp(0.3 * rng.standard_normal((times, small)))
        drawn *= rng.choice([-1.0, 1.0], (times, small))
        drawn /= np.sqrt(np.square(drawn).mean(0))
        return Axis(small, times, drawn.astype(np.float32))

    @staticmethod
    def plain(small: int, times: int, run: int = 1, runs: int = 1) -> Axis:
        """The number itself, at every place."""
        return Axis(small, times, np.ones((times, small), np.float32), run, runs)

    @property
    def size(self) -> int:
        """Of the large model."""
        return self.small * self.times

    def copies(self, w: F32) -> F32:
        """The last axis as it is, at every place."""
        if self.runs > 1:
            heads = w.reshape(*w.shape[:-1], -1, self.run)
            w = np.tile(heads, self.runs).reshape(*w.shape[:-1], -1)
        return np.tile(w, self.times // self.runs)

    def written(self, w: F32) -> F32:
        """The last axis, at every place with its sign: [..., small] → [..., size]."""
        return self.copies(w) * self.signs.reshape(-1)

    def read(self, w: F32) -> F32:
        """Columns that give w @ x of what is written: [..., small] → [..., size]."""
        weights: F32 = self.signs.reshape(-1) / np.float32(self.times)
        return self.copies(w) * weights

    @cached_property
    def noise(self) -> F32:
        """Rows [POOL, size] of deviation 1 that multiply to zero with all that is written."""
        rng = np.random.default_rng(self.size)
        drawn = rng.standard_normal((POOL, self.times, self.small), np.float32)
        along = (drawn * self.signs).mean(1, keepdims=True)
        if self.runs > 1:  # signs are 1, and the places of a number are not those of `drawn`
            drawn = drawn.reshape(POOL, self.times // self.runs, -1, self.runs, self.run)
            drawn -= drawn.mean((1, 3), keepdims=True)
        else:
            drawn -= along * self.signs
        noise: F32 = drawn.reshape(POOL, -1) / drawn.std()
        return noise


@dataclass(frozen=True)
class Heads:
    """Heads of latent attention, each `times` times, with `dims` times the numbers.

    Rotary pairs are the exception: there are twice as many, and pair i turns as pair 2 i of the
    large model does. The others are zero but for noise.
    """

    small: int
    nope: int
    rope: int
    value: int
    times: int
    dims: int

    def queries(self, w: F32) -> F32:
        """Rows of q_b_proj; they make up for the larger sum and for its smaller scale."""
        heads = w.reshape(self.small, self.nope + self.rope, -1)
        dim = self.nope * self.dims + 2 * self.rope
        scale = np.float32(np.sqrt(dim / (self.nope + self.rope)))
        nope = np.tile(heads[:, : self.nope], (1, self.dims, 1)) * (scale / self.dims)
        rope = [self.rotary(head[self.nope :]) * scale for head in heads]
        return self._again(np.concatenate([nope, rope], 1))

    def keys_values(self, w: F32) -> F32:
        """Rows of kv_b_proj."""
        heads = w.reshape(self.small, self.nope + self.value, -1)
        parts = heads[:, : self.nope], heads[:, self.nope :]
        return self._again(np.concatenate([np.tile(p, (1, self.dims, 1)) for p in parts], 1))

    def rotary(self, w: F32) -> F32:
        """Rows of pairs (2 i, 2 i + 1), at (4 i, 4 i + 1)."""
        wide = np.zeros((self.rope // 2, 2, 2, w.shape[1]), np.float32)
        wide[:, 0] = w.reshape(self.rope // 2, 2, -1)
        return wide.reshape(2 * self.rope, -1)

    @property
    def values(self) -> Axis:
        """Columns of o_proj."""
        return Axis.plain(self.small * self.value, self.times * self.dims, self.value, self.dims)

    def _again(self, heads: F32) -> F32:
        return np.tile(heads, (self.times, 1, 1)).reshape(-1, heads.shape[-1])


@dataclass(frozen=True)
class Widths:
    """How many times each part is repeated."""

    hidden: int = 32
    neurons: int = 80
    dense_neurons: int = 64
    heads: int = 8
    ranks: int = 16
    head_dims: int = 4

    def config(self, small: Mapping[str, Any]) -> dict[str, Any]:
        """config.json of the large model."""
        times = {
            "hidden_size": self.hidden,
            "moe_intermediate_size": self.neurons,
            "intermediate_size": self.dense_neurons,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "q_lora_rank": self.ranks,
            "kv_lora_rank": self.ranks,
            "qk_nope_head_dim": self.head_dims,
            "qk_rope_head_dim": 2,
            "v_head_dim": self.head_dims,
        }
        return {**small, **{name: small[name] * factor for name, factor in times.items()}}


class WideSource(WrappedSource):
    """The widened model of a source, of DeepSeek-V3's architecture."""

    def __init__(self, source: Source, widths: Widths | None = None) -> None:
        super().__init__(source)
        widths = widths or Widths()
        small = source.config
        self.config = widths.config(small)
        rng = np.random.default_rng(1)
        self._hidden = Axis.signed(small["hidden_size"], widths.hidden, rng)
        self._q = Axis.signed(small["q_lora_rank"], widths.ranks, rng)
        self._kv = Axis.signed(small["kv_lora_rank"], widths.ranks, rng)
        self._heads = Heads(
            small["num_attention_heads"],
            small["qk_nope_head_dim"],
            small["qk_rope_head_dim"],
            small["v_head_dim"],
            widths.heads,
            widths.head_dims,
        )
        inner, shared = small["moe_intermediate_size"], small["n_shared_experts"]
        self._neurons = {
            "experts": Axis.plain(inner, widths.neurons),
            "shared_experts": Axis.plain(inner * shared, widths.neurons),
            "": Axis.plain(small["intermediate_size"], widths.dense_neurons),
        }

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, told from the small one's."""
        small = self._source.shape(name)
        columns = self._columns(name)
        if len(small) == 1:
            return (columns.size,) if columns is not None else small
        rows = self._rows(name, np.empty((small[0], 1), np.float32))
        return len(rows), columns.size if columns is not None else small[1]

    def read(self, name: str) -> F32:
        """A tensor of the large model, made anew, the same every time."""
        w = self._source.read(name)
        columns = self._columns(name)
        if columns is None:
            return w
        if w.ndim == 1:
            return columns.copies(w)
        if name.endswith("embed_tokens.weight"):
            return columns.written(w)
        wide = columns.read(self._rows(name, w))
        return wide if name.endswith(".gate.weight") else self._noisy(name, wide, columns)

    def _rows(self, name: str, w: F32) -> F32:
        """A matrix with the rows of the large model."""
        part, heads = _part(name), self._heads
        if part == "q_b_proj":
            return heads.queries(w)
        if part == "kv_b_proj":
            return heads.keys_values(w)
        if part == "kv_a_proj_with_mqa":
            rank = self._kv.small
            return np.concatenate([self._kv.written(w[:rank].T).T, heads.rotary(w[rank:])])
        if part in ("gate_proj", "up_proj"):
            return self._inner(name).written(w.T).T
        writers = {"o_proj": self._hidden, "down_proj": self._hidden, "q_a_proj": self._q}
        return writers[part].written(w.T).T if part in writers else w

    def _noisy(self, name: str, w: F32, columns: Axis) -> F32:
        """With as much noise again, which what is read does not see."""
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        rows: NDArray[np.int64] = rng.integers(0, POOL, len(w))
        noise = columns.noise[rows]
        sizes = rng.choice(np.array([-1, 1], np.float32), (len(w), 1)) * np.sqrt(
            np.square(w).mean()
        )
        noise *= sizes
        noise += w
        return noise

    def _columns(self, name: str) -> Axis | None:
        """The last axis of a tensor; None: as the small model has it."""
        part = _part(name)
        if part == "down_proj":
            return self._inner(name)
        if part == "e_score_correction_bias":
            return None
        latents = {
            "q_a_layernorm": self._q,
            "q_b_proj": self._q,
            "kv_a_layernorm": self._kv,
            "kv_b_proj": self._kv,
            "o_proj": self._heads.values,
        }
        return latents.get(part, self._hidden)

    def _inner(self, name: str) -> Axis:
        """The neurons of an MLP."""
        found = re.search(r"\.mlp\.(shared_experts|experts)\.", name)
        return self._neurons[found[1] if found is not None else ""]

    def sample(self, name: str) -> bytes:
        """Its name: no two tensors are equal."""
        self.shape(name)
        return name.encode()

    def nbytes(self) -> int:
        """0: nothing is stored."""
        return 0

    def side_files(self) -> dict[str, bytes]:
        """The small model's, with another config.json."""
        return self._source.side_files() | {"config.json": json.dumps(self.config).encode()}


def _part(name: str) -> str:
    """The module that a tensor is of."""
    return name.removesuffix(".weight").rpartition(".")[2]


def told(done: int, total: int, what: str) -> None:
    """Progress on a line."""
    print(f"\r{done / 1e9:.2f} of {total / 1e9:.2f} GB", end="", flush=True)


def main(
    mixture: Annotated[Path, typer.Argument(help="A Hugging Face directory.")],
    w4: Annotated[Path | None, typer.Option(help="The artifact to write.")] = None,
    gguf: Annotated[Path | None, typer.Option(help="The GGUF file to write.")] = None,
    neurons: Annotated[int, typer.Option(help="Copies of each neuron of an expert.")] = 80,
) -> None:
    """Write the widened model in 4 bits."""
    source = WideSource(open_source(mixture), Widths(neurons=neurons))
    if w4 is not None:
        carry_out(plan(source, recipe_of("w4")), w4, progress=told)
    if gguf is not None:
        export_gguf(source, gguf, type="Q4_0", progress=told)


if __name__ == "__main__":
    typer.run(main)
