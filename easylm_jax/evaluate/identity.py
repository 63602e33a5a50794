"""What tells one model from another, so that responses are kept for the model that gave them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easylm_jax.checkpoint.load import LoadedModel
from easylm_jax.rewards.moderator import Moderator


def identity(init: str, meta: Mapping[str, Any], model: LoadedModel | Moderator) -> dict[str, Any]:
    """What tells a model from others: its name, metadata, files, tokenizer and compute type."""
    decoder = model.model if isinstance(model, Moderator) else model.decoder
    folder = Path(init.partition(":")[2])
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = [[str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    return {"model": init, "meta": json.loads(json.dumps(meta, default=str)), "files": stats,
            "tokenizer": model.tokenizer.hash, "dtype": str(decoder.compute.dtype)}  # fmt: skip
