"""Reference log-probabilities for preference training: computed once and stored beside the data cache.

They are keyed by the cache and a fingerprint of the reference parameters. A resumed run, a second seed or another loss
on the same pairs reuses them, and a changed reference never reads outdated values.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from easylm_jax.data import Cache, open_columns, write_columns
from easylm_jax.objectives import sequence_logprobs
from easylm_jax.runtime import compiler, processes, sharding
from easylm_jax.runtime.monitor import Progress, counting
from models.model import Model
from models.trees import leaf_names

PyTree = Any
NAME = "reference"


def with_reference(
    cache: Cache, model: Model, params: PyTree, batch_rows: int, mesh: jax.sharding.Mesh, name: str = "reference"
) -> Cache:
    """The cache with the columns `reference_chosen` and `reference_rejected` added to every batch.

    `name` is shown beside the progress if they are computed.
    """
    key = f"{model.compute.dtype} {parameter_fingerprint(params)}"
    store = open_columns(cache, NAME, key)
    if store is None:
        with counting(name, cache.rows, "rows") as progress, progress.phase("reference log-probabilities"):
            columns = reference_logprobs(cache, model, params, batch_rows, mesh, progress)
        store = write_columns(cache, NAME, key, columns, facts={"model": model.config.family})
    processes.barrier("reference log-probabilities")
    return cache.with_columns(store)


def reference_logprobs(
    cache: Cache, model: Model, params: PyTree, batch_rows: int, mesh: jax.sharding.Mesh,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """The summed log-probabilities of the trained tokens of both sides of every pair, float32 [pairs]."""
    score = score_program(model, mesh)
    # Pairs that are in no row keep 0: their values are never read, but must be finite.
    columns = {
        name: np.zeros(cache.manifest["pairs"], np.float32) for name in ("reference_chosen", "reference_rejected")
    }
    for batch, local in enumerate(cache.in_order(batch_rows, sharding.local_rows(batch_rows, mesh)), start=1):
        index, *sides = jax.device_get(score(params, sharding.place_batch(local, batch_rows, mesh)))
        for column, values in zip(columns.values(), sides, strict=True):
            column[index[index >= 0]] = values[index >= 0]
        if progress is not None:
            progress.update(min(batch * batch_rows, cache.rows), {})
    return columns


def score_program(model: Model, mesh: jax.sharding.Mesh) -> Any:
    """A jitted `score(params, batch)` → pair indices and the sums of both sides, replicated on every device."""

    def score(params, batch):
        sides = sequence_logprobs(model, params, batch)
        return batch["pair_index"], sides.chosen, sides.rejected

    return compiler.scorer(score, mesh, model.compute)


def parameter_fingerprint(params: PyTree) -> str:
    """A text that changes with any bit of any parameter and does not depend on the sharding.

    The bits of each leaf are summed as integers, weighted by their position; such a sum does not depend on its order.
    """
    sums = jax.device_get(jax.jit(lambda tree: jax.tree.map(_weighted_bits, tree))(params))
    parts = (f"{name}:{int(value):08x}" for name, value in zip(leaf_names(params), jax.tree.leaves(sums), strict=True))
    return " ".join(parts)


def _weighted_bits(x: jax.Array) -> jax.Array:
    kinds = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
    bits = jax.lax.bitcast_convert_type(x, kinds[x.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * np.uint32(size % 2**32) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.sum(bits * (place * np.uint32(2654435761) | np.uint32(1)), dtype=jnp.uint32)
