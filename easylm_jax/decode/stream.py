"""Responses to requests that come at any time: they join the rows that are decoded at the next block of tokens.

Requests wait in order of arrival and take the next free slot, so that none starves. Greedy and sampled requests have
a session each (their programs differ), which take turns; everything else may differ from request to request.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Callable, Sequence

import numpy as np

from easylm_jax.decode.engine import Engine
from easylm_jax.decode.request import Prompt, Request, cut_at_stop
from easylm_jax.decode.sampling import Mode, Settings
from easylm_jax.decode.session import Session
from models.model import Params

Detokenize = Callable[[Sequence[int]], str]


class Full(Exception):
    """As many requests wait as may."""


@dataclasses.dataclass(eq=False)
class Ticket:
    """A request, and what has been generated for it.

    Attributes:
        tokens: ids of the prompt.
        limit: new tokens at most.
        temperature, top_k, top_p: as for `Engine.generate`.
        stop: texts that end the response.
        seed: the response depends on the prompt and on this.
        done: called once, when the response has ended or the request failed; in the decoding thread.
        response, logprobs: its tokens, an end token included, and their log-probabilities under the model itself.
        ended: whether an end token or a stop text ended it.
        error: why there is no response.
        cancelled: set by whoever no longer wants the response.
    """

    tokens: list[int]
    limit: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int = 0
    done: Callable[[], None] = lambda: None
    response: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    ended: bool = False
    error: str | None = None
    cancelled: bool = False


class Stream:
    """Decodes what is submitted, in a thread of its own.

    Args:
        engine: runs the model.
        params: of the model.
        slots: rows that are decoded at once, for each of the two sessions.
        eos_ids: tokens that end a response.
        detokenize: from ids to text, for stop texts.
        most: requests that may wait.
    """

    def __init__(
        self, engine: Engine, params: Params, *, slots: int, eos_ids: Sequence[int], detokenize: Detokenize,
        most: int = 1024,
    ):  # fmt: skip
        self.engine, self._detokenize, self._most = engine, detokenize, most
        self._eos = np.array(tuple(eos_ids) or (-1,), np.int32)
        self._lanes = {greedy: _Lane(Session(engine, params, slots), greedy) for greedy in (True, False)}
        self._changed, self._closing = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    def check(self, ticket: Ticket) -> None:
        """Raises `UserError` for a request that the model cannot answer."""
        Request(
            prompts=(Prompt(tuple(ticket.tokens)),), numbers=(0,), max_new_tokens=ticket.limit,
            temperature=ticket.temperature, top_k=ticket.top_k, top_p=ticket.top_p, eos_ids=(),
            stop_strings=ticket.stop, detokenize=self._detokenize, samples=1, seed=ticket.seed, scores=True,
        ).check(self.engine.model.config, self.engine.max_length)  # fmt: skip

    def submit(self, ticket: Ticket) -> None:
        """Queues a request that `check` accepts; `Full` if too many wait."""
        with self._changed:
            if self._closing or sum(len(lane.waiting) for lane in self._lanes.values()) >= self._most:
                raise Full
            self._lanes[ticket.temperature == 0].waiting.append(ticket)
            self._changed.notify()

    def close(self) -> None:
        """Answers what was submitted and ends the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not any(lane.waiting or lane.active for lane in self._lanes.values()):
                    if self._closing:
                        return
                    self._changed.wait()
            for lane in self._lanes.values():
                try:
                    lane.work(self._eos, self._detokenize)
                except Exception as error:  # the server goes on; whoever waits is told
                    lane.fail(f"{type(error).__name__}: {error}")


class _Lane:
    """A session with its waiting and its active requests."""

    def __init__(self, session: Session, greedy: bool):
        self.session = session
        self.waiting: collections.deque[Ticket] = collections.deque()
        self.active: dict[int, Ticket] = {}
        self._greedy = greedy
        self._mode = Mode(greedy, not greedy, not greedy, scores=True)
        self._state = session.new_state()
        self._limit = np.zeros(session.slots, np.int32)
        vocab = session.engine.model.config.vocab
        self._settings = {"temperature": np.ones((session.slots, 1), np.float32),
                          "top_k": np.full((session.slots, 1), vocab, np.int32),
                          "top_p": np.ones((session.slots, 1), np.float32)}  # fmt: skip

    def work(self, eos: np.ndarray, detokenize: Detokenize) -> None:
        """Admits waiting requests, and decodes a block."""
        for slot in [slot for slot, ticket in self.active.items() if ticket.cancelled]:
            self._leave(slot)
        new: dict[int, Ticket] = {}
        free = [slot for slot in range(self.session.slots) if slot not in self.active]
        while free and self.waiting:
            ticket = self.waiting.popleft()
            if not ticket.cancelled:
                new[free.pop(0)] = ticket
        with self.session.mesh():
            if new:
                self.active |= new
                self.session.take({slot: ticket.tokens for slot, ticket in new.items()})
                for slot, ticket in new.items():
                    self._begin(slot, ticket)
            if self.active:
                stop_at = max(1, self.session.slots // 8) if self.waiting else None
                out = self.session.block(
                    self._mode, Settings(**self._settings), self._state, self._limit, set(self.active), eos, 0, stop_at
                )
                for slot, ticket in list(self.active.items()):
                    self._collect(slot, ticket, out, detokenize, eos)

    def _begin(self, slot: int, ticket: Ticket) -> None:
        self._state["token"][slot], self._state["count"][slot] = ticket.tokens[-1], len(ticket.tokens) - 1
        self._state["generated"][slot], self._limit[slot] = 0, ticket.limit
        self._state["prompt"][slot], self._state["sample"][slot] = ticket.seed & 0x7FFFFFFF, ticket.seed >> 31
        if not self._greedy:
            vocab = self.session.engine.model.config.vocab
            self._settings["temperature"][slot] = ticket.temperature
            self._settings["top_k"][slot] = vocab if ticket.top_k is None else ticket.top_k
            self._settings["top_p"][slot] = 1.0 if ticket.top_p is None else ticket.top_p

    def _collect(self, slot: int, ticket: Ticket, out, detokenize: Detokenize, eos: np.ndarray) -> None:
        new, before = int(out.emitted[slot]), len(ticket.response)
        ticket.response += out.tokens[slot, :new].tolist()
        ticket.logprobs += out.logprobs_untruncated[slot, :new].tolist()
        cut = cut_at_stop(ticket.response, before, ticket.stop, detokenize) if ticket.stop and new else None
        if cut is not None:
            del ticket.response[cut:], ticket.logprobs[cut:]
        if out.done[slot] or cut is not None:
            ticket.ended = cut is not None or ticket.response[-1] in eos
            self._leave(slot)

    def _leave(self, slot: int) -> None:
        ticket = self.active.pop(slot)
        self.session.forget(slot)
        ticket.done()

    def fail(self, why: str) -> None:
        """Tells all active requests that there is no response."""
        for slot in list(self.active):
            self.active[slot].error = why
            self._leave(slot)
        self.session.reset()
