"""Runs a program over many rows in chunks of a fixed size, so that it is compiled once."""

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
    """Rows repeated from the first up to `size`; what they give is thrown away."""
    count = len(next(iter(rows.values())))
    if count == size:
        return rows
    take = np.arange(size) % count
    return {name: array[take] for name, array in rows.items()}


def process_rows(rows: dict[str, np.ndarray], size: int, mesh: jax.sharding.Mesh) -> dict[str, np.ndarray]:
    """The part of a global batch of `size` rows that this process provides."""
    mine = sharding.local_rows(size, mesh)
    return {name: array[mine] for name, array in rows.items()}


def in_chunks(
    function: Callable[..., Any], params: Sequence[PyTree], columns: dict[str, np.ndarray], size: int,
    mesh: jax.sharding.Mesh,
) -> Any:  # fmt: skip
    """`function(*params, batch)` over all rows, `size` at a time; the results [B, …] joined, on the host.

    The last chunk is filled up with rows that are computed for nothing, so that one program serves all.
    """
    count = len(columns["tokens"])
    parts = []
    for chunk in chunks(count, size):
        rows = pad_rows({name: array[chunk] for name, array in columns.items()}, size)
        placed = sharding.place_batch(process_rows(rows, size, mesh), size, mesh)
        parts.append(jax.device_get(function(*params, placed)))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[:count], *parts)
