"""The type of a verifier, the reason that it may give, and a checked call: errors name the record of the prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from models.errors import UserError

Verifier = Callable[..., float]  # (response, record, options)

LABELS = ("ground_truth", "answer", "solution", "label", "instruction_id_list")  # columns that hold a prompt's label
_LONGEST_REASON = 500  # characters


class Explained(float):
    """A score with the reason for it, as text; evaluations keep it with the response.

    A verifier that returns `Explained(0.0, "expected 12, found 13")` is used like one that returns 0.0.
    """

    reason: str

    def __new__(cls, score: float, reason: str) -> Explained:
        explained = super().__new__(cls, score)
        explained.reason = reason
        return explained


def reason_of(score: float) -> str:
    """The reason that a verifier gave for a score, in at most 500 characters; "" if it gave none."""
    return str(getattr(score, "reason", ""))[:_LONGEST_REASON]


def label_of(record: Mapping[str, Any]) -> Any:
    """The label of a prompt's record: the first column of `LABELS` that it has; None without any."""
    return next((record[name] for name in LABELS if record.get(name) is not None), None)


def call_verifier(verifier: Verifier, response: str, record: Mapping[str, Any]) -> float:
    """The score of `verifier`, as a finite number; with its reason (`Explained`) if it gives one.

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
    return Explained(value, reason_of(result)) if reason_of(result) else value
