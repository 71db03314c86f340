"""Child of test_hostile_configs.py: mistreats the config.json of a checkpoint, with limits.

Prints how many configs were refused and how many built a graph; any error that is not deepmnn's
own ends it. Converting is tried with those that describe far more than the checkpoint holds.
"""

import dataclasses
import json
import math
import resource
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from deepmnn.conversion.convert import convert, plan_conversion
from deepmnn.errors import ConfigError, DeepmnnError
from deepmnn.graph.verify import verify
from deepmnn.models import build

VALUES: list[Any] = [0, -1, 7, 200, 1 << 16, 1 << 24, 1 << 31, 10**300, 0.5, math.inf, math.nan]
ROPE = {
    "factor": 4.0,
    "original_max_position_embeddings": 48,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "attention_factor": 1.0,
    "attn_factor": 1.0,
    "rope_theta": 1e4,
    "partial_rotary_factor": 1.0,
}
BOMBS: list[dict[str, Any]] = [
    {"num_hidden_layers": 4096, "n_routed_experts": 65536},
    {"num_hidden_layers": 500, "n_routed_experts": 4096, "first_k_dense_replace": 0},
    {"num_hidden_layers": 4096, "qk_rope_head_dim": 65536, "head_dim": 65536},
    {"num_hidden_layers": 512, "qk_rope_head_dim": 4096, "head_dim": 4096},
    {"num_hidden_layers": 500, "hidden_size": 1 << 24, "num_attention_heads": 4096},
    {"num_hidden_layers": 300, "first_k_dense_replace": 300}
    | {"n_routed_experts": 4096, "num_nextn_predict_layers": 64},
    {"vocab_size": 1 << 24, "hidden_size": 1 << 24, "num_attention_heads": 1 << 20},
]
UNGROUPED = {"n_group": 1, "topk_group": 1, "moe_layer_freq": 1, "num_key_value_heads": None}


def main(path: Path) -> None:
    """Runs all configs derived from that of the checkpoint at `path`."""
    resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
    base = json.loads((path / "config.json").read_text())
    refused = built = 0
    for config in variants(base):
        try:
            verify(build(config))
            built += 1
        except ConfigError:
            refused += 1
    for bomb in BOMBS:
        (path / "config.json").write_text(json.dumps(base | UNGROUPED | bomb))
        for act in (plan_conversion, lambda path: convert(path, path / "out")):
            try:
                act(path)
            except DeepmnnError:
                continue
            raise AssertionError(f"{bomb} describes the checkpoint")
    print(refused, built)


def variants(base: dict[str, Any]) -> list[dict[str, Any]]:
    """The config with one wrong number in it, each."""
    cls = import_module(f"deepmnn.models.{base['model_type']}").CONFIG
    names = [field.name for field in dataclasses.fields(cls) if field.name != "rope_parameters"]
    plain = {name: value for name, value in base.items() if name != "rope_parameters"}
    configs = [base | {name: value} for name in names for value in VALUES]
    for rope_type in ("llama3", "yarn"):
        scalings = [ROPE | {"rope_type": rope_type, n: v} for n in ROPE for v in VALUES]
        configs += [plain | {"rope_scaling": scaling} for scaling in scalings]
    return configs


if __name__ == "__main__":
    main(Path(sys.argv[1]))
