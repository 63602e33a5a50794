"""Which of several continuations a model prefers, by its log-probabilities (spec olmo §16; OLMES, arXiv 2406.08446).

Each function takes the number of the right option and a `Response`; of equal scores the first option wins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from easylm_jax.evaluate.benchmark import Response


def _chosen(scores: Sequence[float], label: int) -> float:
    return float(max(range(len(scores)), key=lambda number: scores[number]) == label)


def accuracy(label: int, response: Response) -> float:
    """Whether the right option has the largest log-probability."""
    return _chosen(response.logprobs, label)


def accuracy_per_character(label: int, response: Response) -> float:
    """The same with log-probabilities divided by the characters of the continuation, the space before it included: so
    OLMES counts (OLMo's first in-loop evaluation left the space out)."""
    lengths = [max(1, len(option)) for option in response.options]
    return _chosen([logprob / length for logprob, length in zip(response.logprobs, lengths, strict=True)], label)


def accuracy_per_token(label: int, response: Response) -> float:
    """The same with log-probabilities divided by the tokens of the option."""
    return _chosen([p / max(1, n) for p, n in zip(response.logprobs, response.tokens, strict=True)], label)


def accuracy_unconditional(label: int, response: Response) -> float:
    """The same with log P(option | question) − log P(option | a context without the question) (PMI)."""
    pairs = zip(response.logprobs, response.unconditional, strict=True)
    return _chosen([given - alone for given, alone in pairs], label)


def bits_per_byte(label: int, response: Response) -> float:
    """−log₂ P of the right option over its UTF-8 bytes, the space before it included."""
    return -response.logprobs[label] / math.log(2) / len(response.options[label].encode())


def probability_of_true(label: Sequence[int], response: Response) -> float:
    """TruthfulQA's MC2: the share of the probability of all options that is on those marked 1 (arXiv 2109.07958)."""
    top = max(response.logprobs)
    weights = [math.exp(logprob - top) for logprob in response.logprobs]
    return sum(weight for weight, one in zip(weights, label, strict=True) if one) / sum(weights)
