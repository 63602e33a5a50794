"""Runs a program over many rows in chunks of a fixed size, so that it is compiled once, and places rows on a mesh."""

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
    """Rows padded to `size` by repeating rows from the first; the results of the padding are discarded."""
    count = len(next(iter(rows.values())))
    if count == size:
        return rows
    take = np.arange(size) % count
    return {name: array[take] for name, array in rows.items()}


def process_rows(rows: dict[str, np.ndarray], size: int, mesh: jax.sharding.Mesh) -> dict[str, np.ndarray]:
    """The rows of a global batch of `size` rows that this process must provide."""
    mine = sharding.local_rows(size, mesh)
    return {name: array[mine] for name, array in rows.items()}


def place_rows(rows: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """A global batch on the devices of `mesh`, from host arrays that every process holds in full."""
    size = len(next(iter(rows.values())))
    return sharding.place_batch(process_rows(rows, size, mesh), size, mesh)


def in_chunks(
    function: Callable[..., Any], params: Sequence[PyTree], columns: dict[str, np.ndarray], size: int,
    mesh: jax.sharding.Mesh,
) -> Any:  # fmt: skip
    """`function(*params, batch)` over all rows, `size` at a time; returns the concatenated results [B, …] on the host.

    The last chunk is padded to `size`, so that one program serves all chunks.
    """
    count = len(columns["tokens"])
    results = []
    for chunk in chunks(count, size):
        rows = pad_rows({name: array[chunk] for name, array in columns.items()}, size)
        results.append(jax.device_get(function(*params, place_rows(rows, mesh))))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[:count], *results)
