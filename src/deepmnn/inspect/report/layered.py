"""A layered drawing of a graph: every edge goes down, few of them cross, and most are straight.

As Sugiyama, Tagawa and Toda do it ("Methods for visual understanding of hierarchical system
structures", 1981): ranks by the longest way from above; a long edge passes each rank between its
ends; ranks are ordered by the mean places of their neighbours, to and fro; and within the order
everything is put as near to its neighbours as it can be, by least squares.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

GAP = 16.0
"""Between neighbours of a rank."""

_SWEEPS, _PLACINGS = 10, 40
_STRAIGHT = 8.0
"""How much more than a box the bends of a long edge want to lie above one another."""

Edge = tuple[int, int]


@dataclass(frozen=True)
class Drawing:
    """Where everything is.

    Attributes:
        places: item → its middle across, and its rank, from 0 down.
        routes: edge → the same for each rank that it passes between its ends.
        width: of all.
        ranks: how many there are.
    """

    places: list[tuple[float, int]]
    routes: list[list[tuple[float, int]]]
    width: float
    ranks: int


@dataclass
class _Points:
    """Items, and the places where long edges pass a rank.

    above, below: point → its neighbours there. route: point → all of its long edge's, itself among
    them; none for an item.
    """

    widths: list[float]
    ranks: list[int]
    above: list[list[int]]
    below: list[list[int]]
    route: list[list[int]]

    def join(self, upper: int, lower: int) -> None:
        self.below[upper].append(lower)
        self.above[lower].append(upper)

    def add(self, rank: int) -> int:
        self.widths.append(0.0)
        self.ranks.append(rank)
        self.above.append([])
        self.below.append([])
        self.route.append([])
        return len(self.ranks) - 1


def arrange(widths: Sequence[float], edges: Sequence[Edge]) -> Drawing:
    """A drawing of items of some widths; edges (from, to) go from one item to a later one."""
    if not widths:
        return Drawing([], [[] for _ in edges], 0.0, 0)
    count = len(widths)
    ranks = _ranks(count, edges)
    points = _Points(
        list(widths), list(ranks), [[] for _ in widths], [[] for _ in widths], [[] for _ in widths]
    )
    routes = []
    for upper, lower in edges:
        route = [points.add(rank) for rank in range(ranks[upper] + 1, ranks[lower])]
        for point in route:
            points.route[point] = route
        chain = [upper, *route, lower]
        for pair in pairwise(chain):
            points.join(*pair)
        routes.append(route)
    rows: list[list[int]] = [[] for _ in range(max(ranks) + 1)]
    for point, rank in enumerate(points.ranks):
        rows[rank].append(point)
    rows = _ordered(rows, points)
    across = _placed(rows, points)
    left = min(x - width / 2 for x, width in zip(across, points.widths, strict=True))
    right = max(x + width / 2 for x, width in zip(across, points.widths, strict=True))
    at = [(x - left, rank) for x, rank in zip(across, points.ranks, strict=True)]
    return Drawing(
        at[:count], [[at[p] for p in route] for route in routes], right - left, len(rows)
    )


def _ranks(count: int, edges: Sequence[Edge]) -> list[int]:
    """One more than that of the lowest item above; what nothing is above lies near what it leads
    to.
    """
    ranks = [0] * count
    into: list[list[int]] = [[] for _ in range(count)]
    out: list[list[int]] = [[] for _ in range(count)]
    for upper, lower in edges:
        into[lower].append(upper)
        out[upper].append(lower)
    for item in range(count):
        ranks[item] = max((ranks[upper] + 1 for upper in into[item]), default=0)
    for item in range(count):
        if not into[item] and out[item]:
            ranks[item] = min(ranks[lower] for lower in out[item]) - 1
    return ranks


def _ordered(rows: list[list[int]], points: _Points) -> list[list[int]]:
    """The rows in the best order that sweeps down and up find."""
    best, fewest = [list(row) for row in rows], _crossings(rows, points)
    rows = [list(row) for row in rows]
    for sweep in range(_SWEEPS):
        if not fewest:
            break
        down = sweep % 2 == 0
        near = points.above if down else points.below
        for at in range(1, len(rows)) if down else range(len(rows) - 2, -1, -1):
            place = {point: index for index, point in enumerate(rows[at - 1 if down else at + 1])}
            own = {point: index for index, point in enumerate(rows[at])}
            rows[at].sort(
                key=lambda point: (
                    sum(place[n] for n in near[point]) / len(near[point])
                    if near[point]
                    else own[point]
                )
            )
        found = _crossings(rows, points)
        if found < fewest:
            best, fewest = [list(row) for row in rows], found
    return best


def _crossings(rows: list[list[int]], points: _Points) -> int:
    total = 0
    for upper, lower in pairwise(rows):
        place = {point: index for index, point in enumerate(lower)}
        seen: list[int] = []
        for point in upper:
            ends = sorted(place[n] for n in points.below[point])
            total += sum(len(seen) - bisect_right(seen, end) for end in ends)
            for end in ends:
                insort(seen, end)
    return total


def _placed(rows: list[list[int]], points: _Points) -> list[float]:
    """Every point's place across: by least squares near its neighbours, in the order of its row."""
    across = [0.0] * len(points.ranks)
    for row in rows:
        _settle(row, points, across, [0.0] * len(row), [1.0] * len(row))
    for sweep in range(_PLACINGS):
        down = sweep % 2 == 0
        for row in rows if down else rows[::-1]:
            wanted, weights = [], []
            for point in row:
                near = points.above[point] if down else points.below[point]
                if sweep >= _PLACINGS // 2:
                    near = points.above[point] + points.below[point]
                x, weight = _wish(point, near, points, across)
                wanted.append(x)
                weights.append(weight)
            _settle(row, points, across, wanted, weights)
    return across


def _wish(
    point: int, near: Sequence[int], points: _Points, across: Sequence[float]
) -> tuple[float, float]:
    """Where a point wants to be, and how much."""
    if not near:
        return across[point], 0.1
    middle = sum(across[n] for n in near) / len(near)
    route = points.route[point]
    if not route:
        return middle, float(len(near))
    line = sum(across[other] for other in route) / len(route)
    return (middle + _STRAIGHT * line) / (1 + _STRAIGHT), _STRAIGHT


def _settle(
    row: Sequence[int],
    points: _Points,
    across: list[float],
    wanted: Sequence[float],
    weights: Sequence[float],
) -> None:
    """Puts a row as near as it can be to where it wants to be: isotonic regression by pooling
    neighbours that are out of order, after the room that each needs has been taken away.
    """
    starts, room = [], 0.0
    for index, point in enumerate(row):
        if index:
            room += (points.widths[row[index - 1]] + points.widths[point]) / 2 + GAP
        starts.append(room)
    pools: list[tuple[float, float, int]] = []
    for start, want, weight in zip(starts, wanted, weights, strict=True):
        mean, total, size = want - start, weight, 1
        while pools and pools[-1][0] > mean:
            other, much, more = pools.pop()
            mean = (mean * total + other * much) / (total + much)
            total, size = total + much, size + more
        pools.append((mean, total, size))
    settled = [mean for mean, _, size in pools for _ in range(size)]
    for point, start, mean in zip(row, starts, settled, strict=True):
        across[point] = mean + start
