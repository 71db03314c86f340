"""Searches texts with regular expressions of a user's file, in a process of its own.

Python's `re` backtracks, and cannot be stopped: `(a+)+$` takes 2^n steps for n letters. The process
that `match.py` starts for it has limits.
"""

from __future__ import annotations

import re
import warnings


def search(request: list[str]) -> bool | str:
    """Whether request = [pattern, text] matches somewhere; why not, for what is no pattern."""
    pattern, text = request
    try:
        with warnings.catch_warnings(action="ignore"):
            return re.search(pattern, text) is not None
    except (re.error, OverflowError, RecursionError) as error:
        return str(error) or type(error).__name__
