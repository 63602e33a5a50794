"""From hidden states to numbers about tokens, without ever holding the vocabulary logits of a whole batch.

`token_scores` walks the sequence in chunks: each chunk's logits exist once in the forward pass and once more in the
backward pass, where they are recomputed. With OLMo 2's 100,352 rows and 8k tokens, whole logits take 3.3 GB.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp


class TokenScores(NamedTuple):
    """What the vocabulary head says about given target tokens; every field is float32 [B, S].

    `logprobs` of the targets; `logsumexp` of the logits (for z-loss); `entropy` of the distribution in nats;
    `correct` is 1 where the target has the largest logit.
    """

    logprobs: jax.Array
    logsumexp: jax.Array
    entropy: jax.Array
    correct: jax.Array


def head_logits(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
    """float32 [..., V] logits of hidden states [..., d] under a head [d, V]; product in the hidden states' type."""
    return jnp.matmul(hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)


def scalar_head(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
    """float32 [...]: one number for each hidden state [..., d] under a kernel [d, 1], computed in float32.

    A reward model reads it at the last token of a response, a value model at every token.
    """
    return jnp.matmul(hidden.astype(jnp.float32), kernel.astype(jnp.float32), precision="highest")[..., 0]


def token_scores(
    hidden: jax.Array, kernel: jax.Array, targets: jax.Array, *, chunk: int = 1024, temperature: float = 1.0
) -> TokenScores:
    """Scores of `targets` under softmax(hidden · kernel / temperature).

    Args:
        hidden: [B, S, d] in the activation type.
        kernel: [d, V], the vocabulary head; padding rows of the vocabulary take part in the softmax (spec olmo §6).
        targets: int32 [B, S]. Positions without a target may hold any valid id; mask the result.
        chunk: tokens (over all rows) whose logits may exist at once.
        temperature: divides the logits.
    """
    rows, length = targets.shape
    width = _chunk_length(rows, length, chunk)
    padding = -length % width
    if padding:  # a ragged last chunk is filled up; its scores are cut off below
        hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
        targets = jnp.pad(targets, ((0, 0), (0, padding)))
    scores = _scores(hidden, kernel, targets, width, temperature)
    return TokenScores(*(field[:, :length] for field in scores))


def _chunk_length(rows: int, length: int, chunk: int) -> int:
    """Positions a chunk: whole rows side by side, so that the batch stays split over the devices as it came."""
    return min(length, max(1, chunk // rows))


def _chunks(x: jax.Array, width: int) -> jax.Array:
    """[B, S, …] → [S / width, B, width, …], the order in which `lax.scan` walks."""
    rows, length = x.shape[:2]
    return jnp.moveaxis(x.reshape(rows, length // width, width, *x.shape[2:]), 1, 0)


def _unchunk(x: jax.Array) -> jax.Array:
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _scores(hidden, kernel, targets, width, temperature):
    return _scores_forward(hidden, kernel, targets, width, temperature)[0]


def _scores_forward(hidden, kernel, targets, width, temperature):
    def one(_, chunk):
        h, y = chunk
        logits = head_logits(h, kernel) / temperature
        largest = logits.max(axis=-1)
        exp = jnp.exp(logits - largest[..., None])
        total = exp.sum(axis=-1)
        logsumexp = largest + jnp.log(total)
        target = jnp.take_along_axis(logits, y[..., None], axis=-1)[..., 0]
        entropy = logsumexp - (exp * logits).sum(axis=-1) / total
        return None, (target - logsumexp, logsumexp, entropy, (target >= largest).astype(jnp.float32))

    _, fields = jax.lax.scan(one, None, (_chunks(hidden, width), _chunks(targets, width)))
    scores = TokenScores(*(_unchunk(field) for field in fields))
    return scores, (hidden, kernel, targets, scores.logsumexp, scores.entropy)


def _scores_backward(width, temperature, saved, cotangents):
    """d logits = g_logprob (onehot − p) + g_logsumexp p − g_entropy p (log p + H); `correct` has no gradient."""
    hidden, kernel, targets, logsumexp, entropy = saved
    fields = (hidden, targets, logsumexp, entropy, cotangents.logprobs, cotangents.logsumexp, cotangents.entropy)

    def one(d_kernel, chunk):
        h, y, lse, ent, g_logprob, g_lse, g_entropy = (x[..., None] if x.ndim == 2 else x for x in chunk)
        logp = head_logits(h, kernel) / temperature - lse
        p = jnp.exp(logp)
        hit = jax.lax.broadcasted_iota(jnp.int32, p.shape, p.ndim - 1) == y
        d_logits = p * (g_lse - g_logprob - g_entropy * (logp + ent)) + jnp.where(hit, g_logprob, 0.0)
        d_logits = (d_logits / temperature).astype(h.dtype)
        d_hidden = d_logits @ kernel.astype(h.dtype).T
        tokens = (((0, 1), (0, 1)), ((), ()))
        # Summed over chunks in float32 even where the products are 16-bit.
        d_kernel += jax.lax.dot_general(h, d_logits, tokens, preferred_element_type=jnp.float32)
        return d_kernel, d_hidden

    d_kernel, d_hidden = jax.lax.scan(
        one, jnp.zeros(kernel.shape, jnp.float32), tuple(_chunks(field, width) for field in fields)
    )
    return _unchunk(d_hidden), d_kernel.astype(kernel.dtype), None


_scores.defvjp(_scores_forward, _scores_backward)
