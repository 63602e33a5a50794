"""Documents of maths for `recipes/olmo2/small.py`: problems of GSM8K with their solutions.

`EASYLM_DATA` is a folder with `gsm8k/{train,test}.jsonl`, `c4_sample/*.parquet` and `dolma_sample/*.jsonl`; the default
is `../shared/data`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from models.errors import UserError

DATA = os.environ.get("EASYLM_DATA", "../shared/data")
HELD_OUT = 200  # problems of the test set


def write(seed: int) -> dict[str, list[dict[str, Any]]]:
    """Training problems, and held-out ones."""
    return {"maths.jsonl": _documents("train"), "maths-test.jsonl": _documents("test")[:HELD_OUT]}


def _documents(split: str) -> list[dict[str, Any]]:
    path = Path(DATA) / "gsm8k" / f"{split}.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"data: cannot read {path}: {error.strerror}; set EASYLM_DATA to its folder") from None
    problems = [json.loads(line) for line in lines]
    return [{"text": f"{problem['question']}\n{problem['answer']}"} for problem in problems]
