"""config.json: what it says, and the graph, the passes and the program that are made of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from deepmnn.conversion.convert import plan_conversion
from deepmnn.errors import CheckpointError
from deepmnn.models import read_config
from deepmnn.quant.recipe import recipe_of
from deepmnn.source.json_file import parse_object
from fuzz.harness import FileTarget
from fuzz.parts import mutate_text
from fuzz.targets.gguf import MODELS

LAYERS, EXPERTS = 4, 64
"""Of a larger model no graph is made here: its memory is the model's, not the file's."""


class Config(FileTarget):
    """A config.json without weights, described as `deepmnn info` does."""

    file = "config.json"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.seeds = [json.dumps(config).encode() for config, _, _ in MODELS]
        for number, extra in enumerate(SCALINGS):
            fields = MODELS[number % len(MODELS)][0] | {"rope_scaling": extra}
            self.seeds.append(json.dumps(fields).encode())

    def use(self) -> None:
        fields = parse_object(self.path.read_bytes(), self.file, CheckpointError)
        config = read_config(fields)
        experts = getattr(config, "n_routed_experts", 0) or 0
        extra = getattr(config, "num_nextn_predict_layers", 0)
        if config.num_hidden_layers + extra <= LAYERS and experts <= EXPERTS:
            plan_conversion(self.model, recipe_of("w4"), random_weights=True)

    def mutate(self, rng: np.random.Generator, data: bytes) -> bytes:
        return mutate_text(rng, data)


SCALINGS = (
    {"type": "linear", "factor": 2.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "mscale": 0.7},
    {
        "rope_type": "yarn",
        "factor": 2.0,
        "attention_factor": 0.8,
        "beta_fast": 8,
        "truncate": False,
    },
)
