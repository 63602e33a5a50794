"""Verifiers of the length of a response in tokens, including its end token; they do not read the text.

The trainer and `Evaluate` provide the length as `_length` in the record.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from easylm_jax.rewards.text import label_of
from models.errors import UserError


def max_length(response: str, record: Mapping[str, Any], limit: int = 32768) -> float:
    """1 − |length − label| / limit, at least 0, where the label is the target number of tokens (spec tulu3 §6.1)."""
    return _clamped(1 - abs(_length(record) - _wanted(record)) / _positive("limit", limit))


def up_to_max_length(response: str, record: Mapping[str, Any], limit: int = 32768) -> float:
    """1 up to the number of tokens of the label; beyond it as `max_length`."""
    return _clamped(1 - max(0.0, _length(record) - _wanted(record)) / _positive("limit", limit))


def overlong(response: str, record: Mapping[str, Any], limit: int, buffer: int) -> float:
    """DAPO's soft overlong penalty (arXiv 2503.14476, equation 13): 0 up to limit − buffer tokens, then linear to −1 at
    `limit`, and −1 beyond. It is added to a reward: `math + overlong(4096, 512)`."""
    if _positive("buffer", buffer) > _positive("limit", limit):
        raise UserError(f"reward: overlong({limit}, {buffer}): the buffer must be at most the limit")
    over = _length(record) - (limit - buffer)
    return -min(1.0, max(0.0, over / buffer)) if over > 0 else 0.0


def _length(record: Mapping[str, Any]) -> float:
    found = record.get("_length")
    if found is None:
        raise UserError("reward: a length verifier needs _length, which only training and Evaluate provide")
    return float(found)


def _wanted(record: Mapping[str, Any]) -> float:
    label = label_of(record)
    try:
        wanted = float(label)
    except (TypeError, ValueError, OverflowError):
        wanted = math.nan
    if not (math.isfinite(wanted) and wanted >= 0):
        raise UserError(f"reward: the label must be a number of tokens, not {str(label)[:80]!r}")
    return wanted


def _positive(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise UserError(f"reward: {name} must be a number above 0, not {value!r}")
    return value


def _clamped(score: float) -> float:
    return min(1.0, max(0.0, score))
