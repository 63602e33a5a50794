"""Means with standard errors over prompts and training seeds, and differences taken prompt by prompt."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Z95 = 1.959964  # half the width of a 95 % interval, in standard errors


class Estimate(NamedTuple):
    """A mean and its standard error."""

    value: float
    stderr: float

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval."""
        return self.value - Z95 * self.stderr, self.value + Z95 * self.stderr


def mean(scores: np.ndarray) -> Estimate:
    """The mean of scores [seeds, prompts].

    Prompts are a sample of the task and seeds one of training runs: the variance of the mean is that of the prompts'
    means over their number and, with more than one seed, that of the seeds' means over theirs.
    """
    scores = np.atleast_2d(np.asarray(scores, np.float64))
    return Estimate(float(scores.mean()), float((_of_prompts(scores.mean(axis=0)) + _of_seeds(scores)) ** 0.5))


def difference(scores: np.ndarray, base: np.ndarray) -> Estimate:
    """How much higher scores [seeds, prompts] are than the base's on the same prompts [base seeds, prompts]."""
    scores, base = (np.atleast_2d(np.asarray(x, np.float64)) for x in (scores, base))
    apart = scores.mean(axis=0) - base.mean(axis=0)
    variance = _of_prompts(apart) + _of_seeds(scores) + _of_seeds(base)
    return Estimate(float(apart.mean()), float(variance**0.5))


def _of_prompts(values: np.ndarray) -> float:
    return float(values.var(ddof=1) / len(values)) if len(values) > 1 else 0.0


def _of_seeds(scores: np.ndarray) -> float:
    return float(scores.mean(axis=1).var(ddof=1) / len(scores)) if len(scores) > 1 else 0.0
