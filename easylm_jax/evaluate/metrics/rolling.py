"""How well a model predicts whole texts, from the log-probabilities of rolling requests.

    bits per byte = −Σ log₂ P / Σ UTF-8 bytes        perplexity = exp(−Σ log P / Σ tokens)

Sums are over all texts, so that a long text counts for more than a short one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from easylm_jax.evaluate.benchmark import Metric, Response, Scored
from easylm_jax.evaluate.statistics import ratio


def bits(label: object, response: Response) -> tuple[float, float]:
    """(bits, bytes) of a text."""
    return -response.logprobs[0] / math.log(2), float(response.bytes[0])


def nats(label: object, response: Response) -> tuple[float, float]:
    """(nats, tokens) of a text."""
    return -response.logprobs[0], float(response.tokens[0])


def exponential(scored: Sequence[Scored]) -> tuple[float, float]:
    """exp(Σ numerator / Σ denominator), with the standard error of the first order."""
    estimate = ratio(np.array([one.value for one in scored], np.float64))
    value = math.exp(min(estimate.value, 700.0))
    return value, value * estimate.stderr


BITS_PER_BYTE = Metric("bits_per_byte", bits, "ratio", unit="bits per byte", lower=True)
PERPLEXITY = Metric("perplexity", nats, exponential, unit="perplexity of a token", lower=True)
