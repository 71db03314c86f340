"""Trains a `DeepSeekV3`: optimisers, the schedule, and what a checkpoint holds."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from deepseek_v3 import DeepSeekV3

console = Console(width=120)
IGNORE = -100


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences.

    ids, targets: [batch, tokens]; a target is the next token, or IGNORE in the prompt.
    """

    ids: Tensor
    targets: Tensor


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


def trunk_loss(model: DeepSeekV3, batch: Batch) -> Tensor:
    learned = batch.targets != IGNORE
    return F.cross_entropy(model.lm_head(model.hidden(batch.ids)[learned]), batch.targets[learned])


@dataclass
class Run:
    """All that changes while training, and so all that a checkpoint holds."""

    model: DeepSeekV3
    average: DeepSeekV3
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
    loss_of: Callable[[DeepSeekV3, Batch], Tensor],
    source: Iterator[Batch],
    minutes: float,
    report: Callable[[float], None],
    save: Callable[[], None],
    begun: float = 0.0,
    every: float = 180.0,
    warm_up: int = 60,
    balance: float = 0.003,
) -> None:
    """Optimises `loss_of` for `minutes`: warm-up, level, then a linear fall over the last 40 %.

    Time is the processor time of this thread, so that a process that is stopped or has to wait
    keeps its schedule. begun: what `run.seconds` was when the schedule began. `report` and `save`
    are called every so many seconds, and at the end. warm_up: steps. balance: how much an expert's
    bias changes in a step.
    """
    rates = [[group["lr"] for group in opt.param_groups] for opt in run.opts]
    first_step, first_tokens, first_seconds = run.step, run.tokens, run.seconds
    saved = noted = run.seconds
    average_loss = 0.0
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=minutes * 60)
        while (elapsed := run.seconds - begun) < minutes * 60:
            start = time.thread_time()
            left = 1 - elapsed / (60 * minutes)
            factor = min(1.0, (1 + run.step - first_step) / warm_up, left / 0.4)
            for opt, base in zip(run.opts, rates, strict=True):
                for group, rate in zip(opt.param_groups, base, strict=True):
                    group["lr"] = rate * factor
            loss = step(run, loss_of, next(source), balance * factor)
            average_loss += (loss - average_loss) * (0.05 if average_loss else 1.0)
            run.seconds += time.thread_time() - start
            progress.update(
                bar, completed=elapsed, description=f"step {run.step}  loss {average_loss:.4f}"
            )
            if run.seconds - noted > 30:
                noted = run.seconds
                speed = (run.tokens - first_tokens) / (run.seconds - first_seconds)
                console.print(
                    f"step {run.step}  {run.tokens / 1e6:.2f} M tokens  {speed:.0f}/s  "
                    f"loss {average_loss:.4f}  {left * minutes:.0f} min left"
                )
            if run.seconds - saved > every:
                save()
                report(average_loss)
                saved = run.seconds
    for opt, base in zip(run.opts, rates, strict=True):  # resuming starts from the level rate
        for group, rate in zip(opt.param_groups, base, strict=True):
            group["lr"] = rate
    save()
    report(average_loss)


def step(
    run: Run, loss_of: Callable[[DeepSeekV3, Batch], Tensor], batch: Batch, balance: float
) -> float:
    """One step of every optimiser; the loss before it."""
    loss = loss_of(run.model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    for opt in run.opts:
        opt.step()
        opt.zero_grad()
    for moe in run.model.moes():
        moe.balance(balance)
    run.step += 1
    run.tokens += batch.ids.numel()
    run.update_average()
    return float(loss.item())
