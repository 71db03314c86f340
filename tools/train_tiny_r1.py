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
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from arithmetic import KINDS, Conversation, Problem, held_out_set, sample_conversation
from tiny_r1_model import Config, TinyR1
from tiny_r1_tokenizer import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    prompt_and_response,
    tokenizer_config,
    train_tokenizer,
)

console = Console(width=120)
IGNORE = -100


# ---------------------------------------------------------------- data


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences.

    ids, targets: [batch, tokens]; a target is the next token, or IGNORE in the prompt.
    """

    ids: Tensor
    targets: Tensor


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


# ---------------------------------------------------------------- optimiser


def orthogonalise(update: Tensor) -> Tensor:
    """Nearest orthogonal matrices, by Newton-Schulz. update: [count, rows, columns]"""
    tall = update.shape[1] > update.shape[2]
    x = update.mT if tall else update
    x = x / (1e-7 + x.norm(dim=(1, 2), keepdim=True))
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * (gram @ gram)) @ x
    result: Tensor = x.mT if tall else x
    return result


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, for the matrices inside layers (Jordan et al., 2024)."""

    def __init__(
        self, params: Iterable[tuple[str, nn.Parameter]], lr: float, weight_decay: float
    ) -> None:
        groups = [
            {"params": [p], "parts": 2 if name.endswith("gate_up") else 1} for name, p in params
        ]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            weight = group["params"][0]
            if weight.grad is None:
                continue
            state = self.state[weight]
            if not state:
                state["momentum"] = torch.zeros_like(weight)
            state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
            update = weight.grad.lerp(state["momentum"], group["momentum"])
            columns = weight.shape[-1]
            rows = weight.shape[-2] // group["parts"]
            update = orthogonalise(update.reshape(-1, rows, columns)).reshape(weight.shape)
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.add_(update, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def optimisers(params: dict[str, nn.Parameter], rate: float) -> list[torch.optim.Optimizer]:
    def is_matrix(name: str) -> bool:
        return params[name].dim() > 1 and not any(
            part in name for part in ("embed", "lm_head", ".gate.weight")
        )

    matrices = [(name, p) for name, p in params.items() if is_matrix(name)]
    rest = [p for name, p in params.items() if not is_matrix(name)]
    return [
        Muon(matrices, lr=0.015 * rate, weight_decay=0.1),
        torch.optim.AdamW(rest, lr=3e-3 * rate, betas=(0.9, 0.95), weight_decay=0.01),
    ]


# ---------------------------------------------------------------- training


def trunk_loss(model: TinyR1, batch: Batch) -> Tensor:
    learned = batch.targets != IGNORE
    return F.cross_entropy(model.lm_head(model.hidden(batch.ids)[learned]), batch.targets[learned])


def mtp_loss(model: TinyR1, batch: Batch) -> Tensor:
    with torch.no_grad():
        hidden = model.hidden(batch.ids)
    targets = batch.targets[:, 1:]
    learned = targets != IGNORE
    return F.cross_entropy(
        model.lm_head(model.draft_hidden(hidden, batch.ids)[learned]), targets[learned]
    )


@torch.no_grad()
def score(model: TinyR1, sets: dict[str, list[Batch]]) -> tuple[dict[str, float], float]:
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


@dataclass
class Run:
    """All that changes while training, and so all that a checkpoint holds."""

    model: TinyR1
    average: TinyR1
    rng: random.Random
    opts: list[torch.optim.Optimizer] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    step: int = 0

    def save(self, path: Path) -> None:
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "step": self.step,
        }
        state |= {"opts": [opt.state_dict() for opt in self.opts], "rng": self.rng.getstate()}
        torch.save(
            state | {"tokens": self.tokens, "seconds": self.seconds}, path.with_suffix(".tmp")
        )
        path.with_suffix(".tmp").replace(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for opt, saved in zip(self.opts, state["opts"], strict=True):
            rates = [group["lr"] for group in opt.param_groups]
            opt.load_state_dict(saved)
            for group, mine in zip(opt.param_groups, rates, strict=True):
                group["lr"] = mine
        self.rng.setstate(state["rng"])
        self.tokens, self.seconds, self.step = state["tokens"], state["seconds"], state["step"]

    @torch.no_grad()
    def update_average(self) -> None:
        keep = min(0.98, (self.step + 1) / (self.step + 10))
        mine, theirs = self.average.state_dict(), self.model.state_dict()
        for name, weight in mine.items():
            weight.lerp_(theirs[name], 1 - keep)


def fit(
    run: Run,
    loss_of: Callable[[TinyR1, Batch], Tensor],
    source: Iterator[Batch],
    minutes: float,
    report: Callable[[float], None],
    save: Callable[[], None],
    every: float = 180.0,
) -> None:
    """Optimises `loss_of` for `minutes`: warm-up, level, then a linear fall over the last 40 %."""
    rates = [[group["lr"] for group in opt.param_groups] for opt in run.opts]
    start = last = noted = time.monotonic()
    warm = run.step
    seen, average_loss = 0, 0.0
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=minutes * 60)
        while (elapsed := time.monotonic() - start) < minutes * 60:
            batch = next(source)
            factor = min(1.0, (1 + run.step - warm) / 60, (1 - elapsed / (60 * minutes)) / 0.4)
            for opt, base in zip(run.opts, rates, strict=True):
                for group, rate in zip(opt.param_groups, base, strict=True):
                    group["lr"] = rate * factor
            loss = loss_of(run.model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            for opt in run.opts:
                opt.step()
                opt.zero_grad()
            for moe in run.model.moes():
                moe.balance(0.003 * factor)
            run.step += 1
            run.tokens += batch.ids.numel()
            seen += batch.ids.numel()
            run.update_average()
            average_loss += (loss.item() - average_loss) * (0.05 if average_loss else 1.0)
            now = time.monotonic()
            run.seconds += now - start - elapsed
            progress.update(
                bar, completed=elapsed, description=f"step {run.step}  loss {average_loss:.4f}"
            )
            if now - noted > 30:
                noted = now
                speed = f"{run.tokens / 1e6:.2f} M tokens  {seen / (now - start):.0f}/s"
                console.print(f"step {run.step}  {speed}  loss {average_loss:.4f}")
            if now - last > every:
                report(average_loss)
                save()
                last = time.monotonic()
    for opt, base in zip(
        run.opts, rates, strict=True
    ):  # a resumed run starts from the level rate again
        for group, rate in zip(opt.param_groups, base, strict=True):
            group["lr"] = rate
    report(average_loss)
    save()


# ---------------------------------------------------------------- export


def export(out: Path, model: TinyR1, tokenizer: Tokenizer, held_out: list[Problem]) -> None:
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
    model, average = TinyR1(config), TinyR1(config).requires_grad_(False)
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
    fit(run, trunk_loss, source, minutes, report, lambda: run.save(state / "trunk.pt"))

    model.load_state_dict(average.state_dict())
    model.requires_grad_(False)
    model.mtp.requires_grad_(True)
    run.opts = optimisers({n: p for n, p in model.named_parameters() if p.requires_grad}, 1.0)
    fit(run, mtp_loss, source, mtp_minutes, report, lambda: run.save(state / "mtp.pt"))


if __name__ == "__main__":
    typer.run(main)
