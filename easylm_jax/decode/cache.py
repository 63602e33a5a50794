"""The key-value cache: its memory layout, and how rows are inserted and moved.

The keys of a layer (and the values) are one array [rows, KV, columns, hd], head-major, so that attention reads the keys
of a head contiguously. All rows write the same column at the same step: column `clock`. The keys of a row are therefore
the last `count` columns before `clock`, wherever its prompt began, and one in-place update serves all rows.

This axis order also suits a TPU: columns and head size fill its tiles without padding for any number of heads per
device, and a kernel takes its operands in row-major order, so the compiler does not copy the cache into another layout
at the start and end of a loop (`models/decode_attention.py`).

There are two forms. "listed": a list with a pair of arrays for each layer, for programs that unroll the layers.
"stacked": one pair with a leading layer axis, for programs that scan the layers. Both are loop carries and are donated
to programs.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from models.config import DecoderConfig

Cache = Any  # listed: [(keys, values), …]; stacked: (keys, values)


def create(
    config: DecoderConfig, rows: int, columns: int, dtype: str, *, listed: bool, sharding: jax.sharding.Sharding | None
) -> Cache:
    """An empty cache. `sharding` is that of [rows, KV, columns, hd]; a stacked cache has a replicated axis in front."""
    shape = (rows, config.kv_heads, columns, config.head_dim)
    make = functools.partial(jnp.zeros, dtype=dtype, device=sharding)
    if listed:
        return [(make(shape), make(shape)) for _ in range(config.layers)]
    return make((config.layers, *shape)), make((config.layers, *shape))


def write(pair, layer: jax.Array | None, k: jax.Array, v: jax.Array, column: jax.Array | int):
    """Writes k and v [rows, KV, n, hd] at `column`. `layer` is None if `pair` belongs to a single layer."""

    def put(array, new):
        new = new.astype(array.dtype)
        if layer is None:
            return jax.lax.dynamic_update_slice(array, new, (0, 0, column, 0))
        return jax.lax.dynamic_update_slice(array, new[None], (layer, 0, 0, column, 0))

    return put(pair[0], k), put(pair[1], v)


def read(pair, layer: jax.Array | None, start: jax.Array | int, columns: int) -> tuple[jax.Array, jax.Array]:
    """The keys and values of a layer [rows, KV, columns, hd] from column `start`; no copy if that is all columns."""

    def get(array):
        if layer is not None:
            array = jax.lax.dynamic_index_in_dim(array, layer, keepdims=False)
        return array if columns == array.shape[2] else jax.lax.dynamic_slice_in_dim(array, start, columns, axis=2)

    return get(pair[0]), get(pair[1])


def move(cache: Cache, rows: Any | None, shift: int, columns: int, sharding: jax.sharding.Sharding | None) -> Cache:
    """The cache without its first `shift` columns, resized to `columns`, with only `rows` (int32; None keeps all rows).

    It is moved array by array, so the old and the new cache need not both fit in memory.
    """
    leaves, tree = jax.tree.flatten(cache)
    del cache
    for i in range(len(leaves)):
        leaves[i] = _move(leaves[i], rows, shift, columns, sharding)
    return jax.tree.unflatten(tree, leaves)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _move(array, rows, shift, columns, sharding):
    if rows is not None:
        array = jnp.take(array, rows, axis=-4)
    axis = array.ndim - 2
    # Roll instead of pad, so that contiguous blocks are copied. Columns that wrap around end up after the clock, where
    # every column is written before it is read.
    array = jnp.roll(array, -shift, axis=axis)[..., :columns, :]
    if columns > array.shape[axis]:
        bigger = jnp.zeros((*array.shape[:axis], columns, array.shape[-1]), array.dtype)
        array = jax.lax.dynamic_update_slice(bigger, array, (0,) * array.ndim)
    return array if sharding is None else jax.lax.with_sharding_constraint(array, sharding)


def insert(cache: Cache, prompts: Cache, source: Any, clock: int) -> Cache:
    """Copies prefilled prompts into rows, so that their last column is `clock` − 1. The old cache is donated.

    Args:
        cache: the cache to update.
        prompts: a cache with its own number of rows and at most `clock` columns.
        source: int32 [rows]: the row of `prompts` that each row takes; −1 keeps the row unchanged.
        clock: the next column to write.
    """
    return jax.tree.map(lambda array, new: _insert(array, new, source, clock), cache, prompts)


@functools.partial(jax.jit, donate_argnums=0)
def _insert(array, new, source, clock):
    axis = array.ndim - 2
    start = clock - new.shape[axis]
    new = jnp.take(new, jnp.maximum(source, 0), axis=-4)
    old = jax.lax.dynamic_slice_in_dim(array, start, new.shape[axis], axis=axis)
    taken = jnp.where((source >= 0)[:, None, None, None], new, old)
    return jax.lax.dynamic_update_slice_in_dim(array, taken, start, axis=axis)
