"""Trains tiny-r1, the bundled model: tokenizer, trunk, MTP layer, then a Hugging Face directory.

    python tools/train_tiny_r1.py --minutes 60 --out src/deepmnn/tiny_r1

One CPU core learns about 5,000 tokens a second. The learning rate stays level and falls over the
last 40 % of the time; an exponential average of the weights is what is evaluated and exported, so
any checkpoint along the way is usable. Once the trunk is done it is frozen and the MTP layer learns
to draft from its output.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from arithmetic import KINDS, Conversation, Problem, held_out_set, sample_conversation
from deepseek_v3 import Config, DeepSeekV3
from tiny_r1_tokenizer import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    prompt_and_response,
    tokenizer_config,
    train_tokenizer,
)
from training import IGNORE, Batch, Run, console, fit, optimisers, trunk_loss

# ---------------------------------------------------------------- data


def encode(tokenizer: Tokenizer, chat: Conversation) -> tuple[list[int], list[int]]:
    prompt, response = (
        tokenizer.encode(text, add_special_tokens=False).ids for text in prompt_and_response(chat)
    )
    return prompt + response, [IGNORE] * (len(prompt) - 1) + response + [IGNORE]


def collate(rows: list[tuple[list[int], list[int]]]) -> Batch:
    width = max(len(ids) for ids, _ in rows)
    ids = [row + [PAD_ID] * (width - len(row)) for row, _ in rows]
    targets = [row + [IGNORE] * (width - len(row)) for _, row in rows]
    return Batch(torch.tensor(ids), torch.tensor(targets))


def batches(rows: list[tuple[list[int], list[int]]], tokens: int) -> Iterator[Batch]:
    """Groups rows of similar length into batches of at most `tokens` tokens, padding included."""
    group: list[tuple[list[int], list[int]]] = []
    for row in sorted(rows, key=lambda row: len(row[0])):
        if (len(group) + 1) * len(row[0]) > tokens:
            yield collate(group)
            group = []
        group.append(row)
    if group:
        yield collate(group)


def training_batches(tokenizer: Tokenizer, rng: random.Random, tokens: int) -> Iterator[Batch]:
    while True:
        pool = [encode(tokenizer, sample_conversation(rng)) for _ in range(3000)]
        ready = list(batches(pool, tokens))[:-1]
        rng.shuffle(ready)
        yield from ready


# ---------------------------------------------------------------- training


def mtp_loss(model: DeepSeekV3, batch: Batch) -> Tensor:
    with torch.no_grad():
        hidden = model.hidden(batch.ids)
    targets = batch.targets[:, 1:]
    learned = targets != IGNORE
    return F.cross_entropy(
        model.lm_head(model.draft_hidden(hidden, batch.ids)[learned]), targets[learned]
    )


@torch.no_grad()
def score(model: DeepSeekV3, sets: dict[str, list[Batch]]) -> tuple[dict[str, float], float]:
    """Share of answers greedy decoding gets right to the last character, and the MTP hit rate.

    Greedy decoding writes the reference exactly when each of its tokens is the likeliest one given
    the tokens before it, so one forward pass over the reference tells.
    """
    exact: dict[str, float] = {}
    drafted, hits = 0, 0
    for kind, parts in sets.items():
        right = rows = 0
        for batch in parts:
            hidden = model.hidden(batch.ids)
            wrong = (model.lm_head(hidden).argmax(-1) != batch.targets) & (batch.targets != IGNORE)
            right += int((~wrong.any(-1)).sum())
            rows += len(wrong)
            learned = batch.targets[:, 1:] != IGNORE
            guess = model.lm_head(model.draft_hidden(hidden, batch.ids)).argmax(-1)
            hits += int((guess == batch.targets[:, 1:])[learned].sum())
            drafted += int(learned.sum())
        exact[kind] = right / rows
    return exact, hits / drafted


# ---------------------------------------------------------------- export


def export(out: Path, model: DeepSeekV3, tokenizer: Tokenizer, held_out: list[Problem]) -> None:
    """Writes the directory `transformers` and deepmnn load."""
    out.mkdir(parents=True, exist_ok=True)

    def write(name: str, content: object) -> None:
        (out / name).write_text(
            json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )

    save_file(model.checkpoint(), str(out / "model.safetensors"), metadata={"format": "pt"})
    tokenizer.save(str(out / "tokenizer.json"))
    write("config.json", model.c.to_json(BOS_ID, EOS_ID, PAD_ID))
    write("tokenizer_config.json", tokenizer_config(model.c.max_position_embeddings))
    ids = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}
    write("generation_config.json", {"do_sample": False, "max_new_tokens": 512, **ids})
    fields = ("kind", "expression", "question", "answer")
    lines = [{name: getattr(problem, name) for name in fields} for problem in held_out]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (out / "held_out.jsonl").write_text(text, encoding="utf-8")


def main(
    out: Annotated[Path, typer.Option(help="Directory to write the model to.")],
    minutes: Annotated[float, typer.Option(help="Training time of the trunk.")] = 55.0,
    mtp_minutes: Annotated[
        float, typer.Option(help="Training time of the MTP layer, after the trunk.")
    ] = 8.0,
    state: Annotated[Path, typer.Option(help="Directory of the training state.")] = Path(
        "tiny_r1_state"
    ),
    resume: Annotated[bool, typer.Option(help="Go on from the training state.")] = False,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    rate: Annotated[float, typer.Option(help="Scale of the trunk's learning rates.")] = 1.0,
    batch_tokens: Annotated[int, typer.Option(help="Tokens per step.")] = 8192,
    seed: Annotated[int, typer.Option(help="Of the weights and the problems.")] = 1,
) -> None:
    """Train tiny-r1 and write it as a Hugging Face directory."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(seed)
    state.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    config = Config()
    if resume:
        tokenizer = Tokenizer.from_file(str(state / "tokenizer.json"))
    else:
        problems = (sample_conversation(rng).problem for _ in range(20_000))
        texts = (text for p in problems for text in (p.question, p.reasoning, p.final))
        tokenizer = train_tokenizer(texts, config.vocab_size)
        tokenizer.save(str(state / "tokenizer.json"))

    held_out = held_out_set()
    sets: dict[str, list[Batch]] = {}
    for kind in KINDS:
        rows = [encode(tokenizer, Conversation("", (), p)) for p in held_out if p.kind == kind]
        sets[kind] = list(batches(rows, batch_tokens))
    model, average = DeepSeekV3(config), DeepSeekV3(config).requires_grad_(False)
    average.load_state_dict(model.state_dict())
    run = Run(model, average, rng)

    def report(loss: float) -> None:
        exact, hits = score(average, sets)
        mean = sum(exact.values()) / len(exact)
        kinds = "  ".join(f"{kind} {share:.1%}" for kind, share in exact.items())
        console.print(f"[b]held out {mean:.2%}[/b]  {kinds}")
        console.print(f"mtp {hits:.1%}  loss {loss:.4f}  {run.seconds / 60:.1f} min")
        export(out, average, tokenizer, held_out)

    source = training_batches(tokenizer, rng, batch_tokens)
    drafting = set(model.mtp.parameters())
    trunk = {name: weight for name, weight in model.named_parameters() if weight not in drafting}
    run.opts = optimisers(trunk, rate)
    if resume:
        run.load(state / "trunk.pt")
    fit(
        run,
        trunk_loss,
        source,
        minutes,
        report,
        lambda: run.save(state / "trunk.pt"),
        begun=run.seconds,
    )

    model.load_state_dict(average.state_dict())
    model.requires_grad_(False)
    model.mtp.requires_grad_(True)
    run.opts = optimisers({n: p for n, p in model.named_parameters() if p.requires_grad}, 1.0)
    fit(
        run,
        mtp_loss,
        source,
        mtp_minutes,
        report,
        lambda: run.save(state / "mtp.pt"),
        begun=run.seconds,
    )


if __name__ == "__main__":
    typer.run(main)
