"""The decode program: up to a block of tokens for every row, without the host in between."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from easylm_jax.decode.cache import Cache
from easylm_jax.decode.forward import Weights, step
from easylm_jax.decode.sampling import Drawn, Mode, Settings, draw, row_keys
from easylm_jax.runtime.mesh import BATCH_AXES, batch_split
from models.model import Model


class Rows(NamedTuple):
    """What the host says of each row when a block begins; int32 [B], `done` boolean.

    `token` is the last of the row and not in the cache yet, `count` how many are. `prompt` and `sample` number the
    completion for its random key; `generated` is how many of its tokens exist, `limit` how many it may have.
    """

    token: jax.Array
    count: jax.Array
    done: jax.Array
    prompt: jax.Array
    sample: jax.Array
    generated: jax.Array
    limit: jax.Array


class Block(NamedTuple):
    """What a block of steps brought: [B, block] for each of `tokens`, `logprobs` and, if asked for, the two scores.

    Only the first `emitted` [B] entries of a row count. `steps` is how many were run.
    """

    tokens: jax.Array
    logprobs: jax.Array
    logprobs_untruncated: jax.Array | None
    entropy: jax.Array | None
    emitted: jax.Array
    done: jax.Array
    steps: jax.Array


def decode_block(
    model: Model,
    mesh: jax.sharding.Mesh | None,
    block: int,
    mode: Mode,
    weights: Weights,
    cache: Cache,
    rows: Rows,
    clock: jax.Array,
    steps: jax.Array,
    stop_at: jax.Array,
    eos: jax.Array,
    seed: jax.Array,
    settings: Settings,
) -> tuple[Cache, Block]:
    """Runs `steps` steps (at most `block`), fewer once `stop_at` rows are done.

    `eos` int32 [E] ends a row; −1 matches nothing. `clock` is the first column to write. Rows that are done run along,
    and what they emit is not counted.
    """
    rows = Rows(*(split_rows(field, mesh) for field in rows))
    keys = row_keys(seed, rows.prompt, rows.sample)
    shape = (rows.token.shape[0], block)
    scores = jnp.zeros(shape, jnp.float32) if mode.scores else None
    begin = Block(
        jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32), scores, scores,
        jnp.zeros_like(rows.count), rows.done, jnp.int32(0),
    )  # fmt: skip

    def goes_on(carry):
        out = carry[0]
        return (out.steps < steps) & (out.done.sum() < stop_at)

    def one(carry):
        out, token, cache = carry
        i = out.steps
        logits, cache = step(model, weights, token, rows.count + i, clock + i, cache)
        drawn = draw(_split_to_draw(logits, mesh), keys, rows.generated + i, settings, mode, model.config.vocab_used)
        drawn = Drawn(*(split_rows(field, mesh) for field in drawn))

        def put(array, column):
            return None if array is None else jax.lax.dynamic_update_slice(array, column[:, None], (0, i))

        ended = (drawn.token[:, None] == eos).any(axis=1) | (rows.generated + i + 1 >= rows.limit)
        out = Block(
            put(out.tokens, drawn.token), put(out.logprobs, drawn.logprob),
            put(out.logprobs_untruncated, drawn.logprob_untruncated), put(out.entropy, drawn.entropy),
            out.emitted + ~out.done, out.done | ended, i + 1,
        )  # fmt: skip
        return out, drawn.token, cache

    out, _, cache = jax.lax.while_loop(goes_on, one, (begin, rows.token, cache))
    if mesh is not None:  # every process reads all rows
        out = jax.lax.with_sharding_constraint(out, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    return cache, out


def _split_to_draw(logits: jax.Array, mesh: jax.sharding.Mesh | None) -> jax.Array:
    """Logits [B, V] with rows over all devices where they divide.

    The product with the head is kept split over the vocabulary first: left to itself, the compiler gathers the head
    (800 MB at 7B) at every token where it only has to exchange the logits.
    """
    if mesh is None or mesh.shape["tp"] == 1:
        return split_rows(logits, mesh)
    spec, put = jax.sharding.PartitionSpec, jax.lax.with_sharding_constraint
    logits = put(logits, jax.sharding.NamedSharding(mesh, spec(BATCH_AXES, "tp")))
    if logits.shape[0] % (batch_split(mesh) * mesh.shape["tp"]):
        return split_rows(logits, mesh)
    return put(logits, jax.sharding.NamedSharding(mesh, spec((*BATCH_AXES, "tp"))))


def split_rows(x: jax.Array, mesh: jax.sharding.Mesh | None) -> jax.Array:
    """Rows split over the batch axes of the mesh, everything behind them whole."""
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(BATCH_AXES)))
