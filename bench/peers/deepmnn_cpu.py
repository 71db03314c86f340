"""deepmnn on its own engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.peers.engine import Config, commit

if TYPE_CHECKING:
    from deepmnn.api.llm import LLM
    from deepmnn.engine.kv_cache import BlockTable

TITLE, BUILDER, NEEDS = "deepmnn", "deepmnn_cpu", ""
SETTINGS = "w4, lm_head too; KV cache int8"
KV_DTYPE = "int8"
ARTIFACT_VERSION = 7
"""Version of what `build` writes: a change to this file rebuilds models kept from before."""
PASSES = (
    "drop_identities",
    "share_weights",
    "fuse_compressed_attention",
    "fuse_hyper_connections",
    "select_rows_early",
    "fuse_swiglu",
    "fuse_linears",
    "fuse_gqa_attention",
    "fuse_route",
    "fuse_moe",
    "fuse_add_norm",
    "absorb_mla",
    "absorb_sparse_mla",
)
"""The passes that `build` applies; listed here so that another list rebuilds models, too."""


def version(source: Path | None) -> str | None:
    try:
        import deepmnn.api.loading
        import deepmnn.backends.cpu.backend
        import deepmnn.exporters.mnn.folder
        import deepmnn.text.chat_template
        import deepmnn.text.tokenizer  # load imports them when they are needed first
    except ImportError:
        return None
    made = commit(Path(__file__).parent)
    return str(deepmnn.__version__) + (f", commit {made}" if made else "")


def exceeds(isa: str, source: Path | None) -> str:
    return ""  # DEEPMNN_ISA limits it


def refuses(config: Config) -> str:
    return ""


def build(config: Path, out: Path, needed: Path | None, source: Path | None) -> str:
    from deepmnn.conversion.convert import convert

    convert(config, out / "model", quant="w4", random_weights=True)
    return "model"


def load(model: Path, threads: int, source: Path | None) -> DeepmnnSession:
    import deepmnn

    return DeepmnnSession(deepmnn.load(model, "cpu", threads))


class DeepmnnSession:
    """Sequences on one engine, in the steps that its scheduler would make."""

    most = None

    def __init__(self, model: LLM) -> None:
        self._model = model
        self._tables: list[BlockTable] = []

    def reserve(self, batch: int, tokens: int) -> None:
        from deepmnn.engine.engine import Engine
        from deepmnn.graph.caches import block_size

        model = self._model
        size = block_size(model.backend.caches)
        rows = batch * -(-tokens // size) * size
        self._engine = Engine(model.backend, rows, model.context_length, kv_dtype=KV_DTYPE)
        self._tables = []

    def start(self, prompts: Sequence[Sequence[int]]) -> None:
        from deepmnn.engine.kv_cache import BlockTable

        for table in self._tables:
            self._engine.manager.free(table)
        self._tables = [BlockTable(list(ids)) for ids in prompts]
        self._engine.run_pending(self._tables)

    def step(self, tokens: Sequence[int]) -> None:
        for table, token in zip(self._tables, tokens, strict=True):
            table.ids.append(token)
        self._engine.run_pending(self._tables)
