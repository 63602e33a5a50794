"""Log-likelihoods of continuations given contexts, and scores of reward models, bitwise independent of what else is
asked.

    context = c_1 … c_n         prefix pass(es) over c_1 … c_n: keys and values of every layer, in a cache; and from the
                                last hidden state log P(y_1 | context) of every continuation
    continuation = y_1 … y_m    scoring pass over y_1 … y_{m−1} against that cache: log P(y_i | context, y_<i), i > 1

A context is read in pieces of `CHUNK` tokens and a rest, which is padded to a bucket; the continuation is padded to a
bucket of its own (`scored_bucket`), and one of a single token needs no pass. Every shape therefore follows from the
request's own lengths. On a CPU a device computes four short contexts or a long one at a time (`OTHER_ROWS` elsewhere)
and four continuations of each, in slots; that rows and slots are alike is tried out. So in float32 on a CPU a score
has the same bits whatever stands beside the request, in whatever order or number, and on any mesh that splits rows
alone. On accelerators rows share matrix products, whose tiles a neighbour does not change either, but the compiler
promises nothing; with `tp` sums are split and may differ in the last bits.

Requests with the same context share its passes, and contexts that begin with the same pieces (few-shot examples)
share those: reading a piece again would give the same bits.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from easylm_jax.decode.likelihood_programs import (
    CACHE,
    extend_program,
    first_program,
    prepare_program,
    row_program,
    score_program,
)
from easylm_jax.runtime import chunked
from easylm_jax.runtime.mesh import BATCH_AXES, batch_split
from models.config import Placement
from models.errors import UserError
from models.model import Model, Params

Request = tuple[Sequence[int], Sequence[int]]  # token ids of the context and of the continuation
CHUNK = 128  # tokens of a whole piece of a context, and most tokens of a scoring pass
ROWS = {"cpu": 4}  # contexts of one pass on one device
OTHER_ROWS = 16
SLOTS = 4  # continuations of one context that a scoring pass reads
SHORT = 8  # positions of the shortest scoring pass
TARGETS = 8  # continuations that share a scoring pass: they differ in their last token only
_EVEN: dict[Any, bool] = {}  # by shape: whether the rows of a pass are alike to the last bit
PENDING = 4  # passes that run while earlier results are read
KEPT = 16  # states after whole pieces that are kept for later contexts


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
    """Positions of a scoring pass that reads `length` tokens: 8, 16, 24, 32, 48, …

    The options of a question mostly have two to nine tokens: in one shape they share a pass.
    """
    return max(SHORT, bucket(length))


def _columns(tokens: int) -> int:
    """Columns of a cache that holds `tokens` tokens: half a piece, or a bucketed number of whole ones; 0 if empty."""
    if 0 < tokens <= CHUNK // 2:
        return CHUNK // 2
    pieces = -(-tokens // CHUNK)
    size = 1 if pieces else 0
    while size < pieces:  # 1, 2, 3, 4, 6, 8, 12, …
        size = 2 if size == 1 else size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size * CHUNK


class _State(NamedTuple):
    """Keys and values [layers, rows, KV, columns, hd] of the first `counts` [rows] tokens of some sequences, and the
    hidden state [rows, d] of the last of them."""

    keys: jax.Array
    values: jax.Array
    last: jax.Array | None  # None before the first token
    counts: np.ndarray


class _Scorer:
    """Passes of one model over rows of one mesh."""

    def __init__(self, model: Model, params: Params, mesh: jax.sharding.Mesh | None):
        split = mesh is not None and mesh.size > 1
        placement = Placement(batch=BATCH_AXES, tensor="tp", experts="ep") if split else Placement()
        self.model: Model = dataclasses.replace(model, placement=placement)  # type: ignore[type-var]
        self.mesh = mesh
        self.weights = prepare_program(cast(Any, self.model), mesh)(params)
        self.split = 1 if mesh is None else batch_split(mesh)
        self.rows = ROWS.get(model.platform, OTHER_ROWS) * self.split
        self.states: collections.OrderedDict[tuple, _State] = collections.OrderedDict()
        self.counts: collections.Counter[str] = collections.Counter(read=0, padding=0)
        self.pending: collections.deque[tuple[Any, Callable]] = collections.deque()  # passes whose results are not read

    def run(
        self, requests: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], progress: Callable[[int], None] | None
    ) -> list[tuple[np.ndarray, np.ndarray]]:  # fmt: skip
        """The log-probabilities of all requests, in their order."""
        results: list[Any] = [(np.zeros(0, np.float32), np.zeros(0, bool))] * len(requests)
        contexts: dict[tuple[int, ...], list[int]] = {}
        for number, (context, continuation) in enumerate(requests):
            if continuation:
                contexts.setdefault(context, []).append(number)
        for rows, wave in self._waves(contexts):
            state = self._read(wave, rows)
            self._score_first(state, [contexts[context] for context in wave], requests, results, progress)
            todo = [self._groups(requests, contexts[context]) for context in wave]
            for shape in sorted({shape for groups in todo for shape in groups}):
                queues = [collections.deque(groups.get(shape, ())) for groups in todo]
                for part, own in self._parts(state, queues, shape):
                    slots = self._slots(part, shape)
                    while any(own):
                        taken = [queue.popleft() if queue else [] for queue in own for _ in range(slots)]
                        self._score(part, taken, slots, requests, results)
                        if progress is not None:
                            progress(sum(map(len, taken)))
        self._finish(0)
        return results

    def _finish(self, most: int) -> None:
        """Reads the results of the oldest passes, until at most so many are left: while one is read, the next ones
        run."""
        while len(self.pending) > most:
            arrays, keep = self.pending.popleft()
            keep(*jax.device_get(arrays))

    def _waves(self, contexts: dict[tuple[int, ...], list[int]]) -> Iterator[tuple[int, list[tuple[int, ...]]]]:
        """(rows of a pass, at most as many contexts): those of a wave have the same shapes; in order, for their common
        beginnings."""
        waiting: dict[tuple[int, int], list[tuple[int, ...]]] = {}
        for context in sorted(contexts):
            whole, rest = divmod(len(context), CHUNK)
            shape = whole, bucket(rest) if rest else 0
            wave = waiting.setdefault(shape, [])
            wave.append(context)
            if len(wave) == self._rows(*shape):
                yield len(wave), wave[:]
                wave.clear()
        yield from ((self._rows(*shape), wave) for shape, wave in waiting.items() if wave)

    def _groups(self, requests, numbers: list[int]) -> dict[int, list[list[int]]]:
        """Requests of one context with more than one token, by bucketed length, in groups that one scoring pass
        answers: their continuations differ in the last token alone, so that the model reads the same tokens."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for number in numbers:
            if len(requests[number][1]) > 1:
                groups.setdefault(requests[number][1][:-1], []).append(number)
        found: dict[int, list[list[int]]] = {}
        for read, members in groups.items():
            shape = len(read) if len(read) > CHUNK else scored_bucket(len(read))
            found.setdefault(shape, []).extend(members[i : i + TARGETS] for i in range(0, len(members), TARGETS))
        return found

    def _parts(self, state: _State, queues: list, shape: int) -> Iterator[tuple[_State, list]]:
        """The state of all contexts for short continuations, which most contexts of a wave have; else one context of
        each device after the other, so that those without a continuation of this shape are not padding."""
        each = len(state.counts) // self.split
        if each == 1 or shape <= SHORT or self.model.platform != "cpu":
            yield state, queues
            return
        for row in range(each):
            own = queues[row::each]
            if any(own):
                keys, values = row_program(self.mesh, self.split)(state.keys, state.values, row)
                yield _State(keys, values, None, state.counts[row::each]), own

    def _read(self, contexts: list[tuple[int, ...]], rows: int) -> _State:
        """The state after some contexts with the same shapes."""
        length = len(contexts[0]) // CHUNK * CHUNK
        beginnings = tuple(context[:length] for context in contexts)
        missing = []
        while length and beginnings not in self.states:
            missing.append(beginnings)
            length -= CHUNK
            beginnings = tuple(context[:length] for context in contexts)
        state = self.states[beginnings] if length else self._empty(rows)
        if length:
            self.states.move_to_end(beginnings)
        for beginnings in reversed(missing):
            state = self._extend(state, [context[-CHUNK:] for context in beginnings])
            self.states[beginnings] = state
            while len(self.states) > KEPT:
                self.states.popitem(last=False)
        whole = len(contexts[0]) // CHUNK * CHUNK
        return self._extend(state, [context[whole:] for context in contexts]) if len(contexts[0]) > whole else state

    def _empty(self, rows: int) -> _State:
        c = self.model.config
        shape = (c.layers, rows, c.kv_heads, 0, c.head_dim)
        empty = jnp.zeros(shape, self.model.compute.dtype)
        return _State(empty, empty, None, np.zeros(rows, np.int32))

    def _extend(self, state: _State, tokens: list[tuple[int, ...]], counted: bool = True) -> _State:
        """The state after further tokens of each row."""
        lengths = [len(part) for part in tokens]
        inputs = _padded(tokens, bucket(max(lengths)), len(state.counts))
        if counted:
            self.counts.update(read=sum(lengths), padding=inputs.size - sum(lengths))
        room = -(-int(state.counts.max()) // CHUNK) * CHUNK + inputs.shape[1]
        new = np.zeros_like(state.counts)
        new[: len(lengths)] = lengths
        rows = self._placed({"tokens": inputs, "counts": state.counts, "new": new})
        keys, values, last = extend_program(cast(Any, self.model), self.mesh, _columns(room))(
            self.weights, state.keys, state.values, rows["tokens"], rows["counts"], rows["new"]
        )
        return _State(keys, values, last, state.counts + new)

    # Each row of a matrix product is a sum of its own, so rows do not change each other; but a library may sum the last
    # rows of a product in another order than the first. On a CPU, where scores must not depend on the row, this is
    # tried out for each shape, with the same tokens in all rows. Experts put the tokens of all rows in an order that
    # depends on all of them.

    def _rows(self, whole: int, rest: int) -> int:
        """How many contexts of so many pieces and of a padded rest a pass reads. On a CPU long ones keep all cores busy
        alone."""
        if self.model.platform != "cpu":
            return self.rows
        if whole or rest > CHUNK // 2:
            return self.split
        if self.model.config.experts is None and self._is_even("extend", 0, rest) and self._is_even("first", 0, 1):
            return self.rows
        return self.split

    def _slots(self, state: _State, shape: int) -> int:
        """How many groups of one context a scoring pass answers."""
        if shape > CHUNK or self.model.config.experts is not None:
            return 1
        if self.model.platform != "cpu" or self._is_even("score", state.keys.shape[3], shape, len(state.counts)):
            return SLOTS
        return 1

    def _is_even(self, kind: str, columns: int, tokens: int, rows: int | None = None) -> bool:
        """Whether all rows of a pass over `tokens` tokens, behind `columns` cached ones, have the same bits ("first":
        of the head alone)."""
        rows = rows or self.rows
        key = (self.model, self.mesh, kind, columns, tokens, rows)
        if key not in _EVEN:
            _EVEN[key] = self._rows_are_even(kind, columns, tokens, rows)
        return _EVEN[key]

    def _rows_are_even(self, kind: str, columns: int, tokens: int, rows: int) -> bool:
        c, draw = self.model.config, np.random.default_rng(0)
        read = tuple(draw.integers(0, c.vocab_used, tokens).tolist())
        cached = draw.normal(size=(2, c.layers, 1, c.kv_heads, columns, c.head_dim)).astype(np.float32)
        keys, values = jnp.repeat(jnp.asarray(cached, self.model.compute.dtype), rows, axis=2)
        if self.mesh is not None:
            keys, values = jax.device_put((keys, values), jax.sharding.NamedSharding(self.mesh, CACHE))
        state = _State(keys, values, None, np.full(rows, columns, np.int32))
        if kind == "first":
            hidden = np.repeat(draw.normal(size=(1, c.width)), rows, axis=0).astype(self.model.compute.dtype)
            last = self._placed({"last": hidden})["last"]
            found = [np.asarray(jax.device_get(self._run_first(last, np.zeros((rows, TARGETS), np.int32))[0]))]
        elif kind == "extend":
            after = self._extend(state, [read] * rows, counted=False)
            found = [np.moveaxis(np.asarray(jax.device_get(x)), 1, 0) for x in (after.keys, after.values)]
            found.append(np.asarray(jax.device_get(after.last)))
        else:
            probe = np.resize(np.array(read, np.int32), (rows * SLOTS, TARGETS, tokens))
            found = [jax.device_get(self._run_score(state, _padded([read] * len(probe), tokens, len(probe)), probe)[0])]
        return all(bool((array == array[:1]).all()) for array in found)

    def _run_score(self, state: _State, inputs: np.ndarray, targets: np.ndarray) -> tuple[jax.Array, jax.Array]:
        rows = self._placed({"tokens": inputs, "counts": state.counts, "targets": targets})
        program = score_program(cast(Any, self.model), self.mesh)
        return program(self.weights, state.keys, state.values, rows["tokens"], rows["counts"], rows["targets"])

    def _run_first(self, last: jax.Array, targets: np.ndarray) -> tuple[jax.Array, jax.Array]:
        program = first_program(cast(Any, self.model), self.mesh)
        return program(self.weights, last, self._placed({"targets": targets})["targets"])

    def _score_first(self, state: _State, members: list[list[int]], requests, results, progress) -> None:
        """Adds the log-probability of the first token of every continuation. Of a reward model the score of the context
        is added where the response is empty."""
        assert state.last is not None
        queues: list[dict[int, list[int]]] = [{} for _ in members]  # requests by their first token
        for queue, numbers in zip(queues, members, strict=True):
            for number in numbers:
                if len(requests[number][1]) == 1 or not self.model.config.scalar_head:
                    queue.setdefault(requests[number][1][0], []).append(number)
        tokens = [list(queue) for queue in queues]
        for begin in range(0, max(map(len, tokens)), TARGETS):
            targets = np.zeros((len(state.counts), TARGETS), np.int32)
            for row, own in enumerate(tokens):
                part = own[begin : begin + TARGETS]
                targets[row, : len(part)] = part
            answered = [
                (number, row, at)
                for row, own in enumerate(tokens)
                for at, token in enumerate(own[begin : begin + TARGETS])
                for number in queues[row][token]
            ]

            def keep(logprobs, greedy, answered=answered):
                for number, row, at in answered:
                    results[number] = logprobs[row, at : at + 1], greedy[row, at : at + 1]

            self.pending.append((self._run_first(state.last, targets), keep))
        if progress is not None:
            progress(sum(len(requests[number][1]) == 1 for numbers in members for number in numbers))

    def _score(self, state: _State, taken: list[list[int]], slots: int, requests, results) -> None:
        """Answers a group of requests in each slot of each row."""
        read = [requests[numbers[0]][1][:-1] if numbers else () for numbers in taken]
        longest = max(map(len, read))
        for begin in range(0, longest, CHUNK):
            end = min(begin + CHUNK, longest)
            if end == longest or not self.model.config.scalar_head:  # of a reward model the last score alone counts
                self._score_piece(state, read, taken, len(state.counts) * slots, (begin, end), requests, results)
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
        inputs = _padded(parts, scored_bucket(end - begin), count)
        real = sum(len(part) for part, numbers in zip(parts, taken, strict=True) if numbers)
        self.counts.update(read=real, padding=inputs.size - real)
        targets = np.zeros((count, TARGETS, inputs.shape[1]), np.int32)
        for row, numbers in enumerate(taken):
            for at, number in enumerate(numbers):
                text = requests[number][1][begin + 1 : end + 1]
                targets[row, at, : len(text)] = text

        def keep(logprobs, greedy):
            for row, numbers in enumerate(taken):
                for at, number in enumerate(numbers):
                    size = len(parts[row])
                    found = logprobs[row, at, :size], greedy[row, at, :size]
                    results[number] = tuple(
                        np.concatenate([old, new]) for old, new in zip(results[number], found, strict=True)
                    )

        self.pending.append((self._run_score(state, inputs, targets), keep))
        self._finish(PENDING)

    def _placed(self, rows: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        if self.mesh is None:
            return {name: jnp.asarray(array) for name, array in rows.items()}
        return {name: chunked.place_rows({name: array}, self.mesh)[name] for name, array in rows.items()}


def _padded(rows: list[tuple[int, ...]], length: int, count: int) -> np.ndarray:
    """Token ids int32 [count, length], zero where a row ends."""
    padded = np.zeros((count, length), np.int32)
    for row, tokens in enumerate(rows):
        padded[row, : len(tokens)] = tokens
    return padded
