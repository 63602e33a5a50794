"""Records of a source, and the error for an unusable record."""

from __future__ import annotations

from typing import Any

Record = dict[str, Any]


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
