"""Numerical helpers of the objectives: float types, masked sums, stable exponentials and logarithms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

LOG_RATIO_LIMIT = 40.0  # nats; its exp is finite in float32, and log-ratios in healthy training are far below


def as_float(x: ArrayLike) -> jax.Array:
    """x in float32, or in float64 if it is that already, so that losses never see integers or 16-bit floats."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def masked(x: jax.Array, mask: jax.Array) -> jax.Array:
    """x where the mask is set and 0 elsewhere, even if x is NaN there."""
    return jnp.where(mask > 0, x, jnp.zeros_like(x))


def masked_sum(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Σ x over the mask; a scalar."""
    return masked(x, mask).sum()


def bounded_exp(log_ratio: jax.Array) -> jax.Array:
    """exp with its argument clipped to ±40: an overflow would turn the gradient of a whole batch into NaN."""
    return jnp.exp(jnp.clip(log_ratio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))


def log1mexp(x: jax.Array) -> jax.Array:
    """log(1 − exp(x)) for x < 0, accurate both near 0 (with expm1) and far from it (with log1p).

    At x = 0 (probability 1, infinite odds) it returns the value at x = −1e-7, without a gradient.
    """
    x = jnp.minimum(x, -1e-7)
    near = x > -0.6931472
    close = jnp.log(-jnp.expm1(jnp.where(near, x, -0.5)))
    far = jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x)))
    return jnp.where(near, close, far)
