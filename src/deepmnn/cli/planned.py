"""A plan, printed: after a conversion, instead of one, and to describe a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deepmnn.cli.console import count, file_size, out, table

if TYPE_CHECKING:
    from deepmnn.conversion.calibrate import Calibration
    from deepmnn.conversion.plan import Plan
    from deepmnn.conversion.report.facts import Search, StoredFacts
    from deepmnn.quant.divergence import Divergence

_POINTS = 8
"""Of a curve that are shown, less one."""

_SHOWN = 3
"""So many of the tensors that nothing reads are named."""


_FEW_BITS = 4
"""Of the recipe that is smaller than codes that are not kept."""


def print_plan(plan: Plan) -> None:
    """Everything that a conversion would write, and what it would leave out."""
    from deepmnn.conversion.report.stored import stored

    print_facts(plan)
    print_kinds(stored(plan.weights, plan.source))
    print_leftovers(plan)


def print_facts(plan: Plan) -> None:
    """The model, its size and its nodes."""
    from deepmnn.conversion.report.stored import as_stored, by_format

    size, stored = file_size(plan.nbytes), plan.source.nbytes()
    if stored:
        size += f", {_compared(plan.nbytes, stored)} the checkpoint"
    formats = as_stored(plan.recipe.name, by_format(plan.weights))
    model = f"  {plan.model_type}, {count(plan.parameters)} parameters as {formats}"
    fewer = 1 - plan.nodes / plan.nodes_level_0
    out.say(model)
    out.print(f"  size   {size}")
    if plan.nbytes > stored > 0 and (codes := _widened(plan)):
        out.say(
            f"  codes of {', '.join(codes)} are not kept, and rounded to more bits than they had: "
            "--quant w4 is smaller",
            "yellow",
        )
    out.print(f"  nodes  {plan.nodes_level_0} -> {plan.nodes} ({fewer:.0%} fewer)")


def _widened(plan: Plan) -> list[str]:
    """The schemes of the checkpoint whose codes are rounded again, to more than a few bits."""
    from deepmnn.conversion.report.stored import stored
    from deepmnn.formats import named
    from deepmnn.source.entry import FLOATS

    return sorted(
        {
            kind.origin
            for kind in stored(plan.weights, plan.source)
            if not kind.is_kept
            and not {"", *FLOATS} & set(kind.origin.split(", "))
            and named(kind.format).is_quantized
            and named(kind.format).bits > _FEW_BITS
        }
    )


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


def print_kinds(kinds: Sequence[StoredFacts]) -> None:
    """A table of how weights are stored, in the checkpoint and in the converted model; without
    what is not known of any.
    """
    columns: dict[str, list[str]] = {
        "stored as": [kind.format for kind in kinds],
        "checkpoint": ["kept" * kind.is_kept or kind.origin for kind in kinds],
        "weights": [str(kind.count) for kind in kinds],
        "numbers": [count(kind.numbers) for kind in kinds],
        "bytes": [file_size(kind.nbytes) for kind in kinds],
        "error": ["" if kind.error is None else f"{kind.error:.2%}" for kind in kinds],
    }
    totals = {
        "stored as": "all",
        "weights": str(sum(kind.count for kind in kinds)),
        "numbers": count(sum(kind.numbers for kind in kinds)),
        "bytes": file_size(sum(kind.nbytes for kind in kinds)),
    }
    known = {name: cells for name, cells in columns.items() if any(cells) or name in totals}
    made = table("weights", *known)
    for row in zip(*known.values(), strict=True):
        made.add_row(*row)
    made.add_row(*(totals.get(name, "") for name in known))
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
    biases = [name for name in plan.unused if name.endswith(".bias")]
    others = [name for name in plan.unused if not name.endswith(".bias")]
    if biases:
        lines.append(
            f"{len(biases)} biases of the checkpoint have no place in a {plan.model_type} model of "
            f"this config.json: left out, as transformers leaves them out: {_some(biases)}"
        )
    if others:
        lines.append(f"{len(others)} tensors of the checkpoint are not read: {_some(others)}")
    if plan.idle:
        lines.append(f"rules of the recipe that choose no format: {_some(plan.idle)}")
    for line in lines:
        out.say(f"  {line}", "yellow")


def _some(names: Sequence[str]) -> str:
    """The first ones."""
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
