"""Converted models that are larger than the memory given to their weights, and runs of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from deepmnn import _core
from deepmnn.backends.base import F32
from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.conversion.convert import convert
from parity import prompts_for, run_schedule
from tiny_artifact import write_config

# Large enough that rounding to pages does not matter, and for weights that are read ahead.
MIXTURE: dict[str, Any] = {
    "vocab_size": 1283,
    "hidden_size": 192,
    "intermediate_size": 300,
    "moe_intermediate_size": 96,
    "num_hidden_layers": 4,
    "n_routed_experts": 24,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
}
DENSE: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 1283,
    "hidden_size": 640,
    "intermediate_size": 1720,
    "num_hidden_layers": 6,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "head_dim": 128,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 1,
    "tie_word_embeddings": True,
}
MODELS: dict[str, tuple[dict[str, Any], str, int]] = {
    "mixture": (MIXTURE, "w4", 3),
    "mixture-plain": (MIXTURE, "fp32", 0),  # an instruction for each matrix of the experts
    "mixture-v2": (
        MIXTURE
        | {"model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"], "n_group": 1},
        "w8",
        3,
    ),
    "dense": (DENSE, "bf16", 3),
}


def make(name: str, directory: Path, **fields: Any) -> Path:
    """Converts MODELS[name], with other fields, with random weights to `directory`/model."""
    config, quant, level = MODELS[name]
    write_config(directory / "source", **config | fields)
    out = directory / "model"
    convert(
        directory / "source", out, quant=quant, optimize_level=level, random_weights=True, seed=5
    )
    return out


def least(model: Path) -> _core.WeightPlan:
    """What fits and what does not."""
    return _core.plan_weights((model / "program.bin").read_bytes())


def memory_at(model: Path, share: float) -> int:
    """So far between the least memory and that of all weights, in bytes."""
    plan = least(model)
    return int(plan.least_nbytes + share * (plan.total_nbytes - plan.least_nbytes))


def backend(model: Path, memory: int = 0, threads: int = 2) -> CpuBackend:
    return CpuBackend(model, threads=threads, memory=memory)


LENGTHS = (150, 9, 40)
STEPS = ((100, 0, 0), (50, 5, 40), *[(0, 1, 0)] * 4)
"""Tokens of each sequence in each step: a long chunk, several sequences, and decode."""


def run(model: CpuBackend) -> list[F32]:
    """Logits of every token of some prompts, in steps of every kind."""
    prompts = prompts_for(LENGTHS, model.vocab_size)
    return run_schedule(model, prompts, STEPS, blocks=80)


def equal(some: list[F32], others: list[F32]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(some, others, strict=True))
