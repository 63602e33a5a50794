"""Verifiers of the small ladder: they read the last line of a response to a problem of `recipes/arithmetic.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MARK = "#### "


def answer_of(response: str) -> str:
    """The final answer: the text after `MARK` on the last line; "" without it. Majority votes count these."""
    last = response.strip().rpartition("\n")[2]
    return last.removeprefix(MARK).strip() if last.startswith(MARK) else ""


def answer_line(response: str, record: Mapping[str, Any]) -> float:
    """The format reward: 1 where the response ends with an answer line, correct or not."""
    return float(bool(answer_of(response)))
