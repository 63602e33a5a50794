"""Who writes: a model of ours over the decode engine, or a server. Both answer asks, each a conversation by its number.

A model keeps the keys and values of each slot (`decode.session`), so that a dialogue that has grown by a turn is not
computed again. The number of an ask chooses its random numbers, so an answer does not depend on the asks beside it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax

from easylm_jax.checkpoint import load as checkpoint_load
from easylm_jax.config import chat_templates
from easylm_jax.config.writing import Server
from easylm_jax.data import templates
from easylm_jax.data.tokenizer import restrict_vocab
from easylm_jax.decode import Engine
from easylm_jax.decode.endpoint import Client, read_journal, request
from easylm_jax.decode.session import Session
from models.errors import UserError

Messages = Sequence[Mapping[str, str]]


class Ask(NamedTuple):
    """A conversation that the speaker continues, and the number that its random numbers depend on."""

    messages: Messages
    number: int


class Said(NamedTuple):
    """An answer: its text, whether the limit of tokens cut it, tokens in and out; `failed` says why there is none."""

    text: str
    cut: bool = False
    tokens_in: int = 0
    tokens_out: int = 0
    failed: str | None = None


@dataclasses.dataclass(frozen=True)
class Manner:
    """How answers are sampled."""

    max_new_tokens: int
    temperature: float
    top_p: float | None = None
    stop: tuple[str, ...] = ()


class Speaker(Protocol):
    """Answers asks, by slot. A slot is used for one dialogue at a time, so that its computation can be reused."""

    name: str
    slots: int

    def answer(self, asks: Mapping[int, Ask], manner: Manner) -> dict[int, Said]:
        """An answer to each ask."""

    def summary(self) -> dict[str, Any]:
        """What has been asked so far, for the statistics of a stage."""


class ModelSpeaker:
    """A model of ours.

    Args:
        path: the model, in the form of `Workspace.model`.
        name: what rows call it.
        chat_template: None: that of the model.
        slots: conversations at a time.
        seed: of the sampling.
        mesh: the devices.
        reuse: whether slots keep what was computed for them.
        system: whether the chat template has a system turn; set by `__init__`.
    """

    def __init__(
        self, path: str, name: str, chat_template: str | None, slots: int, seed: int, mesh: jax.sharding.Mesh,
        reuse: bool = True,
    ):  # fmt: skip
        source = checkpoint_load.load(path.removeprefix("run:"), mesh=mesh)
        template = chat_template or source.template
        if template is None:
            raise UserError(f"{name} has no chat template; set chat_template")
        self.name, self.slots, self._seed, self._reuse = name, slots, seed, reuse
        self._tokenizer, self._template = source.tokenizer, chat_templates.get_template(template)
        self._ends = templates.end_tokens(self._template, source.tokenizer)
        model = restrict_vocab(source.decoder, source.tokenizer)
        engine = Engine(model, slots=slots, mesh=mesh if mesh.size > 1 else None)
        self._session = Session(engine, source.params, slots)
        self._context = engine.max_length
        self._counts = {"answers": 0, "tokens_in": 0, "tokens_out": 0, "too_long": 0}

    def answer(self, asks: Mapping[int, Ask], manner: Manner) -> dict[int, Said]:
        """An answer to each ask; `failed` where a conversation leaves no room in the context."""
        order = sorted(asks)
        rendered = [templates.generation_prompt(self._template, self._turns(asks[slot].messages)) for slot in order]
        ids = {slot: tokens.tolist() for slot, (tokens, _) in
               zip(order, templates.tokenize(rendered, self._tokenizer), strict=True)}  # fmt: skip
        fitting = {slot: tokens for slot, tokens in ids.items() if len(tokens) + manner.max_new_tokens <= self._context}
        if not self._reuse:
            self._session.reset()
        greedy = manner.temperature == 0
        replies = self._session.generate(
            fitting, numbers={slot: asks[slot].number for slot in fitting}, max_new_tokens=manner.max_new_tokens,
            temperature=manner.temperature, top_p=None if greedy else manner.top_p, eos_ids=self._ends,
            stop_strings=manner.stop, seed=self._seed,
            detokenize=functools.partial(self._tokenizer.decode, skip_special=True),
        )  # fmt: skip
        said = {slot: Said("", failed="too long") for slot in ids if slot not in fitting}
        for slot, reply in replies.items():
            text = self._tokenizer.decode(reply.tokens, skip_special=True)
            said[slot] = Said(text, not reply.ended, len(ids[slot]), len(reply.tokens))
            self._counts["tokens_in"] += len(ids[slot])
            self._counts["tokens_out"] += len(reply.tokens)
        self._counts["answers"] += len(replies)
        self._counts["too_long"] += len(ids) - len(fitting)
        return said

    def _turns(self, messages: Messages) -> Messages:
        """Without a system turn where the template has none: its text goes into the first turn."""
        if messages[0]["role"] != "system" or "system" in self._template.turns:
            return messages
        first = {"role": messages[1]["role"], "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
        return [first, *messages[2:]]

    def summary(self) -> dict[str, Any]:
        """Counts of answers and tokens, and the tokens of prompts that were computed and not reused."""
        return {"model": self.name, **self._counts, "tokens_computed": self._session.computed}


class ServerSpeaker:
    """A server. Its answers are kept in a journal, so that a stage that was stopped asks nothing twice."""

    def __init__(self, server: Server, slots: int, seed: int, journal: Path):
        self._client = Client(server)
        self._known = read_journal(journal)
        self.name, self.slots, self._seed, self._journal = f"server:{server.model}", slots, seed, journal

    def answer(self, asks: Mapping[int, Ask], manner: Manner) -> dict[int, Said]:
        """An answer to each ask; `failed` where the server gave none."""
        bodies = {}
        slot_of = {str(ask.number): slot for slot, ask in asks.items()}
        for ask in asks.values():
            body = request(ask.messages, max_tokens=manner.max_new_tokens, temperature=manner.temperature,
                           seed=(self._seed << 31) + ask.number)  # fmt: skip
            body |= {"top_p": manner.top_p} if manner.top_p is not None and manner.temperature else {}
            bodies[str(ask.number)] = body | ({"stop": list(manner.stop)} if manner.stop else {})
        said = {}
        for number, answer in self._client.ask_all(bodies, self._journal, self._known):
            if answer.failed is None:
                self._known[number] = answer
            said[slot_of[number]] = Said(
                answer.text, answer.finish == "length", answer.tokens_in, answer.tokens_out, answer.failed
            )
        return said

    def summary(self) -> dict[str, Any]:
        """The ledger."""
        return {"model": self.name, **self._client.ledger.summary()}


def answer_all(speaker: Speaker, asks: Sequence[Ask], manner: Manner) -> list[Said]:
    """The answers to any number of asks, `slots` at a time."""
    answers: list[Said] = []
    for start in range(0, len(asks), speaker.slots):
        piece = dict(enumerate(asks[start : start + speaker.slots]))
        said = speaker.answer(piece, manner)
        answers += [said[i] for i in range(len(piece))]
    return answers
