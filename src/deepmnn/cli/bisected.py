"""What `deepmnn compare --bisect` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepmnn.cli.console import out, table

if TYPE_CHECKING:
    from rich.table import Table

    from deepmnn.inspect.bisect.bisect import Bisection
    from deepmnn.inspect.bisect.runs import Trial


def print_bisection(found: Bisection) -> None:
    """What is to blame, the proof, and what to do."""
    out.say(f"{found.model}, against {found.reference}", "bold")
    made = table("", "", "error of the logits", "KL divergence, nats")
    _add(made, "as it is", found.as_it_is)
    if found.off is not None:
        _add(made, "without what is to blame", found.off)
    if found.on is not None:
        _add(made, "with that alone", found.on)
    made.add_row("the bound", f"{found.bound:.3g}", "")
    out.print(made)
    for name in found.blamed:
        out.say(f"to blame: {name}", "bold red")
    for advice in found.advice:
        out.say(advice)
    out.say("1 run" if len(found.trials) == 1 else f"{len(found.trials)} runs", "dim")


def _add(made: Table, name: str, trial: Trial) -> None:
    made.add_row(name, f"{trial.error:.3g}", f"{trial.divergence:.3g}")
