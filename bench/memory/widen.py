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
    """

    small: int
    times: int
    signs: F32

    @staticmethod
    def signed(small: int, times: int, rng: np.random.Generator) -> Axis:
        """Signs and sizes drawn at random."""
        drawn = np.exp(0.3 * rng.standard_normal((times, small)))
        drawn *= rng.choice([-1.0, 1.0], (times, small))
        drawn /= np.sqrt(np.square(drawn).mean(0))
        return Axis(small, times, drawn.astype(np.float32))

    @staticmethod
    def plain(small: int, times: int) -> Axis:
        """The number itself, at every place."""
        return Axis(small, times, np.ones((times, small), np.float32))

    @property
    def size(self) -> int:
        """Of the large model."""
        return self.small * self.times

    def copies(self, w: F32) -> F32:
        """The last axis as it is, at every place."""
        return np.tile(w, self.times)

    def written(self, w: F32) -> F32:
        """The last axis, at every place with its sign: [..., small] → [..., size]."""
        return self.copies(w) * self.signs.reshape(-1)

    def read(self, w: F32) -> F32:
        """Columns that give w @ x of what is written: [..., small] → [..., size]."""
        return self.copies(w) * (self.signs.reshape(-1) / self.times)

    @cached_property
    def noise(self) -> F32:
        """Rows [POOL, size] of deviation 1 that multiply to zero with all that is written."""
        rng = np.random.default_rng(self.size)
        drawn = rng.standard_normal((POOL, self.times, self.small), np.float32)
        along = (drawn * self.signs).mean(1, keepdims=True)
        drawn -= along * self.signs
        return drawn.reshape(POOL, -1) / drawn.std()


@dataclass(frozen=True)
class Widths:
    """How many times each part is repeated."""

    hidden: int = 32
    neurons: int = 80
    dense_neurons: int = 64
    heads: int = 8
    ranks: int = 16

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
        self._rope = int(small["qk_rope_head_dim"])
        self._hidden = Axis.signed(small["hidden_size"], widths.hidden, rng)
        self._q = Axis.signed(small["q_lora_rank"], widths.ranks, rng)
        self._kv = Axis.signed(small["kv_lora_rank"], widths.ranks, rng)
        heads, nope = small["num_attention_heads"], small["qk_nope_head_dim"]
        value = small["v_head_dim"]
        self._queries = Axis.plain(heads * (nope + self._rope), widths.heads)
        self._keys = Axis.plain(heads * (nope + value), widths.heads)
        self._values = Axis.plain(heads * value, widths.heads)
        inner, shared = small["moe_intermediate_size"], small["n_shared_experts"]
        self._neurons = {
            "experts": Axis.plain(inner, widths.neurons),
            "shared_experts": Axis.plain(inner * shared, widths.neurons),
            "": Axis.plain(small["intermediate_size"], widths.dense_neurons),
        }

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, told from the small one's."""
        small = self._source.shape(name)
        rows, columns = self._axes(name)
        if len(small) == 1:
            return (columns.size,) if columns is not None else small
        extra = self._rope if "kv_a_proj" in name else 0
        return (
            rows.size + extra if rows is not None else small[0],
            columns.size if columns is not None else small[1],
        )

    def read(self, name: str) -> F32:
        """A tensor of the large model, made anew, the same every time."""
        w = self._source.read(name)
        rows, columns = self._axes(name)
        if columns is None:
            return w
        if w.ndim == 1:
            return columns.copies(w)
        if name.endswith("embed_tokens.weight"):
            return columns.written(w)
        rope = w[-self._rope :] if "kv_a_proj" in name else w[:0]
        if rows is not None:
            w = np.ascontiguousarray(rows.written(w[: rows.small].T).T)
        wide = columns.read(np.concatenate([w, rope]))
        return wide if name.endswith(".gate.weight") else self._noisy(name, wide, columns)

    def _noisy(self, name: str, w: F32, columns: Axis) -> F32:
        """With as much noise again, which what is read does not see."""
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        rows: NDArray[np.int64] = rng.integers(0, POOL, len(w))
        noise = columns.noise[rows]
        sizes = rng.choice(np.float32([-1, 1]), (len(w), 1)) * np.sqrt(np.square(w).mean())
        noise *= sizes
        noise += w
        return noise

    def _axes(self, name: str) -> tuple[Axis | None, Axis | None]:
        """Those of a tensor's rows and columns; None: as the small model has it."""
        part = name.removesuffix(".weight").rpartition(".")[2]
        found = re.search(r"\.mlp\.(shared_experts|experts)\.", name)
        neurons = self._neurons[found[1] if found is not None else ""]
        hidden = self._hidden
        return {
            "embed_tokens": (None, hidden),
            "lm_head": (None, hidden),
            "norm": (None, hidden),
            "input_layernorm": (None, hidden),
            "post_attention_layernorm": (None, hidden),
            "gate": (None, hidden),
            "q_a_layernorm": (None, self._q),
            "kv_a_layernorm": (None, self._kv),
            "q_a_proj": (self._q, hidden),
            "kv_a_proj_with_mqa": (self._kv, hidden),
            "q_b_proj": (self._queries, self._q),
            "kv_b_proj": (self._keys, self._kv),
            "o_proj": (hidden, self._values),
            "gate_proj": (neurons, hidden),
            "up_proj": (neurons, hidden),
            "down_proj": (hidden, neurons),
        }.get(part, (None, None))

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
