"""The decode program: up to a block of tokens for every row in one device loop, without host round trips."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from easylm_jax.decode.cache import Cache
from easylm_jax.decode.forward import Weights, step
from easylm_jax.decode.sampling import Mode, SampledTokens, Settings, row_keys, sample_tokens
from easylm_jax.runtime.mesh import BATCH_AXES, batch_split
from models.model import Model

Array = Any  # NumPy on the host, JAX inside the program


class Rows(NamedTuple):
    """The state of each row at the start of a block; int32 [B], `done` boolean.

    `token` is the last token of the row, which is not in the cache yet; `count` is the number of tokens in the cache.
    `prompt` and `sample` are the numbers that determine the random key of the row. `generated` is the number of
    response tokens so far and `limit` the maximum.
    """

    token: Array
    count: Array
    done: Array
    prompt: Array
    sample: Array
    generated: Array
    limit: Array


class Block(NamedTuple):
    """The output of a block of steps: `tokens`, `logprobs` and, if requested, the two scores, each [B, block], and the
    experts of the token before each, `routing` int16 [B, block, L, k].

    Only the first `emitted` [B] entries of a row are valid. `steps` is the number of steps that were run.
    """

    tokens: jax.Array
    logprobs: jax.Array
    logprobs_untruncated: jax.Array | None
    entropy: jax.Array | None
    emitted: jax.Array
    done: jax.Array
    steps: jax.Array
    routing: jax.Array | None = None


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
    """Runs `steps` decode steps (at most `block`), and stops early once `stop_at` rows are done.

    A token of `eos` int32 [E] ends a row; −1 matches nothing. `clock` is the first column to write. Rows that are done
    are still computed, but their tokens are not counted.
    """
    rows = Rows(*(split_rows(field, mesh) for field in rows))
    keys = row_keys(seed, rows.prompt, rows.sample)
    shape = (rows.token.shape[0], block)
    scores = jnp.zeros(shape, jnp.float32) if mode.scores else None
    begin = Block(
        jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32), scores, scores,
        jnp.zeros_like(rows.count), rows.done, jnp.int32(0), _no_routing(model, shape) if mode.routing else None,
    )  # fmt: skip

    def goes_on(carry):
        out = carry[0]
        return (out.steps < steps) & (out.done.sum() < stop_at)

    def one(carry):
        out, token, cache = carry
        i = out.steps
        logits, cache, routed = step(model, weights, token, rows.count + i, clock + i, cache, mode.routing)
        logits = _split_for_sampling(logits, mesh)
        sampled = sample_tokens(logits, keys, rows.generated + i, settings, mode, model.config.vocab_used)
        sampled = SampledTokens(*(split_rows(field, mesh) for field in sampled))

        def put(array, column):
            return None if array is None else jax.lax.dynamic_update_slice(array, column[:, None], (0, i))

        ended = (sampled.token[:, None] == eos).any(axis=1) | (rows.generated + i + 1 >= rows.limit)
        out = Block(
            put(out.tokens, sampled.token), put(out.logprobs, sampled.logprob),
            put(out.logprobs_untruncated, sampled.logprob_untruncated), put(out.entropy, sampled.entropy),
            out.emitted + ~out.done, out.done | ended, i + 1,
            _put_routing(out.routing, routed, i),
        )  # fmt: skip
        return out, sampled.token, cache

    out, _, cache = jax.lax.while_loop(goes_on, one, (begin, rows.token, cache))
    if mesh is not None:  # replicated, since every process reads all rows
        out = jax.lax.with_sharding_constraint(out, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    return cache, out


def _no_routing(model: Model, shape: tuple[int, int]) -> jax.Array:
    experts = model.config.experts
    assert experts is not None, "checked by the engine"
    return jnp.full((*shape, model.config.layers, experts.active), -1, jnp.int16)


def _put_routing(routing: jax.Array | None, routed: jax.Array | None, column: jax.Array) -> jax.Array | None:
    """`routing` with the experts [B, 1, L, k] of one step in its column; None where they are not collected."""
    if routing is None or routed is None:
        return None
    return jax.lax.dynamic_update_slice(routing, routed, (0, column, 0, 0))


def _split_for_sampling(logits: jax.Array, mesh: jax.sharding.Mesh | None) -> jax.Array:
    """Logits [B, V] with their rows split over all devices, if the number of rows is divisible.

    The product with the head is first constrained to be split over the vocabulary. Otherwise the compiler gathers the
    head (800 MB at 7B) at every token, where only the logits have to be exchanged.
    """
    if mesh is None or mesh.shape["tp"] == 1:
        return split_rows(logits, mesh)
    spec, put = jax.sharding.PartitionSpec, jax.lax.with_sharding_constraint
    logits = put(logits, jax.sharding.NamedSharding(mesh, spec(BATCH_AXES, "tp")))
    if logits.shape[0] % (batch_split(mesh) * mesh.shape["tp"]):
        return split_rows(logits, mesh)
    return put(logits, jax.sharding.NamedSharding(mesh, spec((*BATCH_AXES, "tp"))))


def split_rows(x: Any, mesh: jax.sharding.Mesh | None) -> Any:
    """`x` with its rows split over the batch axes of the mesh and all other axes unsharded."""
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(BATCH_AXES)))
