"""Sampling tokens from logits with temperature, top-k and top-p, and the log-probabilities of the sampled tokens.

Nothing here sorts the vocabulary. The thresholds of top-k and top-p are found by bisection over the bit patterns of
float32 (31 passes, exact). A token is sampled by inverting the cumulative distribution in two levels, which needs two
random numbers per row instead of one for each vocabulary entry.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

# Vocabulary entries in one group of the two-level inversion; the size of one vector register on a TPU.
_GROUP = 128


class Mode(NamedTuple):
    """The sampling features of a program, fixed at compile time; their numeric values are arguments (`Settings`)."""

    greedy: bool = False
    top_k: bool = False
    top_p: bool = False
    scores: bool = False
    routing: bool = False


class Settings(NamedTuple):
    """The sampling values of one call: `temperature` and `top_p` float32 scalars, `top_k` an int32 scalar."""

    temperature: ArrayLike
    top_k: ArrayLike
    top_p: ArrayLike


class SampledTokens(NamedTuple):
    """One token per row: `token` int32 [B]; the other fields float32 [B].

    `logprob` is under the sampling distribution: softmax(logits / temperature), renormalised over the tokens that top-k
    and top-p keep; for a greedy token it is under softmax(logits). `logprob_untruncated` is under softmax(logits), and
    `entropy` is the entropy of softmax(logits) in nats; both are zero unless the mode has `scores`.
    """

    token: jax.Array
    logprob: jax.Array
    logprob_untruncated: jax.Array
    entropy: jax.Array


def row_keys(seed: jax.Array, prompt: jax.Array, sample: jax.Array) -> jax.Array:
    """A random key for each row, from the seed of the call and the prompt and sample numbers (int32 [B] each).

    The Threefry generator is named explicitly: with other generators the random numbers of a row depend on the rows
    beside it.
    """
    key = jax.random.key(seed, impl="threefry2x32")
    return jax.vmap(lambda p, s: jax.random.fold_in(jax.random.fold_in(key, p), s))(prompt, sample)


def sample_tokens(
    logits: jax.Array, keys: jax.Array, position: jax.Array, settings: Settings, mode: Mode, vocab_used: int
) -> SampledTokens:
    """Samples one token per row.

    Args:
        logits: float32 [B, V].
        keys: [B], from `row_keys`.
        position: int32 [B], the index of the token in its response, from 0.
        settings: temperature (positive; unused when greedy), top-k and top-p.
        mode: which of them apply.
        vocab_used: entries from this index on are vocabulary padding and are never sampled. Without truncation they
            still count in the softmax denominator, as in training, so that sampler and trainer log-probabilities agree.
    """
    vocab = logits.shape[-1]
    usable = None if vocab_used == vocab else jnp.arange(vocab) < vocab_used
    if mode.greedy:
        token = jnp.argmax(logits if usable is None else jnp.where(usable, logits, -jnp.inf), axis=-1)
        logprob, entropy = _score(logits, token, with_entropy=mode.scores)
        return SampledTokens(token, logprob, logprob if mode.scores else jnp.zeros_like(logprob), entropy)
    scaled = logits / settings.temperature
    largest = scaled.max(axis=-1, keepdims=True)
    p = jnp.exp(scaled - largest)
    total = p.sum(axis=-1)
    if usable is not None:
        p = jnp.where(usable, p, 0.0)
    if mode.top_k:
        p = keep_top_k(p, settings.top_k)
    if mode.top_p:
        p = keep_top_p(p, settings.top_p)
    if mode.top_k or mode.top_p:
        total = p.sum(axis=-1)
    uniforms = jax.vmap(lambda key, n: jax.random.uniform(jax.random.fold_in(key, n), (2,)))(keys, position)
    token = _invert(p, uniforms)
    logprob = _at(scaled, token) - largest[:, 0] - jnp.log(total)
    if not mode.scores:
        return SampledTokens(token, logprob, jnp.zeros_like(logprob), jnp.zeros_like(logprob))
    return SampledTokens(token, logprob, *_score(logits, token, with_entropy=True))


def keep_top_k(p: jax.Array, k: ArrayLike) -> jax.Array:
    """`p` [B, V], values in [0, 1], with all but the k largest of each row set to 0. Ties with the k-th are kept."""
    k = jnp.minimum(k, p.shape[-1]).astype(jnp.float32)
    return jnp.where(p >= _threshold(p, jnp.ones_like(p), k), p, 0.0)


def keep_top_p(p: jax.Array, share: ArrayLike) -> jax.Array:
    """`p` [B, V] with only the fewest largest values that sum to `share` of the row; ties with the last are kept."""
    return jnp.where(p >= _threshold(p, p, share * p.sum(axis=-1, keepdims=True)), p, 0.0)


def _threshold(p: jax.Array, weights: jax.Array, wanted: ArrayLike) -> jax.Array:
    """[B, 1]: the largest t such that the weights where p ≥ t sum to at least `wanted`; p in [0, 1].

    Non-negative floats have the same order as their bit patterns, so bisection over the bits ends at an exact value of
    `p`.
    """
    low = jnp.zeros((p.shape[0], 1), jnp.int32)
    high = jnp.full_like(low, 0x3F800001)  # the next float above 1, which keeps nothing

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low) // 2
        t = jax.lax.bitcast_convert_type(middle, jnp.float32)
        enough = jnp.where(p >= t, weights, 0.0).sum(axis=-1, keepdims=True) >= wanted
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low, _ = jax.lax.fori_loop(0, 31, halve, (low, high))
    return jax.lax.bitcast_convert_type(low, jnp.float32)


def _invert(p: jax.Array, uniforms: jax.Array) -> jax.Array:
    """int32 [B]: a column of `p` [B, V] sampled with probability proportional to p, from uniforms [B, 2] in [0, 1).

    First a group of columns is chosen, then a column of the group: each cumulative sum is short and so has a small
    rounding error.
    """
    groups = jnp.pad(p, ((0, 0), (0, -p.shape[-1] % _GROUP))).reshape(p.shape[0], -1, _GROUP)
    group = _invert_short(groups.sum(axis=-1), uniforms[:, 0])
    within = jnp.take_along_axis(groups, group[:, None, None], axis=1)[:, 0]
    return group * _GROUP + _invert_short(within, uniforms[:, 1])


def _invert_short(p: jax.Array, uniform: jax.Array) -> jax.Array:
    total = jnp.cumsum(p, axis=-1)
    # `p > 0`: a rounding error of the sum must not select a token of probability 0.
    hit = (total > uniform[:, None] * total[:, -1:]) & (p > 0)
    return jnp.where(hit.any(axis=-1), jnp.argmax(hit, axis=-1), jnp.argmax(p, axis=-1)).astype(jnp.int32)


def _score(logits: jax.Array, token: jax.Array, *, with_entropy: bool) -> tuple[jax.Array, jax.Array]:
    largest = logits.max(axis=-1, keepdims=True)
    exp = jnp.exp(logits - largest)
    total = exp.sum(axis=-1)
    logsumexp = largest[:, 0] + jnp.log(total)
    logprob = _at(logits, token) - logsumexp
    if not with_entropy:
        return logprob, jnp.zeros_like(logprob)
    return logprob, logsumexp - (exp * logits).sum(axis=-1) / total


def _at(values: jax.Array, token: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values, token[:, None], axis=-1)[:, 0]
