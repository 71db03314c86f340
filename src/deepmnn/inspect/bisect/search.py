"""The smallest set that makes a test pass, by halving."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

Works = Callable[[list[T]], bool]
"""Whether the test passes with these switched off."""


def smallest(items: Sequence[T], works: Works[T]) -> list[T] | None:
    """A set none of which can be left out, in the items' order. The test passes with all of them.

    The shortest beginning of the list that makes the test pass, beside the members known so far,
    ends with the next member: log2(len(items)) runs each. None where two members are not enough:
    what is spread over many has no small set.
    """
    members: list[T] = []
    pool = list(items)
    left = 2 * (math.ceil(math.log2(max(len(pool), 2))) + 1)
    while True:
        low, high = 0, len(pool)  # works with pool[:high], not known to with pool[:low]
        while high - low > 1 and left:
            middle, left = (low + high) // 2, left - 1
            if works([*pool[:middle], *members]):
                high = middle
            else:
                low = middle
        if high - low > 1 or not pool:
            return None
        members.insert(0, pool[high - 1])
        pool = pool[: high - 1]
        if not pool or works(members):
            return members
        left -= 1
        if left <= 0:
            return None
