"""Is the final number of a response the right one?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from models.errors import UserError

_NUMBER = re.compile(r"[-+]?(?:\d*\.\d+|\d+)")
_COMMA = re.compile(r"(?<=\d),(?=\d)")


def last_number(text: str) -> str | None:
    """The last number of a text as it is written, commas between digits taken out; None where there is none."""
    numbers = _NUMBER.findall(_COMMA.sub("", text))
    return numbers[-1] if numbers else None


def check_math(response: str, gold: str, style: str = "gsm8k") -> bool:
    """Whether the last number of `response` is `gold`, compared as text as Tülu 3 does (spec tulu3 §6.1, `gsm8k`).

    A response without a number is compared whole. Never raises for any response.

    Raises:
        UserError: an unknown style.
    """
    if style != "gsm8k":
        raise UserError(f"check_math: no style {style!r}; there is gsm8k")
    found = last_number(response)
    return (response.strip() if found is None else found).lower() == _COMMA.sub("", str(gold)).strip().lower()


def gsm8k(response: str, record: Mapping[str, Any]) -> float:
    """1 where the last number is the record's: `ground_truth`, or what follows #### in `answer` (the published set)."""
    gold = record.get("ground_truth")
    if gold is None:
        gold = record["answer"].rpartition("####")[2]
    return float(check_math(response, str(gold).strip(), "gsm8k"))
