"""Scores over several samples of a document."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from easylm_jax.evaluate.benchmark import Document, Response
from models.errors import UserError


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The unbiased estimate of the probability that one of k samples is right (arXiv 2107.03374): 1 − C(n−c, k) /
    C(n, k) for c right ones of n.

    Raises:
        UserError: k is not between 1 and n.
    """
    if not 1 <= k <= samples:
        raise UserError(f"pass@{k} needs at least {max(k, 1)} samples of each document, not {samples}; give --samples")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def pass_at(k: int, verdicts: Callable[[Document, Response], list[bool]]) -> Callable[[Document, Response], float]:
    """A metric (with `of_document`) of the verdicts on each sample."""

    def score(document: Any, response: Response) -> float:
        passed = verdicts(document, response)
        return pass_at_k(len(passed), sum(map(bool, passed)), k)

    return score
