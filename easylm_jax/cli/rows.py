"""Files of JSON lines with a prompt each, as `easylm check` and `easylm moderate` read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from models.errors import UserError


def prompt_rows(path: str) -> list[tuple[str, dict[str, Any]]]:
    """(location, object) of each line of a JSONL file; blank lines are skipped.

    Raises:
        UserError: the file cannot be read, or a line is no object with a text `prompt`.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    rows = []
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} line {number} is not JSON: {error}") from None
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise UserError(f"{path} line {number} is not an object with a text `prompt`")
        rows.append((f"{path} line {number}", row))
    return rows
