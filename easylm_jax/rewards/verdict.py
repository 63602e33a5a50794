"""What a verifier is, and how one is called: what it raises or returns is told with the prompt that it was for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from models.errors import UserError

Verifier = Callable[..., float]  # (response, record, options)


def verdict(judge: Verifier, response: str, record: Mapping[str, Any]) -> float:
    """What `judge` says, as a finite number.

    Raises:
        UserError: the record lacks what the verifier reads, the verifier fails, or it gives no finite number.
    """
    name = getattr(judge, "__name__", str(judge))
    where = f"record {record.get('_record')} of {record.get('_source')}"
    try:
        given = judge(response, record)
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, KeyError) and error.args and error.args[0] not in record:
            raise UserError(
                f"reward: {name} needs the column {error}, which {where} does not have (DataSpec.keep)"
            ) from None
        raise UserError(f"reward: {name} failed on an answer to {where}: {type(error).__name__}: {error}") from error
    try:
        value = float(given)
    except (TypeError, ValueError):
        raise UserError(f"reward: {name} gave {given!r} for {where}; a reward must be a number") from None
    if not math.isfinite(value):
        raise UserError(f"reward: {name} gave {value} for {where}; a reward must be a finite number")
    return value
