"""Trains a mixture of experts of DeepSeek-V3's architecture on prose and code, to judge rounding.

    python tools/train_mixture.py --out mixture --minutes 160

It learns from novels, documentation and Python's library (`corpus.py` downloads them) and writes
OUT/hf, a Hugging Face directory in bfloat16 with its tokenizer; OUT/HELDOUT.txt, documents that it
never learned from; and OUT/state.pt, from which the same command goes on. The learning rate falls
over the last 40 % of the time; an exponential average of the weights is what is written, every
three minutes, so the directory is always usable. Time is processor time: the process may be
stopped and continued, or killed. Another --minutes stretches or shortens what is left.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from corpus import CACHE, Document, documents
from deepseek_v3 import Config, DeepSeekV3
from tiny_r1_tokenizer import BOS_ID, EOS_ID, PAD_ID, tokenizer_config, train_tokenizer
from training import Batch, Run, console, fit, optimisers, trunk_loss

# Widths that are no multiples of 256, as a panel's last columns have to be judged, too.
CONFIG = Config(
    vocab_size=4096,
    hidden_size=288,
    intermediate_size=800,
    moe_intermediate_size=96,
    num_hidden_layers=6,
    num_nextn_predict_layers=0,
    num_attention_heads=4,
    num_key_value_heads=4,
    q_lora_rank=160,
    kv_lora_rank=160,
    qk_nope_head_dim=64,
    qk_rope_head_dim=32,
    v_head_dim=64,
    n_routed_experts=16,
    num_experts_per_tok=4,
    n_group=1,
    topk_group=1,
)
WINDOW = 512  # tokens of a row
HELD_OUT_CHARACTERS = 30_000  # of each source

# How DeepSeek-V3's tokenizer cuts text before it merges.
SPLITS = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-\u309f\u30a0-\u30ff]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)


# ---------------------------------------------------------------- data


def held_out_text(found: list[Document]) -> str:
    """Some held-out documents of every source, each from its beginning, a form feed between."""
    texts = []
    for source in sorted({document.source for document in found}):
        left = HELD_OUT_CHARACTERS
        for document in found:
            if document.is_held_out and document.source == source and left > 0:
                part = document.text[: min(left, HELD_OUT_CHARACTERS // 3)]
                texts.append(part[: part.rfind("\n\n")] if "\n\n" in part else part)
                left -= len(part)
    return "\n\f\n".join(texts)


def prepare(state: Path, cache: Path, seed: int) -> None:
    """Writes what training reads: tokenizer.json, HELDOUT.txt, train.npy and held_out.npy."""
    console.print(f"reading the corpus ({cache})")
    found = list(documents(cache))
    learned = [document for document in found if not document.is_held_out]
    random.Random(seed).shuffle(learned)
    sample = (document.text for document in learned[::4])
    tokenizer = train_tokenizer(sample, CONFIG.vocab_size, SPLITS)
    held_out = held_out_text(found)
    (state / "HELDOUT.txt").write_text(held_out, encoding="utf-8")
    sets = {"train": [d.text for d in learned], "held_out": held_out.split("\n\f\n")}
    for name, texts in sets.items():
        encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
        ids = [np.array([BOS_ID, *text.ids, EOS_ID], np.uint16) for text in encoded]
        np.save(state / f"{name}.npy", np.concatenate(ids))
    characters = sum(map(len, sets["train"]))
    tokens = len(np.load(state / "train.npy", mmap_mode="r"))
    console.print(f"{len(learned)} documents, {characters} characters, {tokens} tokens")
    tokenizer.save(str(state / "tokenizer.json"))  # last: what is there is complete


def rows(ids: NDArray[np.uint16], starts: list[int]) -> Batch:
    """Every second row begins with a begin-of-sentence token instead of its own first one."""
    windows = np.stack([ids[start : start + WINDOW + 1] for start in starts]).astype(np.int64)
    windows[::2, 0] = BOS_ID
    return Batch(torch.from_numpy(windows[:, :-1]), torch.from_numpy(windows[:, 1:]))


def training_batches(ids: NDArray[np.uint16], rng: random.Random, tokens: int) -> Iterator[Batch]:
    while True:
        yield rows(ids, [rng.randrange(len(ids) - WINDOW) for _ in range(tokens // WINDOW)])


def held_out_batches(ids: NDArray[np.uint16], count: int) -> list[Batch]:
    starts = np.linspace(0, len(ids) - WINDOW - 1, count).astype(int).tolist()
    return [rows(ids, starts[first : first + 8]) for first in range(0, count, 8)]


def mixed_precision_loss(model: DeepSeekV3, batch: Batch) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return trunk_loss(model, batch)


# ---------------------------------------------------------------- export


def export(out: Path, model: DeepSeekV3, tokenizer: Tokenizer) -> None:
    """Writes the directory `transformers` and deepmnn load."""
    out.mkdir(parents=True, exist_ok=True)
    limit = model.c.max_position_embeddings
    ids = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}
    files = {
        "config.json": model.c.to_json(BOS_ID, EOS_ID, PAD_ID),
        "tokenizer_config.json": tokenizer_config(limit) | {"add_bos_token": True},
        "generation_config.json": {"do_sample": False, "max_new_tokens": 256, **ids},
    }
    for name, content in files.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (out / name).write_text(text, encoding="utf-8")
    tokenizer.save(str(out / "tokenizer.json"))
    weights = out / "model.safetensors"
    save_file(model.checkpoint(), str(weights.with_suffix(".tmp")), metadata={"format": "pt"})
    weights.with_suffix(".tmp").replace(weights)


def main(
    out: Annotated[Path, typer.Option(help="Directory of the model, its text and its state.")],
    minutes: Annotated[float, typer.Option(help="Processor time in all.")] = 160.0,
    cache: Annotated[Path, typer.Option(help="Where packages are downloaded to.")] = CACHE,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    batch_tokens: Annotated[int, typer.Option(help="Tokens per step.")] = 4096,
    seed: Annotated[int, typer.Option(help="Of the weights and the order of the text.")] = 1,
) -> None:
    """Train the mixture, or go on training it, and write it as a Hugging Face directory."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "tokenizer.json").is_file():
        prepare(out, cache, seed)
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    model, average = DeepSeekV3(CONFIG), DeepSeekV3(CONFIG).requires_grad_(False)
    average.load_state_dict(model.state_dict())
    parameters = dict(model.named_parameters())
    run = Run(model, average, random.Random(seed), optimisers(parameters, 1.0))
    if (out / "state.pt").is_file():
        run.load(out / "state.pt")
    count = sum(weight.numel() for weight in parameters.values())
    console.print(f"{count / 1e6:.1f} M parameters, {run.seconds / 60:.1f} minutes done")

    held_out = held_out_batches(np.load(out / "held_out.npy"), 32)

    def report(loss: float) -> None:
        with torch.no_grad():
            losses = [trunk_loss(average, batch).item() for batch in held_out]
        fullest = [float(moe.load.max() / moe.load.mean()) for moe in model.moes()]
        console.print(
            f"held out {sum(losses) / len(losses):.4f}  training {loss:.4f}  "
            f"fullest experts {max(fullest):.2f} x the mean  {run.seconds / 60:.1f} min"
        )
        export(out / "hf", average, tokenizer)

    source = training_batches(np.load(out / "train.npy", mmap_mode="r"), run.rng, batch_tokens)
    save = partial(run.save, out / "state.pt")
    fit(run, mixed_precision_loss, source, minutes, report, save)


if __name__ == "__main__":
    typer.run(main)
