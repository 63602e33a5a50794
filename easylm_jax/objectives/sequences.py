"""Sums over the tokens of each response of a batch, with one response or several packed responses per row."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from easylm_jax.objectives.numeric import masked


@dataclasses.dataclass(frozen=True)
class Sequences:
    """The responses of a batch: `mask` bool [N, T], and `segment_ids` int [N, T] or None for one response per row.

    Segments are contiguous; segment 0 is padding. Values of a response are returned at each of its tokens, so the
    number of packed responses need not be known in advance.
    """

    mask: jax.Array
    segment_ids: jax.Array | None

    @classmethod
    def of(cls, mask: ArrayLike, segment_ids: ArrayLike | None = None) -> Sequences:
        return cls(jnp.asarray(mask) > 0, None if segment_ids is None else jnp.asarray(segment_ids))

    def total(self, x: jax.Array) -> jax.Array:
        """The sum of x [N, T] over the masked tokens of each token's response; [N, T]."""
        x = masked(x, self.mask)
        if self.segment_ids is None:
            return jnp.broadcast_to(x.sum(axis=1, keepdims=True), x.shape)
        return _running(x, self._first(), False) + _running(x, self._last(), True) - x

    def lengths(self) -> jax.Array:
        """The number of masked tokens of each token's response, at least 1; float32 [N, T]."""
        return jnp.maximum(self.total(self.mask.astype(jnp.float32)), 1.0)

    def mean(self, x: jax.Array) -> jax.Array:
        """The mean of x [N, T] over the masked tokens of each token's response; [N, T]."""
        return self.total(x) / self.lengths()

    def tokens(self) -> jax.Array:
        """The number of masked tokens; float32 scalar."""
        return self.mask.sum().astype(jnp.float32)

    def trained(self) -> jax.Array:
        """The number of responses with at least one masked token; float32 scalar."""
        return (self._starts() & (self.total(self.mask.astype(jnp.float32)) > 0)).sum().astype(jnp.float32)

    def number(self) -> jax.Array:
        """The number of responses, with or without masked tokens: rows, or segments without padding; float32 scalar."""
        return self._starts().sum().astype(jnp.float32)

    def _starts(self) -> jax.Array:
        if self.segment_ids is None:
            return jnp.broadcast_to(jnp.arange(self.mask.shape[1]) == 0, self.mask.shape)
        return self._first() & (self.segment_ids > 0)

    def _first(self) -> jax.Array:
        ids = self.segment_ids
        assert ids is not None
        return jnp.concatenate([jnp.ones_like(ids[:, :1], bool), ids[:, 1:] != ids[:, :-1]], axis=1)

    def _last(self) -> jax.Array:
        ids = self.segment_ids
        assert ids is not None
        return jnp.concatenate([ids[:, 1:] != ids[:, :-1], jnp.ones_like(ids[:, :1], bool)], axis=1)


def _running(x: jax.Array, restart: jax.Array, reverse: bool) -> jax.Array:
    """Cumulative sums of x [N, T] that restart at every token where `restart` is set (from the right if reversed)."""

    def join(a, b):
        (sum_a, restart_a), (sum_b, restart_b) = a, b
        return jnp.where(restart_b, sum_b, sum_a + sum_b), restart_a | restart_b

    return jax.lax.associative_scan(join, (x, restart), reverse=reverse, axis=1)[0]
