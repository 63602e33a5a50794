"""The type of a verifier, and a checked call of one: errors name the record of the prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from models.errors import UserError

Verifier = Callable[..., float]  # (response, record, options)


def call_verifier(verifier: Verifier, response: str, record: Mapping[str, Any]) -> float:
    """The score of `verifier`, as a finite number.

    Raises:
        UserError: the record lacks a column, the verifier raises, or its result is not a finite number.
    """
    name = getattr(verifier, "__name__", str(verifier))
    where = f"record {record.get('_record')} of {record.get('_source')}"
    try:
        result = verifier(response, record)
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, KeyError) and error.args and error.args[0] not in record:
            raise UserError(
                f"reward: {name} needs the column {error}, which {where} does not have; name it in DataSpec.keep"
            ) from None
        raise UserError(f"reward: {name} failed on a response to {where}: {type(error).__name__}: {error}") from error
    try:
        value = float(result)
    except (TypeError, ValueError):
        raise UserError(f"reward: {name} gave {result!r} for {where}; a reward must be a number") from None
    if not math.isfinite(value):
        raise UserError(f"reward: {name} gave {value} for {where}; a reward must be a finite number")
    return value
