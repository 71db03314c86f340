"""Which experts a trained mixture chooses for real text, and how well one layer foretells the next.

    python -m bench.memory.routing MIXTURE TRACES.npz

MIXTURE is a directory of `bench.memory.train_mixture`. For every domain it takes held-out text: 512
tokens as a prompt, then 256 tokens which are the text's own, and again 256 which the model draws
(deepmnn generates them). TRACES.npz holds

    experts    uint8 [rows, 768, layers, top_k]   the choices of every token in every routed layer
    foretold   uint8 [rows, 768, layers, 16]      the best by the layer before; layer 0 has none
    domains    str [rows]
    sampled    bool [rows]                        whether the last 256 tokens are the model's own
    ids        uint16 [rows, 768]

and the second table is printed: the share of a layer's choices that the layer before knows.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import deepmnn

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from bench.memory.train_mixture import CONFIG, tokens

from deepseek_v3 import DeepSeekV3, Layer, MoE
from tiny_r1_tokenizer import BOS_ID, EOS_ID

PROMPT, ANSWER = 512, 256
WIDTHS = (6, 8, 10, 12, 16)
"""How many experts are foretold."""


def opened(directory: Path) -> DeepSeekV3:
    """The model of a Hugging Face directory that `train_mixture` wrote."""
    stored = load_file(directory / "model.safetensors")
    model = DeepSeekV3(CONFIG).requires_grad_(False)
    state = model.state_dict()
    for name in state:
        stem, _, last = name.rpartition(".")
        if last in ("gate_up", "down"):
            parts = ("gate_proj", "up_proj") if last == "gate_up" else ("down_proj",)
            state[name] = torch.stack(
                [
                    torch.cat([stored[f"{stem}.experts.{e}.{p}.weight"] for p in parts])
                    for e in range(CONFIG.n_routed_experts)
                ]
            )
        else:
            state[name] = stored[name]
    model.load_state_dict({name: value.float() for name, value in state.items()})
    return model.eval()


# ---------------------------------------------------------------- what a forward pass sees


@dataclass
class Seen:
    """A routed layer in one forward pass: values by token.

    before: the residual stream that the norm of the experts reads. input: the normed one.
    after: the residual stream after the layer. experts: the choices [tokens, top_k].
    """

    before: Tensor = field(default_factory=lambda: torch.empty(0))
    input: Tensor = field(default_factory=lambda: torch.empty(0))
    after: Tensor = field(default_factory=lambda: torch.empty(0))
    experts: Tensor = field(default_factory=lambda: torch.empty(0))


def watch(model: DeepSeekV3) -> tuple[list[Layer], list[Seen]]:
    """The routed layers, and what each of them sees in the last forward pass from now on."""

    def normed(seen: Seen, _: nn.Module, args: Any, out: Tensor) -> None:
        seen.before, seen.input = args[0].flatten(0, -2), out.flatten(0, -2)

    def routed(seen: Seen, _: nn.Module, args: Any, out: Any) -> None:
        seen.experts = out[1]

    def left(seen: Seen, _: nn.Module, args: Any, out: Tensor) -> None:
        seen.after = out.flatten(0, -2)

    layers = [x for x in model.model.layers if isinstance(x, Layer) and isinstance(x.mlp, MoE)]
    seen = [Seen() for _ in layers]
    for layer, one in zip(layers, seen, strict=True):
        assert isinstance(layer.mlp, MoE)
        layer.post_attention_layernorm.register_forward_hook(partial(normed, one))
        layer.mlp.gate.register_forward_hook(partial(routed, one))
        layer.register_forward_hook(partial(left, one))
    return layers, seen


# ---------------------------------------------------------------- foretelling


def guesses(layers: list[Layer], seen: list[Seen], layer: int, ahead: int) -> dict[str, Tensor]:
    """What may stand for the input of the router `ahead` layers on: [tokens, hidden] by name."""
    norm = layers[layer + ahead].post_attention_layernorm.forward  # past the hooks
    return {
        "the experts' input": seen[layer].input,
        "the same under the next norm": norm(seen[layer].before),
        "the residual stream after the layer": norm(seen[layer].after),
    }


def ranked(layer: Layer, x: Tensor) -> Tensor:
    """The experts that a layer's router would choose, best first: [tokens, experts]."""
    assert isinstance(layer.mlp, MoE)
    gate = layer.mlp.gate
    return (F.linear(x, gate.weight).sigmoid() + gate.e_score_correction_bias).argsort(
        -1, descending=True
    )


def recall(order: Tensor, experts: Tensor, width: int) -> float:
    """The share of choices among the first `width` of an order."""
    found = (order[:, None, :width] == experts[:, :, None]).any(-1)
    return float(found.float().mean())


def foretold(layers: list[Layer], seen: list[Seen]) -> Tensor:
    """The best experts of each layer by what the layer before sees: [tokens, layers, most]."""
    most = max(WIDTHS)
    found = [torch.zeros(len(seen[0].before), most, dtype=torch.long)]
    for layer, after in enumerate(layers[1:]):
        x = after.post_attention_layernorm.forward(seen[layer].before)  # past the hooks
        found.append(ranked(after, x)[:, :most])
    return torch.stack(found, 1)


def recalls(layers: list[Layer], seen: list[Seen]) -> dict[str, list[float]]:
    """Mean over layers, by what foretells: at each of WIDTHS."""
    found: dict[str, list[list[float]]] = {}
    for ahead in (1, 2):
        for layer in range(len(layers) - ahead):
            wanted = seen[layer + ahead].experts
            for name, x in guesses(layers, seen, layer, ahead).items():
                order = ranked(layers[layer + ahead], x)
                row = [recall(order, wanted, width) for width in WIDTHS]
                found.setdefault(f"{name}, {ahead} ahead", []).append(row)
    for one in seen:
        counts = torch.bincount(one.experts.flatten(), minlength=CONFIG.n_routed_experts)
        order = counts.argsort(descending=True).expand(len(one.experts), -1)
        row = [recall(order, one.experts, width) for width in WIDTHS]
        found.setdefault("the most used of this text", []).append(row)
    return {name: np.mean(rows, axis=0).tolist() for name, rows in found.items()}


# ---------------------------------------------------------------- text


def texts(directory: Path) -> dict[str, NDArray[np.uint16]]:
    """PROMPT + ANSWER held-out tokens by domain, of one document where one is long enough."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    held_out: dict[str, list[str]] = json.loads((directory / "held_out.json").read_text("utf-8"))
    found = {}
    for domain, documents in held_out.items():
        longest = sorted(documents, key=len, reverse=True)
        ids = tokens(tokenizer, longest)[: PROMPT + ANSWER]
        if len(ids) == PROMPT + ANSWER:
            found[domain] = ids
    return found


def continued(directory: Path, ids: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """A row whose last ANSWER tokens the model draws."""
    llm = deepmnn.load(directory, quant="fp32")
    prompts = [row[:PROMPT].tolist() for row in ids]
    params = deepmnn.SamplingParams(
        temperature=0.8, top_p=0.95, max_tokens=ANSWER, ignore_eos=True, seed=1
    )
    answers = [each.ids for each in llm.generate(prompts, params)]
    return np.array([p + list(a) for p, a in zip(prompts, answers, strict=True)], np.uint16)


def main(
    mixture: Annotated[Path, typer.Argument(help="A directory of bench.memory.train_mixture.")],
    out: Annotated[Path, typer.Argument(help="The .npz file to write.")],
) -> None:
    """Write the traces, and print how well layers foretell the next ones."""
    torch.set_num_threads(1)
    assert BOS_ID == 0
    assert EOS_ID == 1
    real = texts(mixture)
    ids = np.stack(list(real.values()))
    ids = np.concatenate([ids, continued(mixture / "hf", ids)])
    model = opened(mixture / "hf")
    layers, seen = watch(model)
    experts, guessed, found = [], [], list[dict[str, list[float]]]()
    for row in ids:
        model.hidden(torch.from_numpy(row.astype(np.int64))[None])
        experts.append(torch.stack([one.experts for one in seen], 1).numpy().astype(np.uint8))
        guessed.append(foretold(layers, seen).numpy().astype(np.uint8))
        found.append(recalls(layers, seen))
    np.savez_compressed(
        out,
        experts=np.stack(experts),
        foretold=np.stack(guessed),
        domains=np.array([*real] * 2),
        sampled=np.arange(len(ids)) >= len(real),
        ids=ids,
    )
    print("| the next layer's router reads |", *(f"recall at {w} |" for w in WIDTHS))
    print("|---|" + "--:|" * len(WIDTHS))
    for name in found[0]:
        mean = np.mean([row[name] for row in found], axis=0)
        print(f"| {name} |", *(f"{share:.1%} |" for share in mean))


if __name__ == "__main__":
    typer.run(main)
