"""A session: rows of the engine that keep their keys and values, so that a longer prompt is not computed again.

A dialogue's prompt grows turn by turn. Each slot of a session remembers the tokens whose keys and values it holds; of
the next prompt in that slot only what follows the common beginning is computed. A prompt with another beginning (a turn
that is sampled again, another dialogue) keeps as much as is common.

    session = Session(engine, params, slots=64)
    replies = session.generate({0: [1, 7, 9]}, numbers={0: 0}, max_new_tokens=32, ...)
    replies = session.generate({0: [1, 7, 9, *replies[0].tokens, 12, 13]}, ...)

The tokens are those that `Engine.generate` samples for the same prompts and numbers, up to the rounding of other batch
shapes. Memory: keys and values of every slot at the length of the longest.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from easylm_jax.decode import cache as kv
from easylm_jax.decode import loop
from easylm_jax.decode.engine import Cancelled, Engine
from easylm_jax.decode.forward import run_layers
from easylm_jax.decode.request import Detokenize, Prompt, Request, cut_at_stop
from easylm_jax.decode.sampling import Mode, Settings
from models.attention import MASKED
from models.layers import soft_cap
from models.model import Params

_MOST_SCORES = 1 << 26  # attention scores of a layer that are in memory at a time
_CHUNK = 8  # queries at a time beyond that; divides every bucket


class Reply(NamedTuple):
    """A response: its tokens with their log-probabilities under the sampling distribution, and whether an end token or
    a stop string ended it. An end token is the last of the tokens."""

    tokens: list[int]
    logprobs: list[float]
    ended: bool


class Session:
    """Rows of an engine that remember their prompts.

    Args:
        engine: runs the model.
        params: of the model.
        slots: rows; rounded up to a multiple of the batch axes of the mesh.
    """

    def __init__(self, engine: Engine, params: Params, slots: int):
        self.engine = engine
        self.slots = -(-slots // engine.split) * engine.split
        self.computed = 0  # tokens of prompts that were computed, for measuring what is saved
        self._held: list[list[int]] = [[] for _ in range(self.slots)]  # tokens in the cache, by slot
        self._end = np.zeros(self.slots, np.int32)  # column after the last of them
        self._clock = self._columns = 0
        self._cache: Any = None
        with self.mesh():
            self._weights = engine._prepare(params)
        self._extend = jax.jit(functools.partial(_extend, engine), donate_argnums=1)

    def generate(
        self, prompts: Mapping[int, Sequence[int]], *, numbers: Mapping[int, int], max_new_tokens: int,
        temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None, eos_ids: Sequence[int] = (),
        stop_strings: Sequence[str] = (), seed: int = 0, detokenize: Detokenize | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> dict[int, Reply]:  # fmt: skip
        """The response to the prompt of each slot; other slots stay as they are.

        Arguments are those of `Engine.generate`, by slot; `numbers` with `seed` choose the random numbers.

        Raises:
            UserError: as `Engine.generate`.
        """
        order = sorted(prompts)
        request = Request(
            prompts=tuple(Prompt(tuple(int(t) for t in prompts[slot])) for slot in order),
            numbers=tuple(int(numbers[slot]) for slot in order), max_new_tokens=int(max_new_tokens),
            temperature=float(temperature), top_k=top_k, top_p=top_p, eos_ids=tuple(int(i) for i in eos_ids),
            stop_strings=tuple(stop_strings), detokenize=detokenize, samples=1, seed=seed, scores=False,
        )  # fmt: skip
        request.check(self.engine.model.config, self.engine.max_length)
        if not order:
            return {}
        with self.mesh():
            self.take({slot: list(prompt.tokens) for slot, prompt in zip(order, request.prompts, strict=True)})
            return self._decode(order, request, cancelled)

    def reset(self) -> None:
        """Drops what all slots hold, with the cache."""
        self._held, self._cache, self._clock = [[] for _ in range(self.slots)], None, 0
        self._end[:] = 0

    def new_state(self) -> dict[str, np.ndarray]:
        """The numbers of `loop.Rows` that change with every block, int32 by slot."""
        return {name: np.zeros(self.slots, np.int32) for name in ("token", "count", "prompt", "sample", "generated")}

    def forget(self, slot: int) -> None:
        """Drops what a slot holds; a prompt of another dialogue would keep only what is common anyway."""
        self._held[slot] = []

    def mesh(self) -> Any:
        """The engine's mesh as context, in which everything here runs."""
        return contextlib.nullcontext() if self.engine.mesh is None else jax.set_mesh(self.engine.mesh)

    def take(self, prompts: Mapping[int, list[int]]) -> None:
        """Makes each slot hold its prompt but the last token, which the decode program reads."""
        keep = np.array([len(held) for held in self._held], np.int32)
        start = self._end - keep
        new: dict[int, list[int]] = {}
        for slot, tokens in prompts.items():
            common = _common(self._held[slot], tokens[:-1])
            keep[slot], new[slot] = common, tokens[common:-1]
            self._held[slot] = tokens[:-1]
            self.computed += len(tokens) - 1 - common
        fresh = {slot: ids for slot, ids in new.items() if keep[slot] == 0}
        short = [len(ids) for slot, ids in new.items() if slot not in fresh]
        # Whole prompts would make the extension of all rows as long as they are, so they are computed on their own.
        apart = fresh if short and fresh and max(map(len, fresh.values())) > max(short) else {}
        width = self.engine.bucket(max((len(ids) for slot, ids in new.items() if slot not in apart), default=0))
        self._clock = max(width, *(len(held) for held in self._held),
                          *(self.engine.bucket(len(ids)) for ids in apart.values()))  # fmt: skip
        self._columns = self.engine.bucket(self._clock + self.engine.block)
        ids_in = np.zeros((self.slots, width), np.int32)
        lengths = np.zeros(self.slots, np.int32)
        for slot, ids in new.items():
            if slot not in apart:
                lengths[slot] = len(ids)
                ids_in[slot, width - len(ids) :] = ids
        self._repack(start, self._clock - lengths - keep, keep)
        if lengths.any():
            self._cache = self._extend(self._weights, self._cache, ids_in, lengths, keep, np.int32(self._clock))
        self._end[:] = self._clock
        if apart:
            self._insert(apart)

    def _repack(self, start: np.ndarray, begin: np.ndarray, keep: np.ndarray) -> None:
        """Moves the columns of each slot from `start` to `begin`, array by array; `keep` of them count."""
        if self._cache is None:
            self._cache = self.engine.new_cache(self.slots, self._columns)
            return
        sharding = self.engine.sharding(layer_axis=not self.engine.unroll)
        leaves, tree = jax.tree.flatten(self._cache)
        self._cache = None  # drops the other reference, so that arrays are freed as they are moved
        for i in range(len(leaves)):
            leaves[i] = _moved(leaves[i], start, begin, keep, self._columns, sharding)
        self._cache = jax.tree.unflatten(tree, leaves)

    def _insert(self, apart: Mapping[int, list[int]]) -> None:
        """Computes whole prompts together, in batches of few sizes, and copies them into their slots."""
        bucket = self.engine.bucket(max(map(len, apart.values())))
        rows = 4
        while rows < len(apart):
            rows *= 2
        rows = -(-rows // self.engine.split) * self.engine.split
        tokens, lengths = np.zeros((rows, bucket), np.int32), np.zeros(rows, np.int32)
        source = np.full(self.slots, -1, np.int32)
        for row, (slot, ids) in enumerate(apart.items()):
            lengths[row], source[slot] = len(ids), row
            tokens[row, bucket - len(ids) :] = ids
        made, _ = self.engine._prefill(self._weights, tokens, lengths)
        self._cache = kv.insert(self._cache, made, source, self._clock)

    def _decode(self, order: Sequence[int], request: Request, cancelled: Callable[[], bool] | None) -> dict[int, Reply]:
        """Samples the responses, block by block."""
        greedy = request.temperature == 0
        mode = Mode(greedy, not greedy and request.top_k is not None, not greedy and request.top_p is not None, False)
        settings = Settings(
            np.float32(request.temperature), np.int32(request.top_k or 0), np.float32(request.top_p or 0)
        )
        eos = np.array(request.eos_ids or (-1,), np.int32)
        state = self.new_state()
        state["count"][:] = [len(held) for held in self._held]
        for slot, prompt, number in zip(order, request.prompts, request.numbers, strict=True):
            state["token"][slot], state["prompt"][slot] = prompt.tokens[-1], number
        replies = {slot: Reply([], [], False) for slot in order}
        active = set(order)
        while active:
            if cancelled is not None and cancelled():
                raise Cancelled
            limit = np.full(self.slots, request.max_new_tokens, np.int32)
            out = self.block(mode, settings, state, limit, active, eos, request.seed)
            for slot in sorted(active):
                if self._collect(slot, out, replies, request):
                    active.discard(slot)
        return replies

    def block(
        self, mode: Mode, settings: Settings, state: dict[str, np.ndarray], limit: np.ndarray, active: set[int],
        eos: np.ndarray, seed: int, stop_at: int | None = None,
    ) -> loop.Block:  # fmt: skip
        """Decodes a block of tokens for the active slots; `state` and `limit` are those of `loop.Rows`, by slot.

        It ends early once `stop_at` of them are done; None: all.
        """
        idle = np.array([slot not in active for slot in range(self.slots)])
        steps = min(self.engine.block, int((limit - state["generated"])[~idle].max()))
        self._grow(self._clock + steps)
        rows = loop.Rows(done=idle, limit=limit, **state)
        done = self.slots if stop_at is None else min(self.slots, int(idle.sum()) + stop_at)
        self._cache, out = self.engine._decode(
            mode, self._weights, self._cache, rows, np.int32(self._clock), np.int32(steps), np.int32(done), eos,
            np.uint32(seed), settings,
        )  # fmt: skip
        out = jax.device_get(out)
        for slot in active:  # the other slots get columns of no meaning behind their end
            emitted = int(out.emitted[slot])
            self._end[slot] = self._clock + emitted
            # The token that is read at a step is in the cache after it: all but the last that was sampled.
            self._held[slot] += [int(state["token"][slot]), *out.tokens[slot, : emitted - 1].tolist()]
            state["token"][slot] = out.tokens[slot, emitted - 1]
            state["generated"][slot] += emitted
            state["count"][slot] += emitted
        self._clock += int(out.steps)
        return out

    def _collect(self, slot: int, out: Any, replies: dict[int, Reply], request: Request) -> bool:
        """Appends the new tokens of a slot to its reply; returns whether it is finished."""
        new = int(out.emitted[slot])
        tokens = replies[slot].tokens + out.tokens[slot, :new].tolist()
        logprobs = replies[slot].logprobs + out.logprobs[slot, :new].tolist()
        done, cut = bool(out.done[slot]), None
        if request.stop_strings:
            assert request.detokenize is not None  # checked by `Request.check`
            cut = cut_at_stop(tokens, len(replies[slot].tokens), request.stop_strings, request.detokenize)
        ended = cut is not None or (done and tokens[-1] in request.eos_ids)
        replies[slot] = Reply(tokens[:cut], logprobs[:cut], ended)
        return done or cut is not None

    def _grow(self, columns: int) -> None:
        if columns > self._columns:
            self._columns = self.engine.bucket(columns)
            cache, self._cache = self._cache, None
            sharding = self.engine.sharding(layer_axis=not self.engine.unroll)
            self._cache = kv.move(cache, None, 0, self._columns, sharding)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the common beginning."""
    for i, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return i
    return min(len(a), len(b))


@functools.partial(jax.jit, static_argnums=(4, 5))
def _moved(array, start, begin, keep, columns: int, sharding):
    """`array` [(layers,) rows, KV, C, hd] with `columns` columns; `keep` of each row from `start` on are at `begin`."""
    offset = jnp.arange(columns)[None] - begin[:, None]
    source = jnp.where((offset >= 0) & (offset < keep[:, None]), start[:, None] + offset, 0)
    axis = array.ndim - 4
    array = jax.vmap(lambda row, at: jnp.take(row, at, axis=-2), in_axes=(axis, 0), out_axes=axis)(array, source)
    return array if sharding is None else jax.lax.with_sharding_constraint(array, sharding)


def _extend(engine: Engine, weights, cache, tokens, lengths, keep, clock):
    """The cache with the keys and values of more tokens of each row.

    Args:
        engine: its model is run.
        weights: as `forward.prepare` returns them.
        cache: in which the `keep` tokens of a row end where its new ones begin.
        tokens: int32 [R, P], the new tokens, which end at column `clock`; padded on the left.
        lengths: int32 [R], how many of them count.
        keep: int32 [R], tokens of each row in the cache.
        clock: int32 scalar, the column after the new tokens.
    """
    model = engine.model
    tokens, lengths, keep = (loop.split_rows(array, engine.mesh) for array in (tokens, lengths, keep))
    width = tokens.shape[1]
    index = jnp.arange(width, dtype=jnp.int32)[None] - (width - lengths[:, None])  # among the new tokens
    positions = jnp.maximum(index, 0) + keep[:, None]
    attend = functools.partial(_attend, index >= 0, positions, clock, model.config.attention_softcap)
    x = model.embed(weights["embed"], tokens, model.compute.dtype)
    return run_layers(model, weights["layers"], x, model.ropes(positions), attend, cache)[1]


def _attend(real, positions, clock, softcap, q, k, v, window, part, layer):
    """Attention of the new tokens, q [R, P, H, hd], over the cached keys of their row and each other."""
    width = q.shape[1]
    part = tuple(
        _write_real(array, layer, new.transpose(0, 2, 1, 3), clock - width, real)
        for array, new in zip(part, (k, v), strict=True)
    )
    keys, values = kv.read(part, layer, 0, jax.tree.leaves(part)[0].shape[-2])
    rows, _, heads, hd = q.shape
    columns, groups = keys.shape[2], keys.shape[1]

    def over(queries, at, own):
        """queries [R, n, H, hd], at and own [R, n]: positions and columns of the queries."""
        grouped = (queries * hd**-0.5).reshape(rows, queries.shape[1], groups, -1, hd)
        age = own[..., None] - jnp.arange(columns)
        visible = (age >= 0) & (age <= at[..., None])
        if window is not None:
            visible &= age < window
        scores = jnp.einsum("bnkgd,bkcd->bkgnc", grouped, keys, preferred_element_type=jnp.float32)
        scores = jnp.where(visible[:, None, None], soft_cap(scores, softcap), MASKED)
        p = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
        out = jnp.einsum("bkgnc,bkcd->bnkgd", p.astype(values.dtype), values)
        return (out / p.sum(axis=-1).transpose(0, 3, 1, 2)[..., None]).astype(queries.dtype)

    own = jnp.broadcast_to(clock - width + jnp.arange(width), (rows, width))
    if rows * heads * width * columns <= _MOST_SCORES:
        return over(q, positions, own).reshape(rows, width, heads, hd), part

    def split(array):  # [R, P, …] to [P / 8, R, 8, …]
        return jnp.moveaxis(array.reshape(rows, width // _CHUNK, _CHUNK, *array.shape[2:]), 1, 0)

    out = jax.lax.map(lambda each: over(*each), (split(q), split(positions), split(own)))
    return jnp.moveaxis(out, 0, 1).reshape(rows, width, heads, hd), part


def _write_real(array, layer, new, column, real):
    """Writes [R, KV, P, hd] at `column`, where `real` [R, P]; the other places may be a row's older tokens."""
    sizes = new.shape if layer is None else (1, *new.shape)
    begin = (0, 0, column, 0) if layer is None else (layer, 0, 0, column, 0)
    old = jax.lax.dynamic_slice(array, begin, sizes)
    merged = jnp.where(real[:, None, :, None], new.astype(array.dtype), old.reshape(new.shape))
    return jax.lax.dynamic_update_slice(array, merged.reshape(sizes), begin)
