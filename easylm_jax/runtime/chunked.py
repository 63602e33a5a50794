"""Runs a jitted function over many rows in chunks of one fixed size, so that it is compiled only once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from easylm_jax.runtime import sharding

PyTree = Any


def chunks(count: int, size: int) -> list[slice]:
    """Consecutive slices of at most `size`."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def pad_rows(rows: dict[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    """Pads a batch to `size` rows by repeating rows from the first; callers drop the padded results."""
    count = len(next(iter(rows.values())))
    if count == size:
        return rows
    take = np.arange(size) % count
    return {name: array[take] for name, array in rows.items()}


def process_rows(rows: dict[str, np.ndarray], size: int, mesh: jax.sharding.Mesh) -> dict[str, np.ndarray]:
    """The rows of a global batch of `size` rows that this process must provide."""
    mine = sharding.local_rows(size, mesh)
    return {name: array[mine] for name, array in rows.items()}


def in_chunks(
    function: Callable[..., Any], params: Sequence[PyTree], columns: dict[str, np.ndarray], size: int,
    mesh: jax.sharding.Mesh,
) -> Any:  # fmt: skip
    """`function(*params, batch)` over all rows, `size` at a time; returns the concatenated results [B, …] on the host.

    The last chunk is padded to `size` rows, so that every chunk uses the same compiled program.
    """
    count = len(columns["tokens"])
    parts = []
    for chunk in chunks(count, size):
        rows = pad_rows({name: array[chunk] for name, array in columns.items()}, size)
        placed = sharding.place_batch(process_rows(rows, size, mesh), size, mesh)
        parts.append(jax.device_get(function(*params, placed)))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[:count], *parts)
