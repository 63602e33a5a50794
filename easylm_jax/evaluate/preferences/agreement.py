"""Agreement between judgements: Cohen's κ with intervals, flips, and correlations (spec m_rewardbench §5)."""

from __future__ import annotations

import collections
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from models.errors import UserError

CHOSEN, UNDECIDED, REJECTED = 2, 1, 0  # the label of an item: which side a judge prefers


def label_of(result: float) -> int:
    """The label of a result: `CHOSEN` above ½, `REJECTED` below, otherwise `UNDECIDED`."""
    return CHOSEN if result > 0.5 else REJECTED if result < 0.5 else UNDECIDED


def cohens_kappa(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """(p_o − p_e) / (1 − p_e) of two sequences of labels of the same items.

    p_o is the share of equal labels, p_e that expected from how often each gives each label. NaN where p_e is 1 (both
    give one and the same label throughout) and for no items.

    Raises:
        UserError: the sequences differ in length.
    """
    a, b = list(a), list(b)
    if len(a) != len(b):
        raise UserError(f"agreement: {len(a)} labels beside {len(b)}; give both for the same items")
    count = len(a)
    first, second = collections.Counter(a), collections.Counter(b)
    by_chance = sum(n * second[label] for label, n in first.items())  # p_e · n², exact
    if by_chance == count * count:
        return math.nan
    equal = sum(x == y for x, y in zip(a, b, strict=True))
    return (equal * count - by_chance) / (count * count - by_chance)


def kappa_interval(
    a: Sequence[int], b: Sequence[int], *, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:  # fmt: skip
    """The 95 % bootstrap interval of `cohens_kappa` over items; draws where κ is undefined are left out."""
    first, second = np.asarray(a), np.asarray(b)
    if len(first) == 0:
        return math.nan, math.nan
    labels, codes = np.unique(np.concatenate([first, second]), return_inverse=True)
    x, y = codes[: len(first)], codes[len(first) :]
    count, kinds = len(x), len(labels)
    # Items drawn with replacement fall on the cells of the table as a multinomial draw.
    cells = np.bincount(x * kinds + y, minlength=kinds * kinds) / count
    flat = np.random.default_rng(seed).multinomial(count, cells, draws)
    tables = flat.reshape(draws, kinds, kinds) / count
    observed = np.trace(tables, axis1=1, axis2=2)
    expected = (tables.sum(2) * tables.sum(1)).sum(1)
    defined = expected < 1
    if not defined.any():
        return math.nan, math.nan
    values = (observed[defined] - expected[defined]) / (1 - expected[defined])
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def flip_rate(a: Mapping[Any, int], b: Mapping[Any, int]) -> float:
    """The share of items in both whose labels differ; NaN without a common item."""
    common = [key for key in a if key in b]
    return sum(a[key] != b[key] for key in common) / len(common) if common else math.nan


def kappa_of(a: Mapping[Any, int], b: Mapping[Any, int]) -> float:
    """`cohens_kappa` over the items in both."""
    common = [key for key in a if key in b]
    return cohens_kappa([a[key] for key in common], [b[key] for key in common])


def pearson(x: Sequence[float], y: Sequence[float]) -> float:
    """Pearson's correlation; NaN for fewer than two points or where one side does not vary."""
    u, v = (np.asarray(values, np.float64) for values in (x, y))
    if len(u) != len(v):
        raise UserError(f"correlation: {len(u)} values beside {len(v)}")
    if len(u) < 2:
        return math.nan
    u, v = u - u.mean(), v - v.mean()
    size = math.sqrt(float(u @ u) * float(v @ v))
    return float(u @ v) / size if size > 0 else math.nan


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation: Pearson's of the ranks, where equal values share their mean rank."""
    return pearson(_ranks(x), _ranks(y))


def _ranks(values: Sequence[float]) -> list[float]:
    _, inverse, counts = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse].tolist()
