"""A folder exported for MNN that somebody made on purpose; MNN runs what passes the checks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import deepmnn
from deepmnn.artifact.manifest import MANIFEST
from deepmnn.exporters.mnn.export import export
from fuzz.mutations import EXTREMES, WRONG, mutate_bytes
from fuzz.parts import FolderTarget, files_of, mutate_text
from tiny_artifact import tiny_artifact

KEYS = (
    "base_dir",
    "llm_model",
    "embedding_file",
    "tokenizer_file",
    "context_file",
    "speculative_type",
    "eagle_model",
    "draft_model",
    "mtp_model",
    "lookup_file",
    "tmp_path",
    "prompt_cache",
    "prefix_cache_path",
    "kvcache_mmap",
    "use_mmap",
    "use_cached_mmap",
    "reuse_kv",
    "quant_qkv",
    "attention_mode",
    "is_visual",
    "is_audio",
    "has_talker",
    "has_deepstack",
    "ple_embed_file",
    "ple_embed_dim",
    "ple_quant",
    "hidden_states",
    "chunk",
    "chunk_limits",
    "thread_num",
    "dynamic_option",
    "mmap_size",
    "mixed_samplers",
    "sampler_type",
    "logit_bias",
    "banned_tokens",
    "jinja",
    "chat_template",
    "mllm",
    "attn_scale",
    "sliding_window",
    "attention_type",
    "attention_mask",
    "is_mrope",
    "hidden_size",
    "layer_nums",
    "key_value_shape",
    "tie_embeddings",
    "quant_bit",
    "max_position_embeddings",
    "backend_type",
    "all_logits",
    "async",
    "cpu_sme_core_num",
    "enable_debug",
    "timeout_ms",
)
"""Keys that MNN's runtime looks at."""

VALUES: tuple[Any, ...] = (
    *WRONG,
    "/etc/passwd",
    "../../etc/passwd",
    "eagle",
    "mtp",
    "lookahead",
    "draftmodel",
    "mixed",
    ["mixed"],
    ["penalty", "mixed"],
    [1 << 62, 1 << 62, -1, 0, 1],
    {"chat_template": "{{ " + "(" * 20000, "eos": 3},
    {"chat_template": "{% for a in b %}" * 3000},
    {"weight_offset": 0, "quant_bit": 0},
    10,
    -3,
    64,
    "glm",
)


class Mnn(FolderTarget):
    """A folder of which some files hold something else, with checksums that fit."""

    names = (
        "config.json",
        "llm_config.json",
        "tokenizer.mtok",
        "llm.mnn",
        "llm.mnn.weight",
        "embeddings_int8.bin",
        "deepmnn/config.json",
        MANIFEST,
    )
    spare = 1 << 30  # MNN's own

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        whole = files_of(export(tiny_artifact(folder, quant="w8"), folder / "whole").path)
        self.bases = [whole]
        self.seeds = [self.pack({name: whole[name]}) for name in self.names]

    def use(self) -> None:
        model = deepmnn.load(self.model, threads=1)
        model.generate([5, 6, 7, 8], deepmnn.SamplingParams(max_tokens=3, ignore_eos=True))
        model.logits([3, 9, 12])

    def mutate_part(self, rng: np.random.Generator, name: str, data: bytes) -> bytes:
        if not name.endswith(".json"):
            way = mutate_bytes if len(data) < 8 or rng.integers(3) == 0 else mutate_numbers
            return way(rng, data)
        if "/" in name or name == MANIFEST or rng.integers(2):
            return mutate_text(rng, data)
        try:
            fields = json.loads(data)
            fields[KEYS[int(rng.integers(len(KEYS)))]] = VALUES[int(rng.integers(len(VALUES)))]
            return json.dumps(fields).encode()
        except (ValueError, TypeError, RecursionError):
            return mutate_text(rng, data)


def mutate_numbers(rng: np.random.Generator, data: bytes) -> bytes:
    """A few aligned words say something else: the structure mostly stays."""
    words = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        width = (1, 2, 4, 4, 4, 8)[int(rng.integers(6))]
        at = int(rng.integers(len(words) // width)) * width
        old = int.from_bytes(words[at : at + width], "little")
        near = old + int(rng.integers(-4, 5))
        new = (near, old * 2, old ^ (1 << int(rng.integers(8 * width))), EXTREMES)[
            int(rng.integers(4))
        ]
        if isinstance(new, tuple):
            new = new[int(rng.integers(len(new)))]
        words[at : at + width] = (new % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(words)
