"""The batch engine: generates many responses at once over a fixed number of rows (continuous batching).

Each prompt is prefilled once, in one of a few bucketed lengths, and its cache is copied into one row per sample. A
program decodes a block of tokens for all rows; between blocks the host collects finished responses and refills their
rows from the queue. When the queue is empty and few rows are active, they move to a smaller batch. The cache grows in
steps, so early tokens do not attend over columns that are still empty.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, cast

import jax
import numpy as np

from easylm_jax.decode import cache as kv
from easylm_jax.decode import forward, loop, pictures
from easylm_jax.decode.request import Completions, Detokenize, Prompt, Request, ScoredCompletions, cut_at_stop
from easylm_jax.decode.sampling import Mode, Settings
from easylm_jax.runtime.mesh import BATCH_AXES, batch_split
from easylm_jax.runtime.sharding import check_heads
from models.config import Placement
from models.errors import UserError
from models.model import Model, Params
from models.molmo.batch import Pictures

# The most tokens of one prefill, padding included; bounds its memory.
PREFILL_TOKENS = {"cpu": 8192, "gpu": 65536, "tpu": 65536}


class Cancelled(Exception):
    """The caller cancelled the generation; there are no responses."""


class Engine:
    """Generates with one model, whose parameters may change from call to call; compiled programs are kept.

    Args:
        model: the model to run.
        slots: rows decoded at once; rounded up to a multiple of the batch axes of the mesh.
        max_length: maximum length of prompt and response together, in tokens; by default the model's context.
        mesh: rows are split over its batch axes, heads over `tp`.
        block: the most decode steps between two visits of the host.
        unroll: whether programs unroll the layers; by default on a CPU only, where it is faster by a third.
        gather_weights: under a mesh, whether weights are gathered over `fsdp` once per call instead of at every step;
            turn it off if one copy split over `tp` does not fit a device.
    """

    def __init__(
        self, model: Model, *, slots: int = 64, max_length: int | None = None, mesh: jax.sharding.Mesh | None = None,
        block: int = 32, unroll: bool | None = None, gather_weights: bool = True,
    ):  # fmt: skip
        if mesh is not None:
            check_heads(model.config, mesh)
        placement = Placement() if mesh is None else Placement(batch=BATCH_AXES, tensor="tp", experts="ep")
        self.model = dataclasses.replace(model, placement=placement)  # type: ignore[type-var]
        self.max_length = model.config.context if max_length is None else max_length
        self.mesh, self.block = mesh, block
        self.split = 1 if mesh is None else batch_split(mesh)
        self.slots = _round_up(slots, self.split)
        self.unroll = model.platform == "cpu" if unroll is None else unroll
        # Splash attention on a TPU needs multiples of 128; elsewhere shorter buckets save work.
        self.least_bucket = 128 if model.platform == "tpu" else 16
        join = self.unroll and model.platform == "cpu" and (mesh is None or mesh.size == 1)
        self._prepare = jax.jit(functools.partial(
            forward.prepare, self.model, unroll=self.unroll, join=join, mesh=mesh, gather=gather_weights
        ))  # fmt: skip
        self._prefill = jax.jit(self._prefill_program, static_argnames="routing")
        self._prefill_seeing = jax.jit(self._prefill_seeing_program)
        self._decode = jax.jit(
            functools.partial(loop.decode_block, self.model, mesh, block), static_argnums=0, donate_argnums=2
        )

    def generate(
        self, params: Params, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, temperature: float = 1.0,
        top_k: int | None = None, top_p: float | None = None, eos_ids: Sequence[int] = (),
        stop_strings: Sequence[str] = (), samples: int = 1, seed: int = 0, detokenize: Detokenize | None = None,
        numbers: Sequence[int] | None = None, scores: bool = False, cancelled: Callable[[], bool] | None = None,
        progress: Callable[[int, int], None] | None = None, contexts: Sequence[Hashable] | None = None,
        routing: bool = False, images: Sequence[Pictures] | None = None,
    ) -> Completions | ScoredCompletions:  # fmt: skip
        """Generates responses to `prompts` with `params`.

        Args:
            params: as `model.init` returns them, in any float type.
            prompts: token ids of each prompt; none may be empty.
            max_new_tokens: maximum length of a response, in tokens.
            temperature: divides the logits; 0 is greedy decoding.
            top_k, top_p: keep the k most likely tokens, then the fewest tokens that hold this share of the rest.
            eos_ids: tokens that end a response; the end token counts as its last token.
            stop_strings: texts that end a response. The text of the response is searched after each block, and the
                response is cut after the token that completes the first match.
            samples: responses to each prompt.
            seed: a token depends on the model, its prompt, `seed`, the prompt number, the sample number and its
                position only: not on other prompts, slots or the mesh (up to rounding).
            detokenize: turns token ids into text; required with `stop_strings`.
            numbers: the prompt numbers; by default 0, 1, 2, …
            scores: whether to return `ScoredCompletions`.
            cancelled: called before every block of tokens; `Cancelled` is raised once it returns True.
            progress: called after every block with the numbers of finished responses and of tokens so far.
            contexts: what the model sees of each prompt besides its tokens, as a hashable value such as a digest of
                its images. Prompts with equal tokens and contexts share one prefill.
            routing: whether the scored completions of a mixture of experts hold the experts of every token.

        Raises:
            UserError: an argument is invalid (`Request.check`).
        """
        tokens = [tuple(int(token) for token in prompt) for prompt in prompts]
        shown: pictures.Shown = {}
        if images is not None:
            if routing:
                raise UserError("generate: the experts of prompts with pictures are not recorded; leave routing out")
            contexts, shown = pictures.contexts_of(images, len(prompts), self.model.config.vision)
        pictures.check(tokens, contexts, self.model.config.vision)
        request = Request(
            prompts=tuple(map(Prompt, tokens, [None] * len(tokens) if contexts is None else contexts)),
            numbers=tuple(range(len(prompts))) if numbers is None else tuple(int(n) for n in numbers),
            max_new_tokens=int(max_new_tokens), temperature=float(temperature), top_k=top_k, top_p=top_p,
            eos_ids=tuple(int(i) for i in eos_ids), stop_strings=tuple(stop_strings), detokenize=detokenize,
            samples=samples, seed=seed, scores=scores, routing=routing,
        )  # fmt: skip
        request.check(self.model.config, self.max_length)
        with contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh):
            return _Call(self, self._prepare(params), request, shown).run(cancelled, progress)

    def sharding(self, *, layer_axis: bool) -> jax.sharding.NamedSharding | None:
        """The sharding of the cache: rows over the batch axes, heads over `tp`."""
        if self.mesh is None:
            return None
        spec = jax.sharding.PartitionSpec(*([None] if layer_axis else []), BATCH_AXES, "tp", None, None)
        return jax.sharding.NamedSharding(self.mesh, spec)

    def new_cache(self, rows: int, columns: int) -> kv.Cache:
        """An empty cache in the layout of the decode programs."""
        return kv.create(
            self.model.config, rows, columns, self.model.compute.dtype, listed=self.unroll,
            sharding=self.sharding(layer_axis=not self.unroll),
        )  # fmt: skip

    def _prefill_program(self, weights, tokens, lengths, routing: bool = False):
        tokens, lengths = loop.split_rows(tokens, self.mesh), loop.split_rows(lengths, self.mesh)
        cache = self.new_cache(*tokens.shape)
        cache, routed = forward.prefill(self.model, weights, tokens, lengths, cache, routing)
        if routed is not None and self.mesh is not None:  # every process reads all rows
            everywhere = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())
            routed = jax.lax.with_sharding_constraint(routed, everywhere)
        return cache, routed

    def _prefill_seeing_program(self, weights, rows: pictures.Rows):
        rows = jax.tree.map(lambda x: loop.split_rows(x, self.mesh), rows)
        return pictures.prefill(self.model, weights, rows, self.new_cache(*rows.tokens.shape))

    def bucket(self, length: int) -> int:
        """The smallest bucket size, 2ⁿ or 3 · 2ⁿ, that is at least `length`."""
        size = self.least_bucket
        while size < length:
            size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
        return size

    def smaller_batch(self, rows: int) -> int:
        """The next smaller batch size: a quarter, but at least four rows."""
        return min(rows, _round_up(max(4, rows // 4), self.split))


@dataclasses.dataclass
class _Prefilled:
    """The cache of prefilled prompts, and the responses (row of that cache, prompt, sample) that wait for a row;
    `routing` has the experts of the prompts' tokens, where asked for, in the columns of the cache."""

    cache: kv.Cache
    bucket: int
    waiting: collections.deque[tuple[int, int, int]]
    routing: np.ndarray | None = None


class _Call:
    """The state of one call of `generate`: the queue of prompts, the rows and the cache."""

    def __init__(self, engine: Engine, weights: forward.Weights, request: Request, shown: pictures.Shown):
        self.engine, self.weights, self.request, self.shown = engine, weights, request, shown
        count = len(request.prompts) * request.samples
        shape = (count, request.max_new_tokens)
        self.tokens = np.full(shape, engine.model.config.pad_id or 0, np.int32)
        self.scores = {name: np.zeros(shape, np.float32) for name in ("logprobs", "logprobs_untruncated", "entropy")}
        self.lengths = np.zeros(count, np.int32)
        self.ended = np.zeros(count, bool)
        self.finished = 0  # responses
        self.routing: np.ndarray | None = None
        if request.routing:
            c, width = engine.model.config, max((len(prompt.tokens) for prompt in request.prompts), default=0)
            assert c.experts is not None  # checked by `Request.check`
            tokens = width + request.max_new_tokens
            self.routing = np.full((count, tokens, c.layers, c.experts.active), -1, np.int16)

        duplicates: dict[Prompt, list[int]] = {}
        for i, prompt in enumerate(request.prompts):
            duplicates.setdefault(prompt, []).append(i)
        # Longest prompts first, so that there are always enough columns before the clock for the next prompt.
        longest_first = sorted(duplicates.items(), key=lambda item: -engine.bucket(len(item[0].tokens) - 1))
        self.queue = collections.deque(longest_first)
        self.ready: _Prefilled | None = None

        self.rows = engine.slots
        while engine.smaller_batch(self.rows) < self.rows and count <= engine.smaller_batch(self.rows):
            self.rows = engine.smaller_batch(self.rows)
        self.response = np.full(self.rows, -1)  # the response that each row decodes; −1 for an idle row
        self.state = {name: np.zeros(self.rows, np.int32) for name in ("token", "count", "prompt", "sample")}
        longest = max((len(prompt.tokens) - 1 for prompt in request.prompts), default=0)
        slack = engine.block if count > self.rows else 0
        # The attention kernel of a TPU needs multiples of 128 columns.
        tile = 128 if engine.model.platform == "tpu" else 32
        self.most_columns = _round_up(engine.bucket(longest) + request.max_new_tokens + slack, tile)
        greedy = request.temperature == 0
        self.mode = Mode(greedy, not greedy and request.top_k is not None, not greedy and request.top_p is not None,
                         request.scores, request.routing)  # fmt: skip
        self.settings = Settings(
            np.float32(request.temperature), np.int32(request.top_k or 0), np.float32(request.top_p or 0)
        )
        self.eos = np.array(request.eos_ids or (-1,), np.int32)

    def run(
        self, cancelled: Callable[[], bool] | None = None, progress: Callable[[int, int], None] | None = None
    ) -> Completions | ScoredCompletions:
        """Generates all responses of the request."""
        if self.queue:
            self.clock = self.engine.bucket(len(self.queue[0][0].tokens) - 1)
            self.columns = self._columns_for(self.clock + min(self.engine.block, self.request.max_new_tokens))
            self.cache = self.engine.new_cache(self.rows, self.columns)
        while self.pending or (self.response >= 0).any():
            if cancelled is not None and cancelled():
                raise Cancelled
            self._refill()
            self._compact()
            self._make_room()
            self._decode()
            if progress is not None:
                progress(self.finished, int(self.lengths.sum()))
        if self.request.scores:
            return ScoredCompletions(
                tokens=self.tokens, lengths=self.lengths, ended=self.ended, routing=self.routing, **self.scores
            )
        return Completions(self.tokens, self.scores["logprobs"], self.lengths)

    @property
    def pending(self) -> bool:
        """Whether responses wait for a row."""
        return bool(self.queue or self.ready)

    def _next_bucket(self) -> int:
        if self.ready:
            return self.ready.bucket
        return self.engine.bucket(len(self.queue[0][0].tokens) - 1) if self.queue else 0

    def _refill(self) -> None:
        """Starts waiting responses in the idle rows."""
        while self.pending and (self.response < 0).any():
            idle = np.flatnonzero(self.response < 0)
            if self.ready is None:
                self.ready = self._prefill(len(idle))
            source = np.full(self.rows, -1, np.int32)
            samples = self.request.samples
            while len(idle) and self.ready.waiting:
                row, idle = idle[0], idle[1:]
                source[row], prompt, sample = self.ready.waiting.popleft()
                tokens = self.request.prompts[prompt].tokens
                self.response[row] = prompt * samples + sample
                if self.routing is not None and self.ready.routing is not None and len(tokens) > 1:
                    known = self.ready.routing[source[row], self.ready.bucket - (len(tokens) - 1) :]
                    self.routing[self.response[row], : len(tokens) - 1] = known
                values = (tokens[-1], len(tokens) - 1, self.request.numbers[prompt], sample)
                for name, value in zip(("token", "count", "prompt", "sample"), values, strict=True):
                    self.state[name][row] = value
            self.cache = kv.insert(self.cache, self.ready.cache, source, self.clock)
            if not self.ready.waiting:
                self.ready = None

    def _prefill(self, wanted: int) -> _Prefilled:
        """Prefills the next prompts of one bucket, for up to `wanted` responses."""
        engine, bucket = self.engine, self._next_bucket()
        largest = max(1, min(self.rows, PREFILL_TOKENS[engine.model.platform] // bucket))
        batch: list[Prompt] = []
        waiting: collections.deque[tuple[int, int, int]] = collections.deque()
        while self.queue and len(waiting) < wanted and len(batch) < largest and self._next_bucket() == bucket:
            prompt, indices = self.queue.popleft()
            waiting.extend((len(batch), index, s) for index in indices for s in range(self.request.samples))
            batch.append(prompt)
        if self.shown:
            return _Prefilled(self._prefill_seeing(batch, bucket), bucket, waiting)
        small = max(1, largest // 8)  # two batch sizes for each bucket, so that few programs are compiled
        rows = _round_up(small if len(batch) <= small else largest, engine.split)
        tokens = np.zeros((rows, bucket), np.int32)
        lengths = np.zeros(rows, np.int32)
        for i, (ids, _) in enumerate(batch):
            lengths[i] = len(ids) - 1
            tokens[i, bucket - lengths[i] :] = ids[:-1]
        asked = {"routing": True} if self.request.routing else {}
        cache, routed = engine._prefill(self.weights, tokens, lengths, **asked)
        return _Prefilled(cache, bucket, waiting, None if routed is None else np.asarray(jax.device_get(routed)))

    def _prefill_seeing(self, batch: list[Prompt], bucket: int) -> kv.Cache:
        """The cache of prompts about pictures, each of which is computed once."""
        engine, vision = self.engine, self.engine.model.config.vision
        assert vision is not None, "checked by `contexts_of`"

        def rows(count: int) -> int:  # powers of two, so that few programs are compiled
            return _round_up(1 << (count - 1).bit_length(), engine.split)

        laid = pictures.lay_out(batch, self.shown, vision, bucket, rows=rows, size=engine.bucket)
        return engine._prefill_seeing(self.weights, laid)

    def _compact(self) -> None:
        """Moves the active rows to a smaller batch once the queue is empty and few are left."""
        rows = self.rows
        while self.engine.smaller_batch(rows) < rows and (self.response >= 0).sum() <= self.engine.smaller_batch(rows):
            rows = self.engine.smaller_batch(rows)
        if self.pending or rows == self.rows:
            return
        kept = np.argsort(self.response < 0, kind="stable")[:rows].astype(np.int32)
        self._move(kept, 0, self.columns)
        self.rows, self.response = rows, self.response[kept]
        self.state = {name: values[kept] for name, values in self.state.items()}

    def _make_room(self) -> None:
        """Makes room for the columns of the next block: drops columns that no row needs, or grows the cache."""
        active = self.response >= 0
        steps = min(self.engine.block, int(self._remaining()[active].max()))
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
        cache, self.cache = self.cache, None  # drop the other reference, so that arrays are freed as they are moved
        sharding = self.engine.sharding(layer_axis=not self.engine.unroll)
        self.cache = kv.move(cache, rows, shift, columns, sharding)

    def _generated(self) -> np.ndarray:
        return np.where(self.response >= 0, self.lengths[self.response], 0).astype(np.int32)

    def _remaining(self) -> np.ndarray:
        return self.request.max_new_tokens - self._generated()

    def _decode(self) -> None:
        """Runs a block of decode steps and collects its tokens."""
        idle = self.response < 0
        steps = min(self.engine.block, int(self._remaining()[~idle].max()), self.columns - self.clock)
        if self.pending:
            stop_at = min(self.rows, int(idle.sum()) + max(1, self.rows // 8))
        else:
            stop_at = self.rows - self.engine.smaller_batch(self.rows) or self.rows
        generated = self._generated()
        limit = np.full(self.rows, self.request.max_new_tokens, np.int32)
        rows = loop.Rows(done=idle, generated=generated, limit=limit, **self.state)
        self.cache, out = self.engine._decode(
            self.mode, self.weights, self.cache, rows, np.int32(self.clock), np.int32(steps), np.int32(stop_at),
            self.eos, np.uint32(self.request.seed), self.settings,
        )  # fmt: skip
        out = jax.device_get(out)
        self.clock += int(out.steps)
        for row in np.flatnonzero(~idle).tolist():
            self._collect(row, out)

    def _collect(self, row: int, out: loop.Block) -> None:
        """Appends the new tokens of a row to its response; a row whose response ended becomes idle."""
        response, new = self.response[row], int(out.emitted[row])
        start = int(self.lengths[response])
        end, done = start + new, bool(out.done[row])
        self.tokens[response, start:end] = out.tokens[row, :new]
        if self.request.stop_strings:
            assert self.request.detokenize is not None  # checked by `Request.check`
            tokens = self.tokens[response, :end].tolist()
            cut = cut_at_stop(tokens, start, self.request.stop_strings, self.request.detokenize)
            if cut is not None:
                self.tokens[response, cut:end] = self.tokens.dtype.type(self.engine.model.config.pad_id or 0)
                new, end, done = cut - start, cut, True
                self.ended[response] = True
        if (
            self.routing is not None and out.routing is not None
        ):  # a step routes the token before the one that it samples
            first = len(self.request.prompts[response // self.request.samples].tokens) - 1
            self.routing[response, first + start : first + end] = out.routing[row, :new]
        for name, values in self.scores.items():
            if getattr(out, name) is not None:
                values[response, start:end] = getattr(out, name)[row, :new]
        self.lengths[response] = end
        self.ended[response] |= int(self.tokens[response, end - 1]) in self.request.eos_ids
        self.state["token"][row] = self.tokens[response, end - 1]
        self.state["count"][row] += new
        if done:
            self.response[row] = -1
            self.finished += 1


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


@functools.lru_cache(maxsize=8)
def _cached_engine(model: Any, slots: int, mesh: jax.sharding.Mesh | None) -> Engine:
    return Engine(model, slots=slots, mesh=mesh if mesh is not None and mesh.size > 1 else None)


def engine_for(model: Model, slots: int, mesh: jax.sharding.Mesh | None) -> Engine:
    """The engine of a model; equal models share one engine with its compiled programs."""
    return _cached_engine(cast(Any, model), slots, mesh)  # models are hashable, but the protocol does not declare it


def generate(
    model: Model, params: Params, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, temperature: float = 1.0,
    top_k: int | None = None, top_p: float | None = None, eos_ids: Sequence[int] = (),
    stop_strings: Sequence[str] = (), samples: int = 1, seed: int = 0, slots: int = 64,
    mesh: jax.sharding.Mesh | None = None, **more: Any,
) -> Completions | ScoredCompletions:  # fmt: skip
    """`Engine.generate` for a single call; the engines of the last few models are kept with their compiled programs."""
    return engine_for(model, slots, mesh).generate(
        params, prompts, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
        eos_ids=eos_ids, stop_strings=stop_strings, samples=samples, seed=seed, **more,
    )  # fmt: skip
