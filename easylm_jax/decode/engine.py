"""The engine: many completions at once over a fixed number of rows, which are refilled as completions end.

Prompts are prefilled once each, in a few bucketed lengths, and forked into as many rows as there are samples. A program
decodes a block of tokens for all rows; between blocks the host collects what ended and refills those rows from the
queue. When the queue is empty and few rows are left, they move to a smaller batch. The cache grows in steps, so that
early tokens do not pay for columns that nothing has written.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from easylm_jax.decode import cache as kv
from easylm_jax.decode import forward, loop
from easylm_jax.decode.request import Completions, Detokenize, Request, ScoredCompletions, cut_at_stop
from easylm_jax.decode.sampling import Mode, Settings
from easylm_jax.runtime.mesh import BATCH_AXES, batch_split
from easylm_jax.runtime.sharding import check_heads
from models.config import Placement
from models.model import Model, Params

# Tokens that one prefill may hold, padding included: bounds its memory.
PREFILL_TOKENS = {"cpu": 8192, "gpu": 65536, "tpu": 65536}


class Cancelled(Exception):
    """Generation was ended by whoever asked for it; there are no completions."""


class Engine:
    """Generates with one model of which the parameters may change from call to call; compiled programs are kept.

    Args:
        model: what to run.
        slots: rows that are decoded at once; rounded up to what the mesh divides.
        max_length: longest prompt and completion together, in tokens; the model's context if left out.
        mesh: rows are split over its batch axes, heads over `tp`.
        block: most tokens that a row gets before the host looks at it.
        unroll: whether programs unroll the layers; left out, they do on a CPU, where it is faster by a third.
        gather_weights: under a mesh, whether weights are gathered over `fsdp` once a call instead of at every step;
            turn it off where one copy split over `tp` does not fit a device.
    """

    def __init__(
        self, model: Model, *, slots: int = 64, max_length: int | None = None, mesh: jax.sharding.Mesh | None = None,
        block: int = 32, unroll: bool | None = None, gather_weights: bool = True,
    ):  # fmt: skip
        if mesh is not None:
            check_heads(model.config, mesh)
        placement = Placement() if mesh is None else Placement(batch=BATCH_AXES, tensor="tp")
        self.model = dataclasses.replace(model, placement=placement)  # type: ignore[type-var]
        self.max_length = model.config.context if max_length is None else max_length
        self.mesh, self.block = mesh, block
        self.split = 1 if mesh is None else batch_split(mesh)
        self.slots = _round_up(slots, self.split)
        self.unroll = model.platform == "cpu" if unroll is None else unroll
        # Splash tiles a TPU's sequences by 128; elsewhere short buckets save work.
        self.least_bucket = 128 if model.platform == "tpu" else 16
        join = self.unroll and model.platform == "cpu" and (mesh is None or mesh.size == 1)
        self._prepare = jax.jit(functools.partial(
            forward.prepare, self.model, unroll=self.unroll, join=join, mesh=mesh, gather=gather_weights
        ))  # fmt: skip
        self._prefill = jax.jit(self._prefill_program)
        self._decode = jax.jit(
            functools.partial(loop.decode_block, self.model, mesh, block), static_argnums=0, donate_argnums=2
        )

    def generate(
        self, params: Params, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, temperature: float = 1.0,
        top_k: int | None = None, top_p: float | None = None, eos_ids: Sequence[int] = (),
        stop_strings: Sequence[str] = (), samples: int = 1, seed: int = 0, detokenize: Detokenize | None = None,
        numbers: Sequence[int] | None = None, scores: bool = False, cancelled: Callable[[], bool] | None = None,
    ) -> Completions | ScoredCompletions:  # fmt: skip
        """Completions of `prompts` under `params`.

        Args:
            params: as the model makes them, in any float type.
            prompts: token ids of each; none may be empty.
            max_new_tokens: longest completion.
            temperature: divides the logits; 0 takes the likeliest token.
            top_k, top_p: keep the k likeliest tokens, then the fewest that hold this share of what is left.
            eos_ids: tokens that end a completion, and count as its last.
            stop_strings: texts that end one. They are looked for after each block in the completion's own text, and
                it is cut after the token that completed the first; `detokenize` turns token ids into text.
            samples: completions of each prompt.
            seed: a token depends on the model, its prompt, `seed`, the prompt's number, the sample's number and its
                position, and on nothing else: not on other prompts, slots or mesh (but for rounding).
            numbers: the prompts' numbers; left out, 0, 1, 2, …
            scores: whether to return `ScoredCompletions`.
            cancelled: asked before every block of tokens; where it says True, `Cancelled` is raised.

        Raises:
            UserError: for what cannot be done.
        """
        request = Request(
            prompts=tuple(tuple(int(token) for token in prompt) for prompt in prompts),
            numbers=tuple(range(len(prompts))) if numbers is None else tuple(int(n) for n in numbers),
            max_new_tokens=int(max_new_tokens), temperature=float(temperature), top_k=top_k, top_p=top_p,
            eos_ids=tuple(int(i) for i in eos_ids), stop_strings=tuple(stop_strings), detokenize=detokenize,
            samples=samples, seed=seed, scores=scores,
        )  # fmt: skip
        request.check(self.model.config, self.max_length)
        with contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh):
            return _Call(self, self._prepare(params), request).run(cancelled)

    def sharding(self, *, layer_axis: bool) -> jax.sharding.NamedSharding | None:
        """Where the cache lies: rows over the batch axes, heads over `tp`."""
        if self.mesh is None:
            return None
        spec = jax.sharding.PartitionSpec(*([None] if layer_axis else []), BATCH_AXES, "tp", None, None)
        return jax.sharding.NamedSharding(self.mesh, spec)

    def new_cache(self, rows: int, columns: int) -> kv.Cache:
        return kv.create(
            self.model.config, rows, columns, self.model.compute.dtype, listed=self.unroll,
            sharding=self.sharding(layer_axis=not self.unroll),
        )  # fmt: skip

    def _prefill_program(self, weights, tokens, lengths):
        tokens, lengths = loop.split_rows(tokens, self.mesh), loop.split_rows(lengths, self.mesh)
        cache = self.new_cache(*tokens.shape)
        return forward.prefill(self.model, weights, tokens, lengths, cache)

    def bucket(self, length: int) -> int:
        """The least of 2ⁿ and 3 · 2ⁿ that is at least `length`."""
        size = self.least_bucket
        while size < length:
            size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
        return size

    def fewer(self, rows: int) -> int:
        """The next smaller batch: a quarter, but not under four rows."""
        return min(rows, _round_up(max(4, rows // 4), self.split))


@dataclasses.dataclass
class _Prefilled:
    """Prompts whose keys and values exist, and the completions (row of the cache, prompt, sample) not yet begun."""

    cache: kv.Cache
    bucket: int
    waiting: collections.deque[tuple[int, int, int]]


class _Call:
    """One call of `generate`: the queue, the rows and the cache between blocks."""

    def __init__(self, engine: Engine, weights: forward.Weights, request: Request):
        self.engine, self.weights, self.request = engine, weights, request
        count = len(request.prompts) * request.samples
        shape = (count, request.max_new_tokens)
        self.tokens = np.full(shape, engine.model.config.pad_id or 0, np.int32)
        self.scores = {name: np.zeros(shape, np.float32) for name in ("logprobs", "logprobs_untruncated", "entropy")}
        self.lengths = np.zeros(count, np.int32)
        self.ended = np.zeros(count, bool)

        same: dict[tuple[int, ...], list[int]] = {}
        for i, prompt in enumerate(request.prompts):
            same.setdefault(prompt, []).append(i)
        # Longest first: the columns before the clock are then always enough for the next prompt.
        self.queue = collections.deque(sorted(same.items(), key=lambda it: -engine.bucket(len(it[0]) - 1)))
        self.ready: _Prefilled | None = None

        self.rows = engine.slots
        while engine.fewer(self.rows) < self.rows and count <= engine.fewer(self.rows):
            self.rows = engine.fewer(self.rows)
        self.completion = np.full(self.rows, -1)  # which one each row is decoding; −1 for an idle row
        self.state = {name: np.zeros(self.rows, np.int32) for name in ("token", "count", "prompt", "sample")}
        longest = max((len(prompt) - 1 for prompt in request.prompts), default=0)
        slack = engine.block if count > self.rows else 0
        # A TPU's attention kernel takes columns in tiles of 128.
        tile = 128 if engine.model.platform == "tpu" else 32
        self.most_columns = _round_up(engine.bucket(longest) + request.max_new_tokens + slack, tile)
        greedy = request.temperature == 0
        self.mode = Mode(greedy, not greedy and request.top_k is not None, not greedy and request.top_p is not None,
                         request.scores)  # fmt: skip
        self.settings = Settings(
            np.float32(request.temperature), np.int32(request.top_k or 0), np.float32(request.top_p or 0)
        )
        self.eos = np.array(request.eos_ids or (-1,), np.int32)

    def run(self, cancelled: Callable[[], bool] | None = None) -> Completions | ScoredCompletions:
        """Decodes everything that is asked for."""
        if self.queue:
            self.clock = self.engine.bucket(len(self.queue[0][0]) - 1)
            self.columns = self._columns_for(self.clock + min(self.engine.block, self.request.max_new_tokens))
            self.cache = self.engine.new_cache(self.rows, self.columns)
        while self.pending or (self.completion >= 0).any():
            if cancelled is not None and cancelled():
                raise Cancelled
            self._refill()
            self._compact()
            self._make_room()
            self._decode()
        if self.request.scores:
            return ScoredCompletions(tokens=self.tokens, lengths=self.lengths, ended=self.ended, **self.scores)
        return Completions(self.tokens, self.scores["logprobs"], self.lengths)

    @property
    def pending(self) -> bool:
        """Whether completions wait for a row."""
        return bool(self.queue or self.ready)

    def _next_bucket(self) -> int:
        if self.ready:
            return self.ready.bucket
        return self.engine.bucket(len(self.queue[0][0]) - 1) if self.queue else 0

    def _refill(self) -> None:
        """Gives every idle row a completion, as long as there are any."""
        while self.pending and (self.completion < 0).any():
            idle = np.flatnonzero(self.completion < 0)
            if self.ready is None:
                self.ready = self._prefill(len(idle))
            source = np.full(self.rows, -1, np.int32)
            samples = self.request.samples
            while len(idle) and self.ready.waiting:
                row, idle = idle[0], idle[1:]
                source[row], prompt, sample = self.ready.waiting.popleft()
                tokens = self.request.prompts[prompt]
                self.completion[row] = prompt * samples + sample
                values = (tokens[-1], len(tokens) - 1, self.request.numbers[prompt], sample)
                for name, value in zip(("token", "count", "prompt", "sample"), values, strict=True):
                    self.state[name][row] = value
            self.cache = kv.insert(self.cache, self.ready.cache, source, self.clock)
            if not self.ready.waiting:
                self.ready = None

    def _prefill(self, wanted: int) -> _Prefilled:
        """Keys and values of the next prompts of one bucket, enough for `wanted` completions if there are so many."""
        engine, bucket = self.engine, self._next_bucket()
        most = max(1, min(self.rows, PREFILL_TOKENS[engine.model.platform] // bucket))
        taken: list[tuple[int, ...]] = []
        waiting: collections.deque[tuple[int, int, int]] = collections.deque()
        while self.queue and len(waiting) < wanted and len(taken) < most and self._next_bucket() == bucket:
            tokens, prompts = self.queue.popleft()
            waiting.extend((len(taken), prompt, s) for prompt in prompts for s in range(self.request.samples))
            taken.append(tokens)
        few = max(1, most // 8)  # two sizes for each bucket, so that few programs are compiled
        rows = _round_up(few if len(taken) <= few else most, engine.split)
        tokens = np.zeros((rows, bucket), np.int32)
        lengths = np.zeros(rows, np.int32)
        for i, prompt in enumerate(taken):
            lengths[i] = len(prompt) - 1
            tokens[i, bucket - lengths[i] :] = prompt[:-1]
        return _Prefilled(engine._prefill(self.weights, tokens, lengths), bucket, waiting)

    def _compact(self) -> None:
        """Moves the last rows of a call to a smaller batch."""
        fewer = self.rows
        while self.engine.fewer(fewer) < fewer and (self.completion >= 0).sum() <= self.engine.fewer(fewer):
            fewer = self.engine.fewer(fewer)
        if self.pending or fewer == self.rows:
            return
        kept = np.argsort(self.completion < 0, kind="stable")[:fewer].astype(np.int32)
        self._move(kept, 0, self.columns)
        self.rows, self.completion = fewer, self.completion[kept]
        self.state = {name: values[kept] for name, values in self.state.items()}

    def _make_room(self) -> None:
        """Sees to it that the next block has columns: drops those that no row needs any more, or grows the cache."""
        active = self.completion >= 0
        steps = min(self.engine.block, int(self._left()[active].max()))
        if self.clock + steps <= self.columns:
            return
        clock = max(int(self.state["count"][active].max()), self._next_bucket())
        roomy = clock + steps <= self.columns * 3 // 4
        columns = self.columns if roomy else max(self.columns, self._columns_for(clock + steps))
        if (clock, columns) != (self.clock, self.columns):
            self._move(None, self.clock - clock, columns)
            self.clock, self.columns = clock, columns

    def _columns_for(self, columns: int) -> int:
        return min(self.most_columns, self.engine.bucket(max(columns, 4 * self.engine.least_bucket)))

    def _move(self, rows: np.ndarray | None, shift: int, columns: int) -> None:
        cache, self.cache = self.cache, None  # the only reference, so that arrays are freed as they are replaced
        sharding = self.engine.sharding(layer_axis=not self.engine.unroll)
        self.cache = kv.move(cache, rows, shift, columns, sharding)

    def _generated(self) -> np.ndarray:
        return np.where(self.completion >= 0, self.lengths[self.completion], 0).astype(np.int32)

    def _left(self) -> np.ndarray:
        return self.request.max_new_tokens - self._generated()

    def _decode(self) -> None:
        """Runs a block and collects what it brought."""
        idle = self.completion < 0
        steps = min(self.engine.block, int(self._left()[~idle].max()), self.columns - self.clock)
        if self.pending:
            stop_at = min(self.rows, int(idle.sum()) + max(1, self.rows // 8))
        else:
            stop_at = self.rows - self.engine.fewer(self.rows) or self.rows
        generated = self._generated()
        limit = np.full(self.rows, self.request.max_new_tokens, np.int32)
        rows = loop.Rows(done=idle, generated=generated, limit=limit, **self.state)
        self.cache, out = self.engine._decode(
            self.mode, self.weights, self.cache, rows, np.int32(self.clock), np.int32(steps), np.int32(stop_at),
            self.eos, np.uint32(self.request.seed), self.settings,
        )  # fmt: skip
        out = jax.device_get(out)
        self.clock += int(out.steps)
        for row in np.flatnonzero(~idle):
            self._collect(row, out)

    def _collect(self, row: int, out: loop.Block) -> None:
        """Appends a row's new tokens to its completion; the row is idle again if that ended."""
        it, new = self.completion[row], int(out.emitted[row])
        had = int(self.lengths[it])
        done = bool(out.done[row])
        self.tokens[it, had : had + new] = out.tokens[row, :new]
        if self.request.stop_strings:
            so_far = self.tokens[it, : had + new].tolist()
            cut = cut_at_stop(so_far, had, self.request.stop_strings, self.request.detokenize)
            if cut is not None:
                self.tokens[it, cut : had + new] = self.tokens.dtype.type(self.engine.model.config.pad_id or 0)
                new, done = cut - had, True
                self.ended[it] = True
        for name, values in self.scores.items():
            if getattr(out, name) is not None:
                values[it, had : had + new] = getattr(out, name)[row, :new]
        self.lengths[it] = had + new
        self.ended[it] |= int(self.tokens[it, had + new - 1]) in self.request.eos_ids
        self.state["token"][row] = self.tokens[it, had + new - 1]
        self.state["count"][row] += new
        if done:
            self.completion[row] = -1


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


@functools.lru_cache(maxsize=8)
def engine_for(model: Model, slots: int, mesh: jax.sharding.Mesh | None) -> Engine:
    """The engine of a model, with its compiled programs: models of one shape share it."""
    return Engine(model, slots=slots, mesh=mesh if mesh is not None and mesh.size > 1 else None)


def generate(
    model: Model, params: Params, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, temperature: float = 1.0,
    top_k: int | None = None, top_p: float | None = None, eos_ids: Sequence[int] = (),
    stop_strings: Sequence[str] = (), samples: int = 1, seed: int = 0, slots: int = 64,
    mesh: jax.sharding.Mesh | None = None, **more: Any,
) -> Completions | ScoredCompletions:  # fmt: skip
    """`Engine.generate` for a single call; engines of the last few models are kept, with their compiled programs."""
    return engine_for(model, slots, mesh).generate(
        params, prompts, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
        eos_ids=eos_ids, stop_strings=stop_strings, samples=samples, seed=seed, **more,
    )  # fmt: skip
