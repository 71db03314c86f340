"""Trains a mixture of 128 experts on this machine's text, for routing as trained models have it.

    python -m bench.memory.train_mixture OUT --minutes 25

DeepSeek-V3's architecture, small: nine layers, eight of them with 128 routed experts (six for each
token) and two shared ones, balanced without an auxiliary loss. Writes OUT/hf, a Hugging Face
directory in bfloat16; OUT/held_out.json, documents that it never learned from, by domain; and
OUT/state.pt, from which the same command goes on. `bench.memory.widen` makes it large.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from bench.memory.local_text import documents
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from deepseek_v3 import Config, DeepSeekV3
from tiny_r1_tokenizer import BOS_ID, EOS_ID, train_tokenizer
from train_mixture import SPLITS, export
from training import Batch, Run, console, fit, optimisers, trunk_loss

CONFIG = Config(
    vocab_size=2048,
    hidden_size=64,
    intermediate_size=128,
    moe_intermediate_size=16,
    num_hidden_layers=9,
    num_nextn_predict_layers=0,
    num_attention_heads=2,
    num_key_value_heads=2,
    q_lora_rank=32,
    kv_lora_rank=32,
    qk_nope_head_dim=32,
    qk_rope_head_dim=32,
    v_head_dim=32,
    n_routed_experts=128,
    n_shared_experts=2,
    num_experts_per_tok=6,
    n_group=1,
    topk_group=1,
)
WINDOW = 768  # tokens of a row that the model is judged by
CHARACTERS = 600_000  # of each domain
HELD_OUT_TOKENS = 6 * WINDOW  # of each domain


def prepare(out: Path, seed: int) -> None:
    """Writes what training reads: tokenizer.json, held_out.json, train.npy and held_out.npy."""
    found = list(documents(CHARACTERS))
    learned = [document for document in found if not document.is_held_out]
    random.Random(seed).shuffle(learned)
    sample = (document.text[:4000] for document in learned)
    tokenizer = train_tokenizer(sample, CONFIG.vocab_size, SPLITS)
    held_out: dict[str, list[str]] = {}
    for document in found:
        if document.is_held_out:
            held_out.setdefault(document.domain, []).append(document.text)
    (out / "held_out.json").write_text(json.dumps(held_out, ensure_ascii=False), encoding="utf-8")
    sets = {
        "train": tokens(tokenizer, [document.text for document in learned]),
        "held_out": np.concatenate(
            [tokens(tokenizer, texts)[:HELD_OUT_TOKENS] for texts in held_out.values()]
        ),
    }
    for name, ids in sets.items():
        np.save(out / f"{name}.npy", ids)
        console.print(f"{name}: {len(ids)} tokens")
    tokenizer.save(str(out / "tokenizer.json"))  # last: what is there is complete


def tokens(tokenizer: Tokenizer, texts: list[str]) -> NDArray[np.uint16]:
    """One stream of documents, each between a begin and an end token."""
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    return np.concatenate([np.array([BOS_ID, *text.ids, EOS_ID], np.uint16) for text in encoded])


def rows(ids: NDArray[np.uint16], starts: list[int], window: int = WINDOW) -> Batch:
    """Rows of `window` tokens from these places on; each begins with a begin token of its own."""
    windows = np.stack([ids[start : start + window + 1] for start in starts]).astype(np.int64)
    windows[:, 0] = BOS_ID
    return Batch(torch.from_numpy(windows[:, :-1]), torch.from_numpy(windows[:, 1:]))


def training_batches(
    ids: NDArray[np.uint16], rng: random.Random, count: int, window: int
) -> Iterator[Batch]:
    while True:
        starts = [rng.randrange(len(ids) - window) for _ in range(count // window)]
        yield rows(ids, starts, window)


def held_out_batches(ids: NDArray[np.uint16], count: int) -> list[Batch]:
    starts = np.linspace(0, len(ids) - WINDOW - 1, count).astype(int).tolist()
    return [rows(ids, starts[first : first + 10]) for first in range(0, count, 10)]


def halved_loss(helper: ThreadPoolExecutor, model: DeepSeekV3, batch: Batch) -> Tensor:
    """The loss of a batch, whose gradients are added by two threads, one for each half of the rows.

    PyTorch's own threads gain nothing here: experts are small.
    """

    def half(rows: slice) -> Tensor:
        loss = trunk_loss(model, Batch(batch.ids[rows], batch.targets[rows])) / 2
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    middle = len(batch.ids) // 2
    other = helper.submit(half, slice(middle, None))
    return (half(slice(None, middle)) + other.result()).requires_grad_()


def begun_run(out: Path, seed: int) -> Run:
    """A run of this seed, or the one that OUT/state.pt is of."""
    torch.manual_seed(seed)
    model, average = DeepSeekV3(CONFIG), DeepSeekV3(CONFIG).requires_grad_(False)
    average.load_state_dict(model.state_dict())
    opts = optimisers(dict(model.named_parameters()), 1.0)
    run = Run(model, average, random.Random(seed), opts)
    if (out / "state.pt").is_file():
        run.load(out / "state.pt")
    return run


def main(
    out: Annotated[Path, typer.Argument(help="Directory of the model, its text and its state.")],
    minutes: Annotated[float, typer.Option(help="Time of one of the two threads.")] = 25.0,
    batch_tokens: Annotated[int, typer.Option(help="Tokens of a step.")] = 4096,
    window: Annotated[int, typer.Option(help="Tokens of a row: short ones are faster.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the weights and the order of the text.")] = 1,
) -> None:
    """Train the mixture, or go on training it, and write it as a Hugging Face directory."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "tokenizer.json").is_file():
        prepare(out, seed)
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    run = begun_run(out, seed)
    judged = held_out_batches(np.load(out / "held_out.npy"), 20)

    def report(loss: float) -> None:
        with torch.no_grad():
            losses = [trunk_loss(run.average, batch).item() for batch in judged]
        fullest = [float(moe.load.max() / moe.load.mean()) for moe in run.model.moes()]
        console.print(
            f"held out {sum(losses) / len(losses):.4f}  training {loss:.4f}  "
            f"fullest experts {max(fullest):.2f} x the mean  {run.seconds / 60:.1f} min"
        )
        export(out / "hf", run.average, tokenizer)

    learned = np.load(out / "train.npy", mmap_mode="r")
    source = training_batches(learned, run.rng, batch_tokens, window)
    save = partial(run.save, out / "state.pt")
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as helper:
        loss_of = partial(halved_loss, helper)
        fit(run, loss_of, source, minutes, report, save, every=60.0, warm_up=20, balance=0.01)


if __name__ == "__main__":
    typer.run(main)
