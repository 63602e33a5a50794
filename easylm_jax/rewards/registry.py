"""Verifiers by name, and how one is called: what it raises or returns is told with the prompt that it was for."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any

from easylm_jax.rewards import maths
from models.errors import UserError

Verifier = Callable[[str, Mapping[str, Any]], float]

VERIFIERS: dict[str, Verifier] = {"gsm8k": maths.gsm8k}


def verifier(name: str) -> Verifier:
    """The verifier called `name`, or a function given as `module:function`. An unknown one is an error at once."""
    if name in VERIFIERS:
        return VERIFIERS[name]
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError):
        known = ", ".join(sorted(VERIFIERS))
        raise UserError(f"reward: no verifier {name!r}; there are {known}, or write module:function") from None


def verdict(judge: Verifier, response: str, record: Mapping[str, Any]) -> float:
    """What `judge` says, as a finite number.

    Raises:
        UserError: the record lacks what the verifier reads, or the verdict is not a finite number.
    """
    name = getattr(judge, "__name__", str(judge))
    where = f"record {record.get('_record')} of {record.get('_source')}"
    try:
        value = float(judge(response, record))
    except KeyError as error:
        raise UserError(
            f"reward: {name} needs the column {error}, which {where} does not have (DataSpec.keep)"
        ) from None
    if not math.isfinite(value):
        raise UserError(f"reward: {name} gave {value} for {where}; a reward must be a finite number")
    return value
