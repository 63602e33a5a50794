"""A record of a source, and the error for one that cannot be used."""

from __future__ import annotations

from typing import Any

Record = dict[str, Any]


class BadRecord(Exception):
    """One record that cannot be used; the message starts with where it stands (`file:line`)."""


def plain(value: Any) -> Any:
    """NumPy values and bytes, as TensorFlow hands them out, to plain Python values and text."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value
