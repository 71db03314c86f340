"""A draft part against transformers: it has none, but its layer is one of its decoder layers.

Section 2.2 of the DeepSeek-V3 report (arXiv:2412.19437), with what vLLM's deepseek_mtp.py says of
where norms are: the model's own is applied to what comes in, shared_head's only before the head.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RMSNorm

from deepmnn.backends.base import F32, Backend
from deepmnn.graph.draft import Parts, optimize_parts
from deepmnn.models import build_parts
from parity import SCHEDULES, Runner, prompts_for, relative_error
from tiny_models import CONFIGS, TinyModel, checkpoint_of

DRAFTS = list(range(len(CONFIGS["deepseek_v3"])))
"""Numbers of the configs of DeepSeek-V3, each with a layer that drafts."""

MakeBackend = Callable[[Parts, TinyModel], Backend]


def drafting_checkpoint(index: int, path: Path) -> TinyModel:
    """One of `DRAFTS`."""
    fields = CONFIGS["deepseek_v3"][index] | {"num_nextn_predict_layers": 1}
    return checkpoint_of("deepseek_v3", fields, path)


def lowered_parts(tiny: TinyModel, level: int) -> Parts:
    """Both graphs at an optimisation level, verified."""
    return optimize_parts(build_parts(tiny.config), level)[0]


class DraftOracle:
    """The draft part of a tiny checkpoint in transformers' modules."""

    def __init__(self, tiny: TinyModel) -> None:
        self._layer = int(tiny.config["num_hidden_layers"])
        self._prefix, self._tiny = f"model.layers.{self._layer}.", tiny
        self._model = self._deeper(tiny)

    def _deeper(self, tiny: TinyModel) -> Any:
        """The model with the drafting layer as its last one."""
        config = tiny.config | {"num_hidden_layers": self._layer + 1}
        with TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(config))
            own = ("embed_tokens", "shared_head", "enorm", "hnorm", "eh_proj")
            drafting = tuple(self._prefix + name for name in own)
            tensors = {
                name: torch.from_numpy(tiny.read(name).copy())
                for name in tiny.names()
                if not name.startswith(drafting)
            }
            save_file(tensors, Path(folder) / "model.safetensors", {"format": "pt"})
            made = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                attn_implementation="eager",
                experts_implementation="eager",
                dtype=torch.float32,
            )
        return made.eval()

    def _tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self._tiny.read(f"{self._prefix}{name}.weight").copy())

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        norm = DeepseekV3RMSNorm(x.shape[-1], eps=self._tiny.config["rms_norm_eps"])
        norm.weight.data = self._tensor(name)
        normed: torch.Tensor = norm(x)
        return normed

    @torch.no_grad()
    def run(self, ids: Sequence[int], states: F32) -> tuple[F32, F32]:
        """A whole sequence of pairs: logits [n, vocab_size] and states [n, hidden_size]."""
        count = len(ids)
        embedded = self._tensor("embed_tokens")[list(ids)]
        joined = (self._norm("enorm", embedded), self._norm("hnorm", torch.from_numpy(states)))
        x = (torch.cat(joined, dim=-1) @ self._tensor("eh_proj").T)[None]
        mask = torch.full((count, count), -torch.inf).triu(1)[None, None]
        positions = torch.arange(count)[None]
        rope = self._model.model.rotary_emb(x, positions)
        layer = self._model.model.layers[self._layer]
        state = layer(x, mask, positions, position_embeddings=rope)[0]
        logits = self._norm("shared_head.norm", state) @ self._tensor("shared_head.head").T
        return logits.numpy(), state.numpy()


def check_drafts(
    tiny: TinyModel,
    make_backend: MakeBackend,
    level: int,
    tolerance: float,
    schedules: Sequence[str] = tuple(SCHEDULES),
) -> None:
    """Asserts that drafts beside the model's own steps are the oracle's, three of them in a chain
    at the end of each prompt, too; and that the model's own logits are what they are without.
    """
    oracle, backend = DraftOracle(tiny), make_backend(lowered_parts(tiny, level), tiny)
    assert (backend.draft_state, backend.outputs) == ("hidden", ("logits", "hidden"))
    for name in schedules:
        lengths, steps = SCHEDULES[name]
        prompts = prompts_for([length + 4 for length in lengths], tiny.config["vocab_size"])
        run, found = Runner(backend, output="hidden"), _Found(len(prompts))
        for step in steps:
            new = {s: count for s, count in enumerate(step) if count}
            at = {s: run.lengths.get(s, 0) for s in new}
            hidden = run.step({s: prompts[s][at[s] : at[s] + n] for s, n in new.items()})
            found.add(run.draft({s: prompts[s][at[s] + 1 :][:n] for s, n in new.items()}, hidden))
        for more in (1, 2, 3):
            last = {s: found.states[s][-1][-1:] for s in range(len(prompts))}
            found.add(run.draft({s: [prompts[s][lengths[s] + more]] for s in last}, last))
        for s, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
            logits, states = (np.concatenate(parts) for parts in (found.logits[s], found.states[s]))
            begins = np.concatenate([tiny.hidden(prompt[:length]), states[length - 1 : length + 2]])
            want = oracle.run(prompt[1 : length + 4], begins)
            error = max(map(relative_error, (logits, states), want))
            assert error <= tolerance, f"{name}: {error:.2e} of the largest number"
        run.output = ""
        ends = {s: [prompt[length]] for s, (prompt, length) in
                enumerate(zip(prompts, lengths, strict=True))}  # fmt: skip
        for s, own in run.step(ends).items():
            error = relative_error(own[0], tiny.logits(prompts[s][: lengths[s] + 1])[-1])
            assert error <= tolerance, f"{name}: {error:.2e} of the largest logit"


class _Found:
    """Logits and states of drafts, by sequence."""

    def __init__(self, count: int) -> None:
        self.logits: list[list[F32]] = [[] for _ in range(count)]
        self.states: list[list[F32]] = [[] for _ in range(count)]

    def add(self, made: dict[int, tuple[F32, F32]]) -> None:
        """Of one step."""
        for sequence, (logits, state) in made.items():
            self.logits[sequence].append(logits)
            self.states[sequence].append(state)
