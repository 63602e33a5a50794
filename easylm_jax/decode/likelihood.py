"""Log-likelihoods of continuations given contexts, and scores of reward models, bitwise independent of what else is
asked.

    context  = c_1 … c_n        prefix pass(es) over c_1 … c_{n−1}: keys and values of every layer, in a cache
    continuation = y_1 … y_m    scoring pass over c_n, y_1 … y_{m−1} against that cache: log P(y_i | context, y_<i)

A context is read in pieces of `CHUNK` tokens and a rest, which is padded to a bucket; the continuation is padded to a
bucket of its own (`scored_bucket`). Every shape therefore follows from the request's own lengths. On a CPU a device
computes one context at a time (`OTHER_ROWS` elsewhere) and four of its continuations, each in a slot; that slots are
alike is tried out. So in float32 on a CPU a score has the same bits whatever stands beside the request, in whatever
order or number, and on any mesh that splits rows alone. On accelerators rows share matrix products, whose tiles a
neighbour does not change either, but the compiler promises nothing; with `tp` sums are split and may differ in the
last bits.

Requests with the same context share its passes, and contexts that begin with the same pieces (few-shot examples)
share those: reading a piece again would give the same bits.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from easylm_jax.runtime import chunked
from easylm_jax.runtime.mesh import BATCH_AXES, batch_split
from models.attention import MASKED
from models.config import Placement
from models.decoder import cast_kernels
from models.errors import UserError
from models.heads import head_logits, scalar_head
from models.layers import residual_norm, soft_cap
from models.model import Model, Params

Request = tuple[Sequence[int], Sequence[int]]  # token ids of the context and of the continuation
CHUNK = 128  # tokens of a whole piece of a context, and most tokens of a scoring pass
ROWS = {"cpu": 1}  # rows of one pass on one device
OTHER_ROWS = 16
SLOTS = 4  # continuations of one context that a scoring pass reads
TARGETS = 8  # continuations that share a scoring pass: they differ in their last token only
_EVEN: dict[Any, bool] = {}  # by shape: whether slots are alike to the last bit
KEPT = 64  # states after whole pieces that are kept for later contexts
_CACHE = jax.sharding.PartitionSpec(None, BATCH_AXES, "tp")  # of [layers, rows, KV, columns, hd]


def loglikelihood(
    model: Model, params: Params, requests: Sequence[Request], *, mesh: jax.sharding.Mesh | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[tuple[float, bool]]:  # fmt: skip
    """Log-probabilities of continuations.

    Args:
        model: with a vocabulary head; ids beyond `config.vocab_used` take part in the softmax, as in training.
        params: its parameters, in any float type; on `mesh`, if one is given.
        requests: (context ids, continuation ids). An empty context stands for the model's BOS token, or EOS where it
            has none. The log-probability of an empty continuation is 0.
        mesh: rows are split over its batch axes.
        progress: called with the number of requests answered since its last call.

    Returns:
        For each request the sum of the log-probabilities in nats (float32) and whether greedy decoding would have
        given the continuation.

    Raises:
        UserError: a request exceeds the context, has a token outside of the vocabulary, or the model has no
            vocabulary head.
    """
    return [
        (float(tokens.sum(dtype=np.float32)), bool(greedy.all()))
        for tokens, greedy in token_logprobs(model, params, requests, mesh=mesh, progress=progress)
    ]


def token_logprobs(
    model: Model, params: Params, requests: Sequence[Request], *, mesh: jax.sharding.Mesh | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:  # fmt: skip
    """For each request the log-probability of every token of its continuation, float32 [m], and whether it is the most
    likely one, bool [m]; see `loglikelihood`."""
    if model.config.scalar_head:
        raise UserError("log-likelihood: the model is a reward model (scalar head), which has no vocabulary")
    checked = [_checked(model, request, number) for number, request in enumerate(requests)]
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        return _Scorer(model, params, mesh).run(checked, progress)


def reward_scores(
    model: Model, params: Params, requests: Sequence[Request], *, mesh: jax.sharding.Mesh | None = None,
    progress: Callable[[int], None] | None = None, counts: collections.Counter[str] | None = None,
) -> np.ndarray:  # fmt: skip
    """Scores of a reward model at the last token of (prompt ids, response ids), float32 [N].

    Responses to one prompt share its passes. The scores have the invariance of `loglikelihood`. To `counts` are added
    the tokens that the passes read ("read") and their padding ("padding").

    Raises:
        UserError: the model has no scalar head, or a request exceeds its context or vocabulary.
    """
    if not model.config.scalar_head:
        raise UserError("reward scores: the model is a language model; give a reward model (scalar head)")
    # The last token of a continuation is only a target and never read, so one more is put behind the response.
    longer = [_checked(model, (prompt, (*response, 0)), number) for number, (prompt, response) in enumerate(requests)]
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        scorer = _Scorer(model, params, mesh)
        results = scorer.run(longer, progress)
    if counts is not None:
        counts.update(scorer.counts)
    return np.array([values[-1] for values, _ in results], np.float32)


def _checked(model: Model, request: Request, number: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    c = model.config
    start = c.eos_id if c.bos_id is None else c.bos_id
    context, continuation = (tuple(map(int, part)) for part in request)
    if not context:
        if start is None:
            raise UserError(f"log-likelihood: request {number} has no context, and the model has no BOS token")
        context = (start,)
    if len(context) + len(continuation) - 1 > c.context:
        raise UserError(
            f"log-likelihood: request {number} has {len(context) + len(continuation)} tokens, and the model a context "
            f"of {c.context}; shorten its context"
        )
    worst = next((i for i in (*context, *continuation) if not 0 <= i < c.vocab), None)
    if worst is not None:
        raise UserError(f"log-likelihood: request {number} has the token {worst}, and the model {c.vocab} tokens")
    return context, continuation


def bucket(length: int) -> int:
    """The smallest of 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, … (2ⁿ and, from 24 on, 3 · 2ⁿ) that is at least
    `length`."""
    size = 1
    while size < length:
        size = size * 3 // 2 if size >= 16 and size & (size - 1) == 0 else size * 4 // 3 if size > 16 else size * 2
    return size


def scored_bucket(length: int) -> int:
    """Positions of a scoring pass over `length` tokens: 1, 8, 16, 24, 32, 48, …

    One token (the letter of an option) is cheap alone. The options of a question mostly have two to eight tokens: in
    one shape they share a pass, whose padding costs less than passes of their own would.
    """
    return 1 if length == 1 else max(8, bucket(length))


def _columns(tokens: int) -> int:
    """Columns of a cache that holds `tokens` tokens: a bucketed number of whole pieces; 0 for an empty one."""
    pieces = -(-tokens // CHUNK)
    size = 1 if pieces else 0
    while size < pieces:  # 1, 2, 3, 4, 6, 8, 12, …
        size = 2 if size == 1 else size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size * CHUNK


class _State(NamedTuple):
    """Keys and values [layers, rows, KV, columns, hd] of the first `counts` [rows] tokens of some sequences."""

    keys: jax.Array
    values: jax.Array
    counts: np.ndarray


class _Scorer:
    """Passes of one model over rows of one mesh."""

    def __init__(self, model: Model, params: Params, mesh: jax.sharding.Mesh | None):
        split = mesh is not None and mesh.size > 1
        placement = Placement(batch=BATCH_AXES, tensor="tp", experts="ep") if split else Placement()
        self.model: Model = dataclasses.replace(model, placement=placement)  # type: ignore[type-var]
        self.mesh, self.params = mesh, params
        self.rows = ROWS.get(model.platform, OTHER_ROWS) * (1 if mesh is None else batch_split(mesh))
        self.states: collections.OrderedDict[tuple, _State] = collections.OrderedDict()
        self.counts: collections.Counter[str] = collections.Counter(read=0, padding=0)

    def run(
        self, requests: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], progress: Callable[[int], None] | None
    ) -> list[tuple[np.ndarray, np.ndarray]]:  # fmt: skip
        """The log-probabilities of all requests, in their order."""
        results: list[Any] = [(np.zeros(0, np.float32), np.zeros(0, bool))] * len(requests)
        contexts: dict[tuple[int, ...], list[int]] = {}
        for number, (context, continuation) in enumerate(requests):
            if continuation:
                contexts.setdefault(context, []).append(number)
        for wave in self._waves(contexts):
            state = self._read([context[:-1] for context in wave])
            todo = [self._groups(requests, contexts[context]) for context in wave]
            for shape in sorted({shape for groups in todo for shape in groups}):
                queues = [collections.deque(groups.get(shape, ())) for groups in todo]
                slots = self._slots(state, shape)
                while any(queues):
                    taken = [queue.popleft() if queue else [] for queue in queues for _ in range(slots)]
                    self._score(state, wave, taken, slots, requests, results)
                    if progress is not None:
                        progress(sum(map(len, taken)))
        return results

    def _waves(self, contexts: dict[tuple[int, ...], list[int]]) -> Iterator[list[tuple[int, ...]]]:
        """Contexts by `self.rows`, those of a wave with the same shapes; in order, for their common beginnings."""
        waiting: dict[tuple[int, int], list[tuple[int, ...]]] = {}
        for context in sorted(contexts):
            whole, rest = divmod(len(context) - 1, CHUNK)
            wave = waiting.setdefault((whole, bucket(rest) if rest else 0), [])
            wave.append(context)
            if len(wave) == self.rows:
                yield wave[:]
                wave.clear()
        yield from (wave for wave in waiting.values() if wave)

    def _groups(self, requests, numbers: list[int]) -> dict[int, list[list[int]]]:
        """Requests of one context by bucketed length, in groups that one scoring pass answers: their continuations
        differ in the last token alone, so that the model reads the same tokens."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for number in numbers:
            groups.setdefault(requests[number][1][:-1], []).append(number)
        found: dict[int, list[list[int]]] = {}
        for read, members in groups.items():
            shape = len(read) + 1 if len(read) >= CHUNK else scored_bucket(len(read) + 1)
            found.setdefault(shape, []).extend(members[i : i + TARGETS] for i in range(0, len(members), TARGETS))
        return found

    def _read(self, contexts: list[tuple[int, ...]]) -> _State:
        """The state after some contexts with the same shapes."""
        length = len(contexts[0]) // CHUNK * CHUNK
        key = tuple(context[:length] for context in contexts)
        missing = []
        while length and key not in self.states:
            missing.append(key)
            length -= CHUNK
            key = tuple(context[:length] for context in contexts)
        state = self.states[key] if length else self._empty()
        if length:
            self.states.move_to_end(key)
        for key in reversed(missing):
            state = self._extend(state, [context[-CHUNK:] for context in key])
            self.states[key] = state
            while len(self.states) > KEPT:
                self.states.popitem(last=False)
        whole = len(contexts[0]) // CHUNK * CHUNK
        return self._extend(state, [context[whole:] for context in contexts]) if len(contexts[0]) > whole else state

    def _empty(self) -> _State:
        c = self.model.config
        shape = (c.layers, self.rows, c.kv_heads, 0, c.head_dim)
        empty = jnp.zeros(shape, self.model.compute.dtype)
        return _State(empty, empty, np.zeros(self.rows, np.int32))

    def _extend(self, state: _State, tokens: list[tuple[int, ...]]) -> _State:
        """The state after further tokens of each row."""
        lengths = [len(part) for part in tokens]
        inputs = self._padded(tokens, bucket(max(lengths)))
        self.counts.update(read=sum(lengths), padding=inputs.size - sum(lengths))
        room = -(-int(state.counts.max()) // CHUNK) * CHUNK + inputs.shape[1]
        rows = self._placed({"tokens": inputs, "counts": state.counts})
        keys, values = _extend_program(cast(Any, self.model), self.mesh, _columns(room))(
            self.params, state.keys, state.values, rows["tokens"], rows["counts"]
        )
        counts = state.counts.copy()
        counts[: len(lengths)] += np.array(lengths, np.int32)
        return _State(keys, values, counts)

    def _slots(self, state: _State, shape: int) -> int:
        """How many groups of one context a pass answers.

        Each row of a matrix product is a sum of its own, so slots do not change each other; but a library may sum the
        last rows of a product in another order than the first. On a CPU, where scores must not depend on the slot,
        this is tried out for each shape. Experts put the rows of all slots in an order that depends on all of them.
        """
        if shape > CHUNK or self.model.config.experts is not None:
            return 1
        if self.model.platform != "cpu":
            return SLOTS
        key = (self.model, self.mesh, state.keys.shape[3], shape)
        if key not in _EVEN:
            _EVEN[key] = self._slots_are_even(state, shape)
        return SLOTS if _EVEN[key] else 1

    def _slots_are_even(self, state: _State, shape: int) -> bool:
        """Whether the same tokens have the same bits in every slot."""
        draw = np.random.default_rng(0)
        read = tuple(draw.integers(0, self.model.config.vocab_used, shape).tolist())
        probe = np.resize(np.array(read, np.int32), (self.rows * SLOTS, TARGETS, shape))
        logprobs, _ = self._run_score(state, self._padded([read] * len(probe), shape, len(probe)), probe)
        bits = logprobs.reshape(self.rows, SLOTS, *logprobs.shape[1:])
        return bool((bits == bits[:, :1]).all())

    def _run_score(self, state: _State, inputs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = self._placed({"tokens": inputs, "counts": state.counts, "targets": targets})
        program = _score_program(cast(Any, self.model), self.mesh)
        return jax.device_get(
            program(self.params, state.keys, state.values, rows["tokens"], rows["counts"], rows["targets"])
        )

    def _score(self, state: _State, wave, taken: list[list[int]], slots: int, requests, results) -> None:
        """Answers a group of requests in each slot of each row."""
        texts = [requests[numbers[0]][1] if numbers else () for numbers in taken]
        contexts = [context for context in wave for _ in range(slots)]
        read = [(*context[-1:], *text[:-1]) for context, text in zip(contexts, texts, strict=True)]
        longest = max(map(len, texts))
        for begin in range(0, longest, CHUNK):
            end = min(begin + CHUNK, longest)
            if end == longest or not self.model.config.scalar_head:  # of a reward model the last score alone counts
                self._score_piece(state, read, taken, self.rows * slots, (begin, end), requests, results)
            if end < longest:
                state = self._extend(state, [row[begin:end] for row in read])

    def _score_piece(
        self, state: _State, read, taken: list[list[int]], count: int, piece: tuple[int, int], requests, results
    ) -> None:
        """Adds the log-probabilities of a piece of every group's continuation to `results`.

        The pass has `count` rows, also where fewer are taken: with another number of rows, bits could differ.
        """
        begin, end = piece
        parts = [row[begin:end] for row in read]
        inputs = self._padded(parts, scored_bucket(end - begin), count)
        real = sum(len(part) for part, numbers in zip(parts, taken, strict=True) if numbers)
        self.counts.update(read=real, padding=inputs.size - real)
        targets = np.zeros((count, TARGETS, inputs.shape[1]), np.int32)
        for row, numbers in enumerate(taken):
            for at, number in enumerate(numbers):
                text = requests[number][1][begin:end]
                targets[row, at, : len(text)] = text
        logprobs, greedy = self._run_score(state, inputs, targets)
        for row, numbers in enumerate(taken):
            for at, number in enumerate(numbers):
                size = len(requests[number][1][begin:end])
                found = logprobs[row, at, :size], greedy[row, at, :size]
                results[number] = tuple(
                    np.concatenate([old, new]) for old, new in zip(results[number], found, strict=True)
                )

    def _padded(self, rows: list[tuple[int, ...]], length: int, count: int | None = None) -> np.ndarray:
        padded = np.zeros((count or self.rows, length), np.int32)
        for row, tokens in enumerate(rows):
            padded[row, : len(tokens)] = tokens
        return padded

    def _placed(self, rows: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        if self.mesh is None:
            return {name: jnp.asarray(array) for name, array in rows.items()}
        return {name: chunked.place_rows({name: array}, self.mesh)[name] for name, array in rows.items()}


def _forward(model: Model, params: Params, keys, values, tokens, counts):
    """Hidden states [R · slots, n, d] of `tokens` [R · slots, n], and their own keys and values [layers, R · slots, KV,
    n, hd]. The tokens of every slot of a row follow the `counts` [R] cached tokens of the row."""
    c = model.config
    params = cast_kernels(params, model.compute.dtype)
    (count, length), (rows, cached) = tokens.shape, (keys.shape[1], keys.shape[3])
    positions = counts[:, None] + jnp.arange(length, dtype=jnp.int32)  # [R, n]
    at = jnp.concatenate([jnp.broadcast_to(jnp.arange(cached, dtype=jnp.int32), (rows, cached)), positions], axis=1)
    there = jnp.concatenate([at[:, :cached] < counts[:, None], jnp.ones((rows, length), bool)], axis=1)
    age = positions[:, :, None] - at[:, None, :]
    visible = (there[:, None] & (age >= 0))[:, None]  # [R, 1, n, cached + n]
    age = age[:, None]

    def attend(q, k, v, window, carry, layer):
        k, v = (x.transpose(0, 2, 1, 3).astype(keys.dtype) for x in (k, v))  # [R · slots, KV, n, hd]
        carry = tuple(jax.lax.dynamic_update_index_in_dim(kept, x, layer, 0)
                      for kept, x in zip(carry, (k, v), strict=True))  # fmt: skip
        past_k, past_v = (jax.lax.dynamic_index_in_dim(x, layer, keepdims=False) for x in (keys, values))
        own_k, own_v = (x.reshape(rows, -1, *x.shape[1:]) for x in (k, v))
        grouped = (q * q.shape[-1] ** -0.5).reshape(rows, -1, length, c.kv_heads, c.heads // c.kv_heads, c.head_dim)
        past = jnp.einsum("rsnkgd,rkcd->rkgsnc", grouped, past_k, preferred_element_type=jnp.float32)
        own = jnp.einsum("rsnkgd,rskmd->rkgsnm", grouped, own_k, preferred_element_type=jnp.float32)
        scores = soft_cap(jnp.concatenate([past, own], axis=-1), c.attention_softcap)
        mask = visible if window is None else visible & (age < window)
        p = jax.nn.softmax(jnp.where(mask[:, None, None], scores, MASKED), axis=-1).astype(v.dtype)
        out = jnp.einsum("rkgsnc,rkcd->rsnkgd", p[..., :cached], past_v)
        out += jnp.einsum("rkgsnm,rskmd->rsnkgd", p[..., cached:], own_v)
        return out.astype(q.dtype).reshape(q.shape), carry

    shape = (c.layers, count, c.kv_heads, length, c.head_dim)
    x = model.embed(params["embed"], tokens, model.compute.dtype)
    carry = (jnp.zeros(shape, keys.dtype), jnp.zeros(shape, keys.dtype))
    each = jnp.repeat(positions, count // rows, axis=0)
    x, carry = model.walk(params["layers"], x, model.ropes(each), attend, carry)
    hidden = cast(jax.Array, residual_norm(c).apply({"params": params.get("final_norm", {})}, x))
    return hidden, carry


@functools.lru_cache(maxsize=256)
def _extend_program(model: Any, mesh: jax.sharding.Mesh | None, columns: int):
    """`(params, keys, values, tokens, counts)` → the cache with `columns` columns that holds these tokens too."""

    def extend(params, keys, values, tokens, counts):
        _, new = _forward(model, params, keys, values, tokens, counts)

        def put(old, new):  # [layers, R, KV, columns, hd], written where each row ends
            old = jnp.pad(old, ((0, 0), (0, 0), (0, 0), (0, columns - old.shape[3]), (0, 0)))
            write = lambda row, part, start: jax.lax.dynamic_update_slice(row, part, (0, 0, start, 0))  # noqa: E731
            return jax.vmap(write, in_axes=(1, 1, 0), out_axes=1)(old, new, counts)

        return put(keys, new[0]), put(values, new[1])

    if mesh is None:
        return jax.jit(extend)
    return jax.jit(extend, out_shardings=jax.sharding.NamedSharding(mesh, _CACHE))


@functools.lru_cache(maxsize=16)
def _score_program(model: Any, mesh: jax.sharding.Mesh | None):
    """`(params, keys, values, tokens, counts, targets [R · slots, A, n])` → log-probabilities, and whether each target
    is the most likely token, [R · slots, A, n]; of a reward model its scores at the tokens."""

    def score(params, keys, values, tokens, counts, targets):
        hidden, _ = _forward(model, params, keys, values, tokens, counts)
        if model.config.scalar_head:
            values = jnp.broadcast_to(scalar_head(hidden, params["score"]["kernel"])[:, None], targets.shape)
            return values, jnp.ones(targets.shape, bool)
        logits = head_logits(hidden, model.head_kernel(params), model.config.logits_softcap)  # float32 [R, n, V]
        largest = logits.max(axis=-1)
        logsumexp = largest + jnp.log(jnp.exp(logits - largest[..., None]).sum(axis=-1))
        chosen = jnp.take_along_axis(logits[:, None], targets[..., None], axis=-1)[..., 0]
        return chosen - logsumexp[:, None], chosen >= largest[:, None]

    if mesh is None:
        return jax.jit(score)
    return jax.jit(score, out_shardings=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
