"""The repetition filter of OLMo 2 (arXiv 2501.00656, §3.1): a sequence that repeats a short unit many times."""

from __future__ import annotations

import numpy as np


def longest_run(flags: np.ndarray) -> int:
    """Length of the longest run of True in a vector."""
    breaks = np.flatnonzero(~flags)
    edges = np.concatenate([[-1], breaks, [len(flags)]])
    return int(np.diff(edges).max()) - 1


def is_repetitive(ids: np.ndarray, *, periods: range = range(1, 14), repeats: int = 32) -> bool:
    """Whether a unit of p tokens, p in `periods`, occurs at least `repeats` times in a row in `ids` [n].

    A unit that occurs r times in a row makes the sequence equal to itself shifted by p over (r - 1) p tokens.
    """
    for period in periods:
        needed = (repeats - 1) * period
        if len(ids) < needed + period:
            break
        if longest_run(ids[period:] == ids[:-period]) >= needed:
            return True
    return False
