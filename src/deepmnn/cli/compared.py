"""What `deepmnn compare` prints: layers as bars, what is wrong, and what that does."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from deepmnn.cli.console import out, print_json
from deepmnn.inspect.compare.comparison import Comparison
from deepmnn.inspect.compare.difference import percent
from deepmnn.inspect.compare.summary import (
    LayerSummary,
    alike,
    by_layer,
    effect_words,
    first_past,
    kind_of,
    logits_error,
    past_words,
    read_words,
)

if TYPE_CHECKING:
    from deepmnn.inspect.bisect.bisect import Bisection

_BAR = 24
"""Columns of the longest bar."""

_LEAST, _MOST = 1e-9, 1.0
"""Relative errors that bars can show."""

_MOST_FINDINGS = 20

_EIGHTHS = " ▏▎▍▌▋▊▉"


def as_json(found: Comparison | Bisection) -> None:
    """Everything that was measured; numbers that JSON lacks are "inf", "-inf" and "nan"."""
    print_json(_plain(asdict(found)), indent=2)


def print_comparison(found: Comparison, names: tuple[str, str], bound: float) -> None:
    """For people.

    Args:
        names: of the model and the reference, as they were given.
        bound: relative error from which on a value is named.
    """
    out.say(f"{names[0]}: {found.model}", "bold")
    out.say(f"against {names[1]}: {found.reference}", "bold")
    layers = by_layer(found)
    out.say(read_words(found), "dim")
    if out.is_terminal:
        out.print(_table(layers, bound))
    else:
        for layer in layers:
            out.say(_line(layer))
    past = first_past(found, bound)
    if past is None:
        out.say(f"no value is off by more than {percent(bound)}", "green")
    else:
        first, *rest = past_words(found, past)
        out.say(f"first past {percent(bound)}: {first}", "yellow")
        for words in rest:
            out.say(f"  {words}", "dim")
    _print_vanished(found)
    _print_findings(found)
    _print_predictions(found)


def _table(layers: list[LayerSummary], bound: float) -> Table:
    """The layers, each with a bar: equal ratios of errors are equally far apart."""
    low, high = _ends([layer.stream.difference.error for layer in layers])
    made = Table(box=None, header_style="dim", pad_edge=False)
    made.add_column("", no_wrap=True)
    made.add_column(f"error, {percent(low)} to {percent(high)}", no_wrap=True)
    made.add_column("", no_wrap=True, justify="right")
    made.add_column("largest of its own", no_wrap=True)
    made.add_column("", no_wrap=True, justify="right")
    effects = any(layer.effect is not None for layer in layers)
    for column in ("KL alone", "added") if effects else ():
        made.add_column(column, no_wrap=True, justify="right")
    for layer in layers:
        error, own = layer.stream.difference.error, layer.worst
        row: list[str | Text] = [layer.name, _bar(error, low, high, bound), percent(error)]
        if own is not None and own.alone is not None:
            row += [kind_of(own.name), percent(own.alone.error)]
        else:
            row += ["", ""]
        if layer.effect is not None:
            row += [f"{layer.effect.alone:.4f}", f"{layer.effect.added:+.4f}"]
        made.add_row(*row)
    return made


def _ends(errors: list[float]) -> tuple[float, float]:
    """Powers of ten around all errors that a bar can show: its empty and its full length."""
    shown = [error for error in errors if _LEAST < error < _MOST]
    if not shown:
        return _LEAST, _MOST
    return 10.0 ** math.floor(math.log10(min(shown))), 10.0 ** math.ceil(math.log10(max(shown)))


def _bar(error: float, low: float, high: float, bound: float) -> Text:
    at = min(max(error, low), high) if error == error else high  # NaN is as bad as it gets
    share = math.log(at / low) / math.log(high / low)
    whole, part = divmod(round(share * _BAR * 8), 8)
    color = "green" if error <= bound else "yellow" if error <= 10 * bound else "red"
    return Text(("█" * whole + _EIGHTHS[part]).rstrip(), color)


def _line(layer: LayerSummary) -> str:
    text = f"{layer.name}: off by {percent(layer.stream.difference.error)}"
    if layer.worst is not None and layer.worst.alone is not None:
        text += f"; of its own most in {layer.worst.name}, {percent(layer.worst.alone.error)}"
    if layer.effect is not None:
        text += f"; KL {layer.effect.alone:.4f} alone, {layer.effect.added:+.4f} added"
    return text


def _print_vanished(found: Comparison) -> None:
    if found.vanished:
        parts = (f"{len(names)} by {name}" for name, names in found.vanished.items())
        out.say(f"values that passes leave out: {', '.join(parts)}", "dim")
    if found.hidden:
        first = ", ".join(found.hidden[:3])
        more = f" and {len(found.hidden) - 3} more" if len(found.hidden) > 3 else ""
        out.say(f"values that one of the two does not tell: {first}{more}", "dim")


def _print_findings(found: Comparison) -> None:
    if not found.findings:
        out.say("nothing that rounding does not explain", "green")
        return
    count = len(found.findings)
    what = "1 difference" if count == 1 else f"{count} differences"
    out.say(f"{what} that rounding does not explain:", "bold red")
    groups = alike(found.findings)
    for each, place in groups[:_MOST_FINDINGS]:
        out.say(f"  {each.kind} {place}: {each.text}", "red")
    if len(groups) > _MOST_FINDINGS:
        out.say(f"  and {len(groups) - _MOST_FINDINGS} more: --json has all", "red")


def _print_predictions(found: Comparison) -> None:
    error = logits_error(found)
    if error is None or found.divergence is None:
        return
    out.say(f"logits off by {percent(error)}", "bold")
    out.say(
        f"KL divergence {found.divergence.mean:.3g} nats on average, "
        f"{found.divergence.percentile_99:.3g} at 99 %; "
        f"same first choice {found.divergence.same_first_choice:.1%}"
    )
    for words in effect_words(found):
        out.say(words)


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
