"""Small pieces that the objectives share: float types, masked sums, logarithms that do not lose their digits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

LOG_RATIO_LIMIT = 40.0  # nats; exp of it is finite in float32, and no healthy pair of policies is so far apart


def as_float(x: ArrayLike) -> jax.Array:
    """x in float32, or in float64 where it is that already. Integers and 16-bit floats never reach a loss."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def masked(x: jax.Array, mask: jax.Array) -> jax.Array:
    """x where the mask is set and 0 elsewhere, whatever stands there: a NaN in padding stays in padding."""
    return jnp.where(mask > 0, x, jnp.zeros_like(x))


def masked_sum(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Σ x over the mask; a scalar."""
    return masked(x, mask).sum()


def bounded_exp(log_ratio: jax.Array) -> jax.Array:
    """exp, of at most ±40: what overflows here would turn a whole batch's gradient into NaN."""
    return jnp.exp(jnp.clip(log_ratio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))


def log1mexp(x: jax.Array) -> jax.Array:
    """log(1 − exp(x)) for x < 0; −exp(x) would round to −1 near 0, and 1 − exp(x) to 1 far from it.

    At x = 0 (a certain event, whose odds are infinite) it answers for x = −1e-7, without a gradient.
    """
    x = jnp.minimum(x, -1e-7)
    near = x > -0.6931472
    close = jnp.log(-jnp.expm1(jnp.where(near, x, -0.5)))
    far = jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x)))
    return jnp.where(near, close, far)
