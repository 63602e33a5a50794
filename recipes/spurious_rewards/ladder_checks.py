"""What the small ladder reads of an answer to a problem of `recipes/arithmetic.py`: the line that it ends with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MARK = "#### "


def answer_of(response: str) -> str:
    """What stands behind the mark on the last line; "" where it is no line of an answer. Votes are counted by it."""
    last = response.strip().rpartition("\n")[2]
    return last.removeprefix(MARK).strip() if last.startswith(MARK) else ""


def answer_line(response: str, record: Mapping[str, Any]) -> float:
    """1 where the response ends with a line of an answer, right or wrong: the format reward."""
    return float(bool(answer_of(response)))
