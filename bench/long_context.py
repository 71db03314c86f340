"""A narrow DeepSeek-V4 at long contexts: prefill, decode, KV cache and memory by length.

    python -m bench.long_context [--lengths 4096,16384] [--kv bf16] [--profile]

Three layers, one of each kind, have the heads, windows and entries of DeepSeek-V4-Flash and random
weights; the rest is small, the ranks of projections too.

--profile: what each op took of prefill, too.
"""

from __future__ import annotations

import json
import resource
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

import deepmnn
from deepmnn.api.llm import LLM
from deepmnn.api.process_memory import held_nbytes
from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.backends.cpu.counts import Counts
from deepmnn.conversion.convert import convert
from deepmnn.graph.caches import block_nbytes, block_size
from deepmnn.measure.benchmark import time_run

KINDS = ("sliding", "compressed_sparse", "heavily_compressed")
CONFIG: dict[str, Any] = {
    "model_type": "deepseek_v4",
    "vocab_size": 4096,
    "hidden_size": 1024,
    "q_lora_rank": 128,
    "o_lora_rank": 64,
    "moe_intermediate_size": 512,
    "n_routed_experts": 16,
    "num_experts_per_tok": 2,
    "num_hidden_layers": len(KINDS),
    "layer_types": [f"{kind}_attention" for kind in KINDS],
    "num_nextn_predict_layers": 0,
}
"""What is left out is DeepSeek-V4-Flash's, the defaults."""


def cache_nbytes(llm: LLM, length: int) -> tuple[int, int]:
    """Bytes of the KV cache that a sequence of this length takes: kept, and recent rows'."""
    caches, size = llm.backend.caches, block_size(llm.backend.caches)
    kept, recent = block_nbytes(caches, size, llm.options.kv_dtype or "f32")
    blocks = -(-length // size)
    manager = llm.engine.manager
    return blocks * kept, min(blocks, manager.cache.recent_blocks) * recent


def peak_nbytes() -> int:
    """The most that this process has had in memory."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def table(llm: LLM, lengths: list[int], new_tokens: int, profile: bool) -> Iterator[str]:
    """The lines of the page, of ascending lengths: the peak is that of all until then."""
    yield "| tokens | prefill, tokens/s | decode, ms | kept, MiB | recent, MiB | peak, MiB |"
    yield "|--:|--:|--:|--:|--:|--:|"
    profiles = []
    for seed, length in enumerate(lengths):
        ops = OpTimes(llm)
        prefill, decode = time_run(llm, length, new_tokens, 1, seed, ops.take if profile else None)
        kept, recent = (nbytes / (1 << 20) for nbytes in cache_nbytes(llm, length + new_tokens))
        yield (
            f"| {length:,} | {length / prefill:.0f} | {decode / new_tokens * 1e3:.1f} "
            f"| {kept:.1f} | {recent:.1f} | {peak_nbytes() / (1 << 20):.0f} |"
        )
        profiles += [f"{length:,}: {ops.shares()}"] if profile else []
    yield from profiles and ["", "Prefill:", "", *profiles]


class OpTimes:
    """What the ops of a model's steps take, from now until `take`."""

    def __init__(self, llm: LLM) -> None:
        backend = llm.backend
        assert isinstance(backend, CpuBackend)
        self._core = backend.model
        self._seconds: Counter[str] = Counter()
        self._core.start_profile()

    def take(self) -> None:
        """Adds up the seconds by op, and counts no more."""
        seconds = Counts.take(self._core).seconds
        self._core.stop_profile()
        for each, spent in zip(self._core.instructions, seconds, strict=False):
            self._seconds[each["op"]] += float(spent)

    def shares(self) -> str:
        """The ops that take the most."""
        whole = sum(self._seconds.values())
        most = self._seconds.most_common(8)
        return ", ".join(f"{op} {seconds / whole:.0%}" for op, seconds in most)


def main(
    lengths: Annotated[str, typer.Option(help="Of prompts.")] = "4096,16384",
    new_tokens: Annotated[int, typer.Option(help="Decoded after each.")] = 16,
    kv: Annotated[str, typer.Option(help="Type of the KV cache.")] = "bf16",
    quant: Annotated[str, typer.Option(help="Of the weights.")] = "w8",
    profile: Annotated[bool, typer.Option(help="Shares of ops, too.")] = False,
) -> None:
    """Prints the table."""
    sizes = sorted(int(part) for part in lengths.split(","))
    with tempfile.TemporaryDirectory() as folder:
        config, path = Path(folder) / "config.json", Path(folder) / "model"
        config.write_text(json.dumps(CONFIG))
        convert(config, path, quant, random_weights=True, report=False)
        llm = deepmnn.load(path, kv_dtype=kv, cache_tokens=sizes[-1] + 1024, max_sequences=1)
        time_run(llm, 512, 1, 1, len(sizes))
        held = held_nbytes() / (1 << 20)
        typer.echo(f"{llm!r}\n{held:.0f} MiB before the first prompt\n")
        for line in table(llm, sizes, new_tokens, profile):
            typer.echo(line)


if __name__ == "__main__":
    typer.run(main)
