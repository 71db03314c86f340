"""The report in Markdown and JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from bench.accuracy.judged import judged
from bench.accuracy.models import OURS
from bench.accuracy.rows import Row

from deepmnn.errors import StorageError

NOTES = """\
## How to read this

- KL is the Kullback-Leibler divergence of the next token's distribution from that of the float32
  model (transformers), in nats, over every token of every piece: its mean, and what 99 % of the
  tokens stay below. Each piece starts a context of its own. All engines get the same token ids.
- "Same first" is the share of tokens with the same most likely next token. Perplexity is that of
  the text.
- MB is what the weights take on the disk, scales and the embedding's table included, other
  contents of the files not; "bits" divides that by all weights of the checkpoint. "Without
  embedding" leaves that table out.
- "Ours at no more bytes" is deepmnn's row of lowest KL among those that take no more bytes, and
  its KL divided by the peer's: below 1, deepmnn is better.
- Rows with "imatrix", AWQ or scale estimation were calibrated with one and the same text, on which
  nothing is judged."""


def cheaper(row: Row, rows: Sequence[Row]) -> Row | None:
    """Our row of the lowest KL that takes no more bytes than a peer's."""
    assert row.stored
    fitting = [
        ours
        for ours in rows
        if ours.engine == OURS
        and ours.score
        and ours.stored
        and ours.stored.nbytes <= row.stored.nbytes
    ]
    return min(fitting, key=lambda ours: ours.score.mean_kl if ours.score else 0, default=None)


def table(rows: Sequence[Row], weights: int) -> list[str]:
    """The lines, the largest model first; ours in bold. weights: their number."""
    timed = any(row.prefill for row in rows)
    titles = ["", "MB", "bits", "without embedding", "mean KL", "99 %", "same first", "perplexity"]
    titles += ["prefill", "decode"] if timed else []
    titles += ["ours at no more bytes"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    scored = [row for row in rows if row.stored and row.score]
    for row in sorted(scored, key=lambda row: -row.stored.nbytes if row.stored else 0):
        assert row.stored
        assert row.score
        cells = [
            f"**{row.name}**" if row.engine == OURS else row.name,
            f"{row.stored.nbytes / 1e6:.1f}",
            f"{8 * row.stored.nbytes / weights:.2f}",
            f"{(row.stored.nbytes - row.stored.embedding) / 1e6:.1f}",
            f"{row.score.mean_kl:.4f}",
            f"{row.score.kl_99:.3f}",
            f"{row.score.same_first:.1%}",
            f"{row.score.perplexity:.3f}",
        ]
        if timed:
            cells += [_speed(row.prefill), _speed(row.decode)]
        lines.append("| " + " | ".join([*cells, _beside(row, rows)]) + " |")
    return lines


def _speed(rounds: Sequence[float]) -> str:
    return f"{statistics.median(rounds):.0f}" if rounds else ""


def _beside(row: Row, rows: Sequence[Row]) -> str:
    if row.engine == OURS or (ours := cheaper(row, rows)) is None:
        return ""
    assert ours.score
    assert row.score
    ratio = ours.score.mean_kl / row.score.mean_kl if row.score.mean_kl else float("inf")
    return f"{ours.recipe}: {ratio:.2f} ×"


def page(
    title: str,
    facts: Mapping[str, str],
    rows: Sequence[Row],
    weights: int,
    versions: Mapping[str, str | None],
) -> str:
    """The whole report."""
    lines = [f"# {title}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {fact} |" for name, fact in facts.items()]
    lines += ["", *table(rows, weights)]
    if missing := [row for row in rows if row.missing]:
        lines += ["", "Not in the table:", ""]
        lines += [f"- {row.name}: {row.missing}" for row in missing]
    if untimed := [row for row in rows if row.untimed]:
        lines += ["", "Not timed:", "", *(f"- {row.name}: {row.untimed}" for row in untimed)]
    lines += ["", "## Engines", ""]
    for name, version in versions.items():
        lines.append(f"- {judged(name).TITLE} ({version or 'not installed'}): {judged(name).NOTE}")
    lines += ["", "## Formats", "", "|  | embedding | head | others |", "|---|---|---|---|"]
    for row in rows:
        if row.stored and row.stored.formats:
            cells = [row.stored.formats.get(part, "") for part in ("embedding", "head", "others")]
            lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + f"\n\n{NOTES}\n"


def save(path: Path, text: str) -> None:
    """Writes a file, complete or not at all. Raises StorageError."""
    partial = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}", "a file to write to") from error


def as_json(
    facts: Mapping[str, str],
    rows: Sequence[Row],
    weights: int,
    versions: Mapping[str, str | None],
) -> str:
    """Everything that the page says, in numbers."""
    fields = {
        "facts": facts,
        "weights": weights,
        "versions": versions,
        "rows": [asdict(row) for row in rows],
    }
    return json.dumps(fields, indent=1) + "\n"
