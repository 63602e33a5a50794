"""Records of a source, and the error for an unusable record."""

from __future__ import annotations

import json
import math
from typing import Any

Record = dict[str, Any]
DEEPEST = 64  # levels of lists and objects in a record; what reads records may go through them recursively


class BadRecord(Exception):
    """An unusable record; the message starts with its place (`file:line`)."""


def plain(value: Any) -> Any:
    """Converts NumPy values and bytes, as TensorFlow returns them, to plain Python values and text."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def parse_json(text: str) -> Any:
    """The value of JSON text.

    Raises:
        ValueError: it is not JSON, is nested more than `DEEPEST` levels deep, or has a number that a float cannot hold
            or of more digits than Python reads; the message is one line.
    """
    try:
        value = DECODER.decode(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise ValueError(f"broken JSON: {error.msg} at {where}") from None
    except RecursionError:
        raise ValueError(f"JSON nested more than {DEEPEST} levels deep") from None
    except ValueError as error:
        raise ValueError(f"broken JSON: {error}") from None
    if text.count("[") + text.count("{") > DEEPEST and is_deep(value):
        raise ValueError(f"JSON nested more than {DEEPEST} levels deep")
    return value


def is_deep(value: Any, most: int = DEEPEST) -> bool:
    """Whether lists and dicts are nested more than `most` levels deep."""
    level = [value]
    for _ in range(most + 1):
        containers = [item for item in level if isinstance(item, (list, dict))]
        if not containers:
            return False
        level = [inner for item in containers for inner in (item.values() if isinstance(item, dict) else item)]
    return True


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


DECODER = json.JSONDecoder(parse_float=_finite)  # does not read 1e999 as infinity
