"""Packed preference batches: reduces per-token columns to one value for each side of each pair.

Pair p of a row has its chosen side in segment 2p + 1 and its rejected side in segment 2p + 2; `pair_index` [rows, P]
is −1 if the row has no pair p.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from easylm_jax.objectives.base import Batch, Sums
from easylm_jax.objectives.numeric import masked_sum


def valid_pairs(batch: Batch) -> jax.Array:
    """bool [rows, P]: whether the row has the pair."""
    return batch["pair_index"] >= 0


def sum_sides(x: jax.Array, segment_ids: jax.Array, pairs: int) -> tuple[jax.Array, jax.Array]:
    """Sums of x [rows, S] over the segments of the chosen and of the rejected sides, each [rows, P].

    It compares with every segment id and sums over the row instead of a scatter: the order of additions is then the
    same on every platform, and rows do not move between devices.
    """
    ids = jnp.arange(1, 2 * pairs + 1, dtype=segment_ids.dtype)
    sums = jnp.where(segment_ids[:, :, None] == ids, x[:, :, None], 0.0).sum(axis=1)
    return sums[:, 0::2], sums[:, 1::2]


def last_of_sides(x: jax.Array, segment_ids: jax.Array, pairs: int) -> tuple[jax.Array, jax.Array]:
    """x [rows, S] at the last token of the chosen and of the rejected sides, each [rows, P]; 0 if there is no pair."""
    after = jnp.concatenate([segment_ids[:, 1:], jnp.zeros_like(segment_ids[:, :1])], axis=1)
    return sum_sides(jnp.where(after != segment_ids, x, 0.0), segment_ids, pairs)


def pair_sums(values: Mapping[str, jax.Array], valid: jax.Array) -> Sums:
    """Metrics of pairs [rows, P] as (sum, count) over the valid pairs, without gradients."""
    count = valid.sum().astype(jnp.float32)
    return {name: (jax.lax.stop_gradient(masked_sum(x, valid)), count) for name, x in values.items()}


def batch_counts(batch: Batch) -> Sums:
    """Totals of a batch: `pairs`, `trained_tokens` of both sides, and `tokens` without padding."""
    totals = {
        "pairs": valid_pairs(batch).sum(),
        "trained_tokens": (batch["loss_weights"] > 0).sum(),
        "tokens": (batch["segment_ids"] > 0).sum(),
    }
    return {name: (x.astype(jnp.float32), jnp.zeros((), jnp.float32)) for name, x in totals.items()}
