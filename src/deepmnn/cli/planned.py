"""A plan, printed: after a conversion, instead of one, and to describe a checkpoint."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from deepmnn.cli.console import count, file_size, out, table

if TYPE_CHECKING:
    from deepmnn.conversion.calibrate import Calibration
    from deepmnn.conversion.plan import Plan
    from deepmnn.conversion.report.facts import Search
    from deepmnn.graph.ir import Weight
    from deepmnn.quant.divergence import Divergence

_POINTS = 8
"""Of a curve that are shown, less one."""

_SHOWN = 3
"""So many of the tensors that nothing reads are named."""


def print_plan(plan: Plan) -> None:
    """Everything that a conversion would write, and what it would leave out."""
    print_facts(plan)
    print_weights(plan.weights)
    print_leftovers(plan)


def print_facts(plan: Plan) -> None:
    """The model, its size and its nodes."""
    size, stored = file_size(plan.nbytes), plan.source.nbytes()
    if stored:
        size += f", {_compared(plan.nbytes, stored)} the checkpoint"
    model = f"  {plan.model_type}, {count(plan.parameters)} parameters as {plan.recipe.name}"
    fewer = 1 - plan.nodes / plan.nodes_level_0
    out.say(model)
    out.print(f"  size   {size}")
    out.print(f"  nodes  {plan.nodes_level_0} -> {plan.nodes} ({fewer:.0%} fewer)")


def print_calibration(calibration: Calibration) -> None:
    """What the weights were rounded by, and what nearly no text reached."""
    tokens, samples = count(calibration.tokens), calibration.samples
    words = "1 sample" if samples == 1 else f"{samples} samples"
    out.print(f"  rounded by {words}, {tokens} tokens: {calibration.tensors} matrices")
    if calibration.scarce:
        out.say(
            f"  {len(calibration.scarce)} matrices of experts that hardly a token reached are "
            f"rounded to nearest: {calibration.scarce[0]}, ...",
            "yellow",
        )


def print_divergence(found: Divergence) -> None:
    """How far predictions are from the checkpoint's."""
    out.say(
        f"  KL {found.mean:.4f} ± {found.mean_error:.4f} from the checkpoint on "
        f"{count(found.tokens)} other tokens, first choice the same at "
        f"{found.same_first_choice:.1%}"
    )


def print_search(search: Search, parameters: int) -> None:
    """A budget's curve, some points of it."""
    made = table("divergence for bytes, predicted", "bits", "bytes", "KL")
    points = search.points
    shown = {round(index * (len(points) - 1) / _POINTS) for index in range(_POINTS + 1)}
    chosen = [points[index] for index in sorted(shown)]
    for point in sorted({*chosen, search.chosen}, key=lambda point: point.nbytes):
        mark = "  <- taken" if point == search.chosen else ""
        bits = f"{8 * point.nbytes / parameters:.2f}"
        made.add_row(bits, file_size(point.nbytes), f"{point.kl:.4f}{mark}")
    out.print(made)


def _compared(nbytes: int, stored: int) -> str:
    factor = stored / nbytes
    if f"{factor:.2f}" == "1.00":
        return "as large as"
    return f"{factor:.2f} x smaller than" if factor > 1 else f"{1 / factor:.2f} x larger than"


def print_weights(weights: Iterable[Weight]) -> None:
    """A table of the formats, largest first."""
    made = table("weights", "stored as", "weights", "numbers", "bytes")
    matrices: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    nbytes: Counter[str] = Counter()
    for weight in weights:
        matrices[weight.format] += 1
        numbers[weight.format] += math.prod(weight.shape)
        nbytes[weight.format] += weight.nbytes
    for name, size in nbytes.most_common():
        made.add_row(name, str(matrices[name]), count(numbers[name]), file_size(size))
    total = file_size(nbytes.total())
    made.add_row("all", str(matrices.total()), count(numbers.total()), total)
    out.print(made)


def print_leftovers(plan: Plan) -> None:
    """Warns of weights that the checkpoint lacks, of tensors that the model does not read, and of
    rules that match none.
    """
    lines = []
    if plan.dropped:
        lines.append(
            f"{len(plan.dropped)} weights that config.json promises are not in the checkpoint "
            "(multi-token prediction): left out"
        )
    if plan.unused:
        shown = ", ".join(plan.unused[:_SHOWN]) + (", …" if len(plan.unused) > _SHOWN else "")
        lines.append(f"{len(plan.unused)} tensors of the checkpoint are not read: {shown}")
    if plan.idle:
        shown = ", ".join(plan.idle[:_SHOWN]) + (", …" if len(plan.idle) > _SHOWN else "")
        lines.append(f"rules of the recipe that choose no format: {shown}")
    for line in lines:
        out.say(f"  {line}", "yellow")
