"""The compiled passes of log-likelihoods and reward scores (`decode.likelihood`): contexts and continuations."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp

from easylm_jax.decode.forward import Weights, prepare, run_layers
from easylm_jax.runtime.mesh import BATCH_AXES
from models.attention import MASKED
from models.heads import head_logits, scalar_head
from models.layers import residual_norm, soft_cap
from models.model import Model

CACHE = jax.sharding.PartitionSpec(None, BATCH_AXES, "tp")  # of [layers, rows, KV, columns, hd]


def _forward(model: Model, weights: Weights, keys, values, tokens, counts):
    """Hidden states [R · slots, n, d] of `tokens` [R · slots, n], and their own keys and values [layers, R · slots, KV,
    n, hd]. The tokens of every slot of a row follow the `counts` [R] cached tokens of the row."""
    c = model.config
    (count, length), (rows, cached) = tokens.shape, (keys.shape[1], keys.shape[3])
    slots = count // rows
    positions = counts[:, None] + jnp.arange(length, dtype=jnp.int32)  # [R, n]
    at = jnp.concatenate([jnp.broadcast_to(jnp.arange(cached, dtype=jnp.int32), (rows, cached)), positions], axis=1)
    there = jnp.concatenate([at[:, :cached] < counts[:, None], jnp.ones((rows, length), bool)], axis=1)
    age = positions[:, :, None] - at[:, None, :]
    visible = (there[:, None] & (age >= 0))[:, None]  # [R, 1, n, cached + n]
    age = age[:, None]

    def attend(q, k, v, window, carry, layer):
        k, v = (x.transpose(0, 2, 1, 3).astype(keys.dtype) for x in (k, v))  # [R · slots, KV, n, hd]
        if layer is None:  # a layer of a list, with its own part of the cache
            (past_k, past_v), carry = carry, (k, v)
        else:
            carry = tuple(jax.lax.dynamic_update_index_in_dim(kept, x, layer, 0)
                          for kept, x in zip(carry, (k, v), strict=True))  # fmt: skip
            past_k, past_v = (jax.lax.dynamic_index_in_dim(x, layer, keepdims=False) for x in (keys, values))
        # The keys of all slots of a row are one matrix, so that a layer has two products; a slot sees its own part.
        both_k, both_v = (
            jnp.concatenate([past, own.reshape(rows, slots, c.kv_heads, length, -1).transpose(0, 2, 1, 3, 4).reshape(
                rows, c.kv_heads, slots * length, -1)], axis=2)
            for past, own in ((past_k, k), (past_v, v))
        )  # fmt: skip
        grouped = (q * q.shape[-1] ** -0.5).reshape(rows, -1, length, c.kv_heads, c.heads // c.kv_heads, c.head_dim)
        scores = jnp.einsum("rsnkgd,rkcd->rkgsnc", grouped, both_k, preferred_element_type=jnp.float32)
        own = jnp.stack(
            [scores[:, :, :, i, :, cached + i * length : cached + (i + 1) * length] for i in range(slots)], axis=3
        )
        scores = soft_cap(jnp.concatenate([scores[..., :cached], own], axis=-1), c.attention_softcap)
        mask = visible if window is None else visible & (age < window)
        p = jax.nn.softmax(jnp.where(mask[:, None, None], scores, MASKED), axis=-1).astype(v.dtype)
        own = p[..., None, cached:] * jnp.eye(slots, dtype=p.dtype)[:, None, :, None]  # zero in the others' parts
        p = jnp.concatenate([p[..., :cached], own.reshape(*p.shape[:-1], slots * length)], axis=-1)
        out = jnp.einsum("rkgsnc,rkcd->rsnkgd", p, both_v)
        return out.astype(q.dtype).reshape(q.shape), carry

    shape = (c.layers, count, c.kv_heads, length, c.head_dim)
    x = model.embed(weights["embed"], tokens, model.compute.dtype)
    listed = isinstance(weights["layers"], list)
    carry: Any = (jnp.zeros(shape, keys.dtype), jnp.zeros(shape, keys.dtype))
    if listed:
        carry = list(zip(keys, values, strict=True))
    each = jnp.repeat(positions, slots, axis=0)
    x, carry, _ = run_layers(model, weights["layers"], x, model.ropes(each), attend, carry)
    hidden = cast(jax.Array, residual_norm(c).apply({"params": weights["norm"]}, x))
    return hidden, jax.tree.map(lambda *parts: jnp.stack(parts), *carry) if listed else carry


@functools.lru_cache(maxsize=16)
def row_program(mesh: jax.sharding.Mesh | None, split: int):
    """`(keys, values, row)` → those of the row with this number on each of `split` devices."""

    def take(keys, values, row):
        parts = (x.reshape(x.shape[0], split, -1, *x.shape[2:]) for x in (keys, values))
        return tuple(jax.lax.dynamic_index_in_dim(x, row, axis=2, keepdims=False) for x in parts)

    if mesh is None:
        return jax.jit(take)
    return jax.jit(take, out_shardings=jax.sharding.NamedSharding(mesh, CACHE))


@functools.lru_cache(maxsize=16)
def prepare_program(model: Any, mesh: jax.sharding.Mesh | None):
    """`params` → the weights of the passes. On a CPU the layers are a list, which spares each pass a copy of every
    kernel out of the stack; elsewhere they are scanned, which compiles faster."""
    unroll = model.platform == "cpu"
    join = unroll and (mesh is None or all(mesh.shape[axis] == 1 for axis in ("tp", "ep")))
    return jax.jit(functools.partial(prepare, model, unroll=unroll, join=join, mesh=mesh, gather=unroll))


@functools.lru_cache(maxsize=256)
def extend_program(model: Any, mesh: jax.sharding.Mesh | None, columns: int):
    """`(weights, keys, values, tokens, counts, new)` → the cache with `columns` columns that holds these tokens too,
    and the hidden state [R, d] of the last of the `new` [R] tokens of each row."""

    def extend(weights, keys, values, tokens, counts, new_counts):
        hidden, new = _forward(model, weights, keys, values, tokens, counts)

        def put(old, new):  # [layers, R, KV, columns, hd], written where each row ends
            if not old.shape[3]:
                return jnp.pad(new, ((0, 0), (0, 0), (0, 0), (0, columns - new.shape[3]), (0, 0)))
            old = jnp.pad(old, ((0, 0), (0, 0), (0, 0), (0, columns - old.shape[3]), (0, 0)))
            write = lambda row, part, start: jax.lax.dynamic_update_slice(row, part, (0, 0, start, 0))  # noqa: E731
            return jax.vmap(write, in_axes=(1, 1, 0), out_axes=1)(old, new, counts)

        last = jnp.take_along_axis(hidden, jnp.maximum(new_counts - 1, 0)[:, None, None], axis=1)[:, 0]
        return put(keys, new[0]), put(values, new[1]), last

    if mesh is None:
        return jax.jit(extend)
    cache, last = (jax.sharding.NamedSharding(mesh, spec) for spec in (CACHE, jax.sharding.PartitionSpec(BATCH_AXES)))
    return jax.jit(extend, out_shardings=(cache, cache, last))


@functools.lru_cache(maxsize=16)
def first_program(model: Any, mesh: jax.sharding.Mesh | None):
    """`(weights, last [R, d], targets [R, A])` → log-probabilities of the token after the context, and whether each
    target is the most likely one, [R, A]; of a reward model its scores of the contexts."""

    def first(weights, last, targets):
        logprobs, greedy = _target_scores(model, weights, last[:, None], targets[..., None])
        return logprobs[..., 0], greedy[..., 0]

    return _jit_replicated(first, mesh)


@functools.lru_cache(maxsize=16)
def score_program(model: Any, mesh: jax.sharding.Mesh | None):
    """`(weights, keys, values, tokens, counts, targets [R · slots, A, n])` → log-probabilities, and whether each target
    is the most likely token, [R · slots, A, n]; of a reward model its scores at the tokens."""

    def score(weights, keys, values, tokens, counts, targets):
        hidden, _ = _forward(model, weights, keys, values, tokens, counts)
        return _target_scores(model, weights, hidden, targets)

    return _jit_replicated(score, mesh)


def _target_scores(model: Any, weights: Weights, hidden: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of targets [R, A, n] after hidden states [R, n, d], and whether each is the most likely token;
    of a reward model its scores at the tokens."""
    if model.config.scalar_head:
        values = jnp.broadcast_to(scalar_head(hidden, weights["head"])[:, None], targets.shape)
        return values, jnp.ones(targets.shape, bool)
    logits = head_logits(hidden, weights["head"], model.config.logits_softcap)  # float32 [R, n, V]
    largest = logits.max(axis=-1)
    logsumexp = largest + jnp.log(jnp.exp(logits - largest[..., None]).sum(axis=-1))
    chosen = jnp.take_along_axis(logits, targets.transpose(0, 2, 1), axis=-1).transpose(0, 2, 1)
    return chosen - logsumexp[:, None], chosen >= largest[:, None]


def _jit_replicated(function: Callable, mesh: jax.sharding.Mesh | None) -> Callable:
    """Compiles a function; on a mesh every process gets all results."""
    if mesh is None:
        return jax.jit(function)
    return jax.jit(function, out_shardings=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
