"""The graph, before and after each pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from deepmnn.conversion.report import charts, pieces
from deepmnn.conversion.report.charts import Bar
from deepmnn.conversion.report.svg import escaped
from deepmnn.graph.ir import Node
from deepmnn.inspect.report.blocks import AFTER, BEFORE, Block
from deepmnn.inspect.report.kinds import KINDS, kind
from deepmnn.inspect.report.picture import picture
from deepmnn.inspect.report.subject import Subject
from deepmnn.inspect.report.trace import Change, Snapshot, Step

_MOST = 8
"""Blocks of a graph that are drawn: most models have four."""


def graph(subject: Subject) -> str:
    """How many nodes there are, and where; each pass; and pictures of both ends."""
    last = subject.steps[-1].after if subject.steps else subject.begin
    words = (
        "A box is a node, a line a value. Layers that are alike are drawn once. Point at a box to "
        "read its shapes, attributes and weights, at a line to read its value."
    )
    body = _counts(subject) + _whole("Level 0, as the model file writes it", subject.begin)
    body += "".join(_step(step) for step in subject.steps)
    if subject.steps:
        body += _whole(f"Level {subject.optimize_level}, as it runs", last)
    return pieces.section("Graph", words, body)


def _counts(subject: Subject) -> str:
    """Nodes of each kind after every pass."""
    shots = [("level 0", subject.begin), *((s.result.name, s.after) for s in subject.steps)]
    counts: dict[int, Counter[str]] = {}
    rows = []
    for name, shot in shots:
        found = counts.setdefault(
            id(shot), Counter(kind(shot.graph, node) for node in shot.graph.nodes)
        )
        bars = [Bar(k, found[k], f"{name}: {found[k]:,}, {KINDS[k]}") for k in KINDS if found[k]]
        rows.append((name, bars))
    label = "Nodes after each pass"
    drawn = charts.row_bars(rows, lambda count: f"{count:,.0f}", label, charts.WIDE)
    used = {k for found in counts.values() for k in found}
    key = pieces.key((said, k) for k, said in KINDS.items() if k in used)
    return f'<div class="wide">{pieces.card(label, drawn, "", key)}</div>{_ops(subject)}'


def _ops(subject: Subject) -> str:
    """Ops of level 0 and of the last level."""
    before, after = (shot.op_counts() for shot in (subject.begin.graph, subject.graph))
    names = sorted({*before, *after}, key=lambda op: (-after[op], -before[op], op))
    rows = [(op, *(f"{n:,}" if n else "" for n in (before[op], after[op]))) for op in names]
    total = ("all", f"{before.total():,}", f"{after.total():,}")
    columns = ("op", "level 0", f"level {subject.optimize_level}")
    table = pieces.table(columns, [*rows, total], {len(rows): "total"})
    return f"<details><summary>Nodes by op</summary>{table}</details>"


def _whole(title: str, shot: Snapshot) -> str:
    """A graph, a folded picture for each block."""
    said = f"<small>{len(shot.graph.nodes):,} nodes</small>"
    return (
        f'<details class="pass"><summary><b>{escaped(title)}</b>{said}</summary>'
        f"{_blocks(shot, shot.blocks)}</details>"
    )


def _blocks(shot: Snapshot, blocks: Sequence[Block]) -> str:
    drawn = "".join(
        f"<details><summary>{escaped(_named(block))} <small>"
        f"{_count(shot, block)}"
        f'</small></summary><div class="picture">{picture(shot, block)}</div></details>'
        for block in blocks[:_MOST]
    )
    rest = [_named(block) for block in blocks[_MOST:]]
    return drawn + (f"<p>Not drawn: {escaped(', '.join(rest[:_MOST]))}</p>" if rest else "")


def _count(shot: Snapshot, block: Block) -> str:
    count = len(shot.places[block.shown])
    each = " each" if len(block.places) > 1 else ""
    return f"{count:,} node{'' if count == 1 else 's'}{each}"


def _step(step: Step) -> str:
    """A pass: what it rewrote, and the graph after it."""
    result = step.result
    figures = (
        f"{result.rewrites:,} rewrites, {result.nodes_before:,} → {result.nodes_after:,} nodes"
        if result.rewrites
        else "nothing to do"
    )
    head = f"<summary><b>{escaped(result.name)}</b><small>{figures}</small></summary>"
    if not step.changes:
        return f'<details class="pass">{head}<p>The graph is as it was before.</p></details>'
    changes = "".join(_change(step, change) for change in step.changes[:_MOST])
    rest = [_named(change.block) for change in step.changes[_MOST:]]
    more = f"<p>Also in {escaped(', '.join(rest[:_MOST]))}</p>" if rest else ""
    changed = {place for change in step.changes for place in change.block.places}
    blocks = [block for block in step.after.blocks if block.shown in changed]
    whole = (
        "<details><summary>The whole graph after it</summary>"
        f"{_blocks(step.after, blocks)}</details>"
    )
    return f'<details class="pass">{head}{changes}{more}{whole}</details>'


def _change(step: Step, change: Change) -> str:
    block = change.block
    before = picture(step.before, block, change.before, change.gone, "gone")
    after = picture(step.after, block, change.after, change.new, "new")
    said = f"{_names(change.gone, block)} → {_names(change.new, block) or 'nothing'}"
    return (
        f"<h4>{escaped(_named(block))}</h4><p>{escaped(said)}</p>"
        f'<div class="pictures"><div><h4>before</h4><div class="picture">{before}</div></div>'
        f'<div><h4>after</h4><div class="picture">{after}</div></div></div>'
    )


def _names(nodes: Sequence[Node], block: Block) -> str:
    own = f"layers.{block.shown}."
    shown = [node.name.replace(own, "") for node in nodes[: pieces.SHOWN]]
    rest = len(nodes) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def _named(block: Block) -> str:
    """What a picture is of."""
    if len(block.places) == 1 or block.shown in (BEFORE, AFTER):
        return block.title
    return f"{block.title}, {len(block.places)} alike; drawn: layer {block.shown}"
