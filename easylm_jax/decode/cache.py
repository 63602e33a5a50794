"""The cache of keys and values: where it lies in memory and how rows move in it.

A layer's keys (and its values) are one array [rows, KV, columns, hd], head-major, so that attention reads each head's
keys as one run. All rows write the same column at the same step: column `clock`. A row's keys are therefore the last
`count` columns before the clock, wherever its prompt began, and one update in place serves all rows.

This order of axes also serves a TPU: columns and head size fill its tiles with no padding however many heads a device
has, and a kernel takes its operands in row-major order, so that the compiler has no other order to copy the cache into
where a loop begins and ends (`models/decode_attention.py`).

Two layouts. "listed": a list with a pair of arrays for each layer, for programs that unroll the layers. "stacked": one
pair with a leading layer axis, for programs that scan them. Both are carried through loops and donated to programs.
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
    """An empty cache. `sharding` is that of [rows, KV, columns, hd], behind a whole layer axis when stacked."""
    shape = (rows, config.kv_heads, columns, config.head_dim)
    make = functools.partial(jnp.zeros, dtype=dtype, device=sharding)
    if listed:
        return [(make(shape), make(shape)) for _ in range(config.layers)]
    return make((config.layers, *shape)), make((config.layers, *shape))


def write(pair, layer: jax.Array | None, k: jax.Array, v: jax.Array, column: jax.Array | int):
    """Puts k and v [rows, KV, n, hd] at `column`. `layer` is None where `pair` is one layer's."""

    def put(array, new):
        new = new.astype(array.dtype)
        if layer is None:
            return jax.lax.dynamic_update_slice(array, new, (0, 0, column, 0))
        return jax.lax.dynamic_update_slice(array, new[None], (layer, 0, 0, column, 0))

    return put(pair[0], k), put(pair[1], v)


def read(pair, layer: jax.Array | None, start: jax.Array | int, columns: int) -> tuple[jax.Array, jax.Array]:
    """A layer's keys and values [rows, KV, columns, hd] from column `start`; no copy where that is all of them."""

    def get(array):
        if layer is not None:
            array = jax.lax.dynamic_index_in_dim(array, layer, keepdims=False)
        return array if columns == array.shape[2] else jax.lax.dynamic_slice_in_dim(array, start, columns, axis=2)

    return get(pair[0]), get(pair[1])


def move(cache: Cache, rows: Any | None, shift: int, columns: int, sharding: jax.sharding.Sharding | None) -> Cache:
    """The cache with `shift` columns dropped at the front, `columns` in all, and only `rows` (int32, or None for all).

    Array by array, so that the old and the new cache need not both fit in memory.
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
    # Rolled rather than padded: whole runs are copied. What comes round lies behind the clock, where a column is
    # written before it is read.
    array = jnp.roll(array, -shift, axis=axis)[..., :columns, :]
    if columns > array.shape[axis]:
        bigger = jnp.zeros((*array.shape[:axis], columns, array.shape[-1]), array.dtype)
        array = jax.lax.dynamic_update_slice(bigger, array, (0,) * array.ndim)
    return array if sharding is None else jax.lax.with_sharding_constraint(array, sharding)


def insert(cache: Cache, prompts: Cache, source: Any, clock: int) -> Cache:
    """Fills rows from prefilled prompts, whose columns end where the clock stands. The old cache is used up.

    Args:
        prompts: a cache of another number of rows, of at most `clock` columns.
        source: int32 [rows]: which row of `prompts` each row takes; −1 leaves it alone.
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
