"""Output heads: log-probabilities and other scores of tokens, without the vocabulary logits of a whole batch in memory.

`token_scores` processes the sequence in chunks: a chunk's logits are computed in the forward pass and recomputed in
the backward pass. With OLMo 2's vocabulary of 100,352 and 8k tokens, whole logits take 3.3 GB.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from models.config import Placement
from models.layers import soft_cap


class TokenScores(NamedTuple):
    """Scores of target tokens under the vocabulary head; every field is float32 [B, S].

    `logprobs` of the targets; `logsumexp` of the logits (for z-loss); `entropy` of the distribution in nats;
    `correct` is 1 where the target has the largest logit.
    """

    logprobs: jax.Array
    logsumexp: jax.Array
    entropy: jax.Array
    correct: jax.Array


def head_logits(hidden: jax.Array, kernel: jax.Array, softcap: float | None = None) -> jax.Array:
    """float32 [..., V] logits of hidden states [..., d] under a head [d, V]; inputs in the hidden states' type.

    `softcap` bounds them (`layers.soft_cap`).
    """
    return soft_cap(jnp.matmul(hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32), softcap)


def scalar_head(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
    """float32 [...]: one scalar for each hidden state [..., d] under a kernel [d, 1], computed in float32.

    A reward model uses it at the last token of a response, a value model at every token.
    """
    return jnp.matmul(hidden.astype(jnp.float32), kernel.astype(jnp.float32), precision="highest")[..., 0]


def token_scores(
    hidden: jax.Array, kernel: jax.Array, targets: jax.Array, *, chunk: int = 1024, temperature: float = 1.0,
    placement: Placement = Placement(), softcap: float | None = None,  # noqa: B008 - frozen
) -> TokenScores:  # fmt: skip
    """Scores of `targets` under softmax(hidden · kernel / temperature).

    Args:
        hidden: [B, S, d] in the activation type.
        kernel: [d, V], the vocabulary head; padding rows of the vocabulary take part in the softmax (spec olmo §6).
        targets: int32 [B, S]. Positions without a target may hold any valid id; mask the result.
        chunk: tokens (over all rows of a device) whose logits may be in memory at once.
        temperature: divides the logits.
        placement: the mesh axes that rows, sequences and vocabulary are sharded over. Under a mesh each device scans
            its own shard; the head is gathered once and its gradient summed over devices once. The compiler alone
            would do both in every chunk.
        softcap: bounds the logits before the temperature divides them.
    """
    if placement.batch is None:
        return _local_scores(hidden, kernel, targets, chunk, temperature, softcap, None)
    rows = jax.sharding.PartitionSpec(placement.batch, placement.sequence)
    columns = jax.sharding.PartitionSpec(None, placement.tensor)
    own = functools.partial(_local_scores, chunk=chunk, temperature=temperature, softcap=softcap,
                            axis=placement.tensor)  # fmt: skip
    mapped = jax.shard_map(own, in_specs=(rows, columns, rows), out_specs=rows, check_vma=False)
    return mapped(hidden, kernel, targets)


def _local_scores(
    hidden, kernel, targets, chunk: int, temperature: float, softcap: float | None, axis: str | None
) -> TokenScores:
    """`token_scores` of one device's rows; the vocabulary is sharded over the mesh axis `axis` (None: it is not)."""
    rows, length = targets.shape
    width = _chunk_length(rows, length, chunk)
    padding = -length % width
    if padding:  # the last chunk is padded; its extra scores are cut off below
        hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
        targets = jnp.pad(targets, ((0, 0), (0, padding)))
    scores = _scores(hidden, kernel, targets, width, temperature, softcap, axis)
    return TokenScores(*(field[:, :length] for field in scores))


def _chunk_length(rows: int, length: int, chunk: int) -> int:
    """Positions per chunk. A chunk has all rows, so that the sharding of the batch does not change."""
    return min(length, max(1, chunk // rows))


def _chunks(x: jax.Array, width: int) -> jax.Array:
    """[B, S, …] → [S / width, B, width, …], as `lax.scan` reads it."""
    rows, length = x.shape[:2]
    return jnp.moveaxis(x.reshape(rows, length // width, width, *x.shape[2:]), 1, 0)


def _unchunk(x: jax.Array) -> jax.Array:
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])


def _own_targets(y: jax.Array, kernel: jax.Array, axis: str | None) -> jax.Array:
    """Target ids relative to this device's shard of the vocabulary; targets of other shards are out of its range."""
    return y if axis is None else y - jax.lax.axis_index(axis) * kernel.shape[1]


def _sum(x: jax.Array, axis: str | None) -> jax.Array:
    return x if axis is None else jax.lax.psum(x, axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def _scores(hidden, kernel, targets, width, temperature, softcap, axis):
    return _scores_forward(hidden, kernel, targets, width, temperature, softcap, axis)[0]


def _scores_forward(hidden, kernel, targets, width, temperature, softcap, axis):
    def one(_, chunk):
        h, y = chunk
        logits = head_logits(h, kernel, softcap) / temperature
        largest = logits.max(axis=-1)
        if axis is not None:
            largest = jax.lax.pmax(largest, axis)
        exp = jnp.exp(logits - largest[..., None])
        total = _sum(exp.sum(axis=-1), axis)
        logsumexp = largest + jnp.log(total)
        own = _own_targets(y, kernel, axis)
        here = jnp.take_along_axis(logits, jnp.clip(own, 0, logits.shape[-1] - 1)[..., None], axis=-1)[..., 0]
        target = here if axis is None else _sum(jnp.where((own >= 0) & (own < logits.shape[-1]), here, 0.0), axis)
        entropy = logsumexp - _sum((exp * logits).sum(axis=-1), axis) / total
        return None, (target - logsumexp, logsumexp, entropy, (target >= largest).astype(jnp.float32))

    _, fields = jax.lax.scan(one, None, (_chunks(hidden, width), _chunks(targets, width)))
    scores = TokenScores(*(_unchunk(field) for field in fields))
    return scores, (hidden, kernel, targets, scores.logsumexp, scores.entropy)


def _scores_backward(width, temperature, softcap, axis, saved, cotangents):
    """d logits = g_logprob (onehot − p) + g_logsumexp p − g_entropy p (log p + H); `correct` has no gradient.

    Of soft-capped logits z = c · tanh(u / c) the gradient is multiplied by dz / du = 1 − (z / c)².

    With a sharded vocabulary, each device holds an equal share of the cotangents (the scores are replicated), so they
    are summed over `axis` first. The gradient of `hidden` covers this device's shard of the vocabulary only;
    `shard_map` sums it over devices.
    """
    hidden, kernel, targets, logsumexp, entropy = saved
    cotangents = jax.tree.map(lambda g: _sum(g, axis), cotangents)
    fields = (hidden, targets, logsumexp, entropy, cotangents.logprobs, cotangents.logsumexp, cotangents.entropy)

    def one(d_kernel, chunk):
        h, y, lse, ent, g_logprob, g_lse, g_entropy = (x[..., None] if x.ndim == 2 else x for x in chunk)
        logits = head_logits(h, kernel, softcap)
        logp = logits / temperature - lse
        p = jnp.exp(logp)
        hit = jax.lax.broadcasted_iota(jnp.int32, p.shape, p.ndim - 1) == _own_targets(y, kernel, axis)
        d_logits = p * (g_lse - g_logprob - g_entropy * (logp + ent)) + jnp.where(hit, g_logprob, 0.0)
        if softcap is not None:
            d_logits *= 1 - (logits / softcap) ** 2
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
