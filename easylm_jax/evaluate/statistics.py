"""Means with standard errors over prompts and training seeds, and paired differences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

Z95 = 1.959964  # half-width of a 95 % confidence interval, in standard errors


class Estimate(NamedTuple):
    """A mean and its standard error."""

    value: float
    stderr: float

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval."""
        return self.value - Z95 * self.stderr, self.value + Z95 * self.stderr


def mean(scores: np.ndarray) -> Estimate:
    """The mean of scores [seeds, prompts].

    Prompts are a sample of the task and seeds a sample of training runs: the variance of the mean is the variance of
    the prompt means divided by the number of prompts plus, with more than one seed, the variance of the seed means
    divided by the number of seeds.
    """
    scores = np.atleast_2d(np.asarray(scores, np.float64))
    variance = _prompt_variance(scores.mean(axis=0)) + _seed_variance(scores)
    return Estimate(float(scores.mean()), float(variance**0.5))


def difference(scores: np.ndarray, base: np.ndarray) -> Estimate:
    """The mean difference of scores [seeds, prompts] from a baseline on the same prompts [baseline seeds, prompts]."""
    scores, base = (np.atleast_2d(np.asarray(x, np.float64)) for x in (scores, base))
    gains = scores.mean(axis=0) - base.mean(axis=0)
    variance = _prompt_variance(gains) + _seed_variance(scores) + _seed_variance(base)
    return Estimate(float(gains.mean()), float(variance**0.5))


def weighted(terms: Iterable[tuple[Estimate, float]]) -> Estimate:
    """Σ weight · estimate of independent estimates."""
    scaled = [(one.value * weight, one.stderr * weight) for one, weight in terms]
    return Estimate(sum(value for value, _ in scaled), sum(stderr**2 for _, stderr in scaled) ** 0.5)


def share_interval(count: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), which stays within 0 and 1 and is never empty."""
    share, z = count / total, Z95**2 / total
    half = Z95 * (share * (1 - share) / total + z / (4 * total)) ** 0.5
    return (share + z / 2 - half) / (1 + z), (share + z / 2 + half) / (1 + z)


def _prompt_variance(values: np.ndarray) -> float:
    """The variance of the mean of values [prompts]."""
    return float(values.var(ddof=1) / len(values)) if len(values) > 1 else 0.0


def _seed_variance(scores: np.ndarray) -> float:
    """The variance of the mean of scores [seeds, prompts] due to seeds; 0 with a single seed."""
    return float(scores.mean(axis=1).var(ddof=1) / len(scores)) if len(scores) > 1 else 0.0


def grouped_mean(values: np.ndarray, groups: Sequence[str]) -> Estimate:
    """The mean of the groups' means (macro average) of values [documents], each with its group."""
    parts = [values[[other == group for other in groups]] for group in dict.fromkeys(groups)]
    variance = sum(_prompt_variance(part) for part in parts) / len(parts) ** 2
    return Estimate(float(np.mean([part.mean() for part in parts])), float(variance**0.5))


def ratio(pairs: np.ndarray) -> Estimate:
    """Σ numerator / Σ denominator of pairs [documents, 2]; the standard error is that of the linearised ratio."""
    top, bottom = pairs.sum(axis=0)
    value = top / bottom
    rest = pairs[:, 0] - value * pairs[:, 1]
    count = len(pairs)
    stderr = (count / (count - 1) * (rest**2).sum()) ** 0.5 / abs(bottom) if count > 1 else 0.0
    return Estimate(float(value), float(stderr))
