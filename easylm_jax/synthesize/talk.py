"""Both sides of many dialogues at once: turn by turn, in slots that are refilled as dialogues end (spec sdsd §3)."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

from easylm_jax.config.dialogue import Dialogues
from easylm_jax.config.dialogue_prompts import BROKEN, DONE, END, PROMPTS, Prompts
from easylm_jax.synthesize import dialogue_rules as rules
from easylm_jax.synthesize.speakers import Ask, Manner, Said, Speaker, answer_all

ATTEMPTS = 3  # at a turn: two more after the first (spec sdsd §3)
_PER_DIALOGUE = 64  # numbers of asks that a dialogue has
_FIRST_TURN = 3  # after those of its plan
JUDGE = 50  # the first number of its critiques


def number_of(dialogue: int, call: int) -> int:
    """The number of an ask of a dialogue: each call has its own random numbers, whoever talks beside it."""
    return dialogue * _PER_DIALOGUE + call


@dataclasses.dataclass
class Talk:
    """A dialogue that is under way.

    Attributes:
        spec, plan: what it is to be.
        messages: user and assistant turns so far.
        tokens: new tokens by side.
        resampled: turns that were sampled again, by reason.
        ended: why it ended; None while it goes on.
        marker: whether the agent said that it broke a principle.
        truncated: whether a turn was cut, or the limit of messages was reached before the plan's end.
        farewells: good-byes in a row.
    """

    spec: rules.Spec
    plan: str
    messages: list[rules.Message] = dataclasses.field(default_factory=list)
    tokens: dict[str, int] = dataclasses.field(default_factory=lambda: {"user": 0, "agent": 0})
    resampled: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    ended: str | None = None
    marker: bool = False
    truncated: bool = False
    farewells: int = 0
    done_by_user: bool = False
    tokens_in: int = 0

    @property
    def side(self) -> str:
        """Whose turn it is."""
        return "user" if len(self.messages) % 2 == 0 else "agent"


def hold(stage: Dialogues, user: Speaker, agent: Speaker, planned: Sequence[tuple[rules.Spec, str]]) -> list[Talk]:
    """Plays dialogues to their ends; returns them in order."""
    talks = [Talk(spec, plan) for spec, plan in planned]
    if stage.talk == "script":
        _write_scripts(stage, agent, talks)
        return talks
    waiting = collections.deque(talks)
    slots: dict[int, Talk] = {}
    while waiting or slots:
        for slot in range(min(user.slots, agent.slots)):
            if slot not in slots and waiting:
                slots[slot] = waiting.popleft()
        for side, speaker in (("user", user), ("agent", agent)):
            _take_turn(stage, side, speaker, {slot: talk for slot, talk in slots.items() if talk.ended is None})
        slots = {slot: talk for slot, talk in slots.items() if talk.ended is None}
    for talk in talks:
        if talk.messages and talk.messages[-1]["role"] == "user":
            talk.messages.pop()  # a dialogue ends with the agent
    return talks


def _write_scripts(stage: Dialogues, writer: Speaker, talks: Sequence[Talk]) -> None:
    """Each dialogue in one call; one with a fault is written again."""
    texts, left = PROMPTS[stage.prompts], list(talks)
    for attempt in range(ATTEMPTS):
        asks = []
        for talk in left:
            spec = talk.spec
            content = texts.script.format(
                persona=spec["persona"], goal=spec["goal"], plan=talk.plan,
                principles=rules.numbered(spec["principle"]), broken=BROKEN, done=DONE,
                exchanges=max(1, spec["target_turns"] // 2),
            )  # fmt: skip
            asks.append(Ask([{"role": "user", "content": content}], number_of(spec["id"], _FIRST_TURN + attempt)))
        answers = answer_all(writer, asks, Manner(stage.script_tokens, stage.agent_temperature, stage.top_p))
        left = [talk for talk, said in zip(left, answers, strict=True)
                if not _accept_script(stage, talk, said, last=attempt == ATTEMPTS - 1)]  # fmt: skip


def _accept_script(stage: Dialogues, talk: Talk, said: Said, *, last: bool) -> bool:
    """Takes a written dialogue up to its first turn with a fault, if there is an exchange before that."""
    talk.tokens["agent"] += said.tokens_out
    talk.tokens_in += said.tokens_in
    if said.failed is not None:
        talk.ended, talk.truncated = f"no answer: {said.failed[:60]}", True
        return True
    messages, whole = rules.script_of(said.text)
    fault = None if messages else "empty"
    for message in messages[: stage.max_messages]:
        text, marked = rules.cleaned(message["content"], "user" if message["role"] == "user" else "agent")
        fault = rules.turn_fault(text, talk.plan, [one["content"] for one in talk.messages])
        if fault is not None:
            break
        talk.messages.append({"role": message["role"], "content": text})
        talk.marker |= marked and message["role"] == "assistant"
    if len(talk.messages) % 2:
        talk.messages.pop()
    if fault is not None:
        talk.resampled[fault] += 1
        if not last:
            talk.messages, talk.marker = [], False
            return False
        talk.ended = f"turn: {fault}"
        return True
    talk.truncated = said.cut or not whole or len(messages) > stage.max_messages
    talk.ended = "a turn was cut" if said.cut else "message limit" if talk.truncated else "last beat"
    return True


def _take_turn(stage: Dialogues, side: str, speaker: Speaker, talks: dict[int, Talk]) -> None:
    """One turn of one side in every dialogue; a turn with a fault is sampled again."""
    texts = PROMPTS[stage.prompts]
    tokens, heat = ((stage.user_tokens, stage.user_temperature) if side == "user" else
                    (stage.agent_tokens, stage.agent_temperature))  # fmt: skip
    manner = Manner(tokens, heat, stage.top_p)
    for attempt in range(ATTEMPTS):
        if not talks:
            return
        asks = {}
        for slot, talk in talks.items():
            view = user_view(texts, talk) if side == "user" else agent_view(texts, talk, stage.talk)
            call = _FIRST_TURN + len(talk.messages) * ATTEMPTS + attempt
            asks[slot] = Ask(view, number_of(talk.spec["id"], call))
        said = speaker.answer(asks, manner)
        talks = {slot: talk for slot, talk in talks.items()
                 if not _accept(stage, talk, side, said[slot], last=attempt == ATTEMPTS - 1)}  # fmt: skip


def _accept(stage: Dialogues, talk: Talk, side: str, said: Said, *, last: bool) -> bool:
    """Appends a turn if nothing is wrong with it; returns whether no further attempt is needed."""
    talk.tokens[side] += said.tokens_out
    talk.tokens_in += said.tokens_in
    if said.failed is not None:
        talk.ended, talk.truncated = f"no answer: {said.failed[:60]}", True
        return True
    text, marked = rules.cleaned(said.text, side)
    fault = rules.turn_fault(text, talk.plan, [message["content"] for message in talk.messages])
    if fault is not None:
        talk.resampled[fault] += 1
        if last:
            talk.ended = f"turn: {fault}"
        return last
    talk.messages.append({"role": "user" if side == "user" else "assistant", "content": text})
    talk.farewells = talk.farewells + 1 if rules.is_farewell(text) else 0
    if side == "user":
        talk.done_by_user = marked
    else:
        talk.marker |= marked
    _stop(stage, talk, side, said.cut)
    return True


def _stop(stage: Dialogues, talk: Talk, side: str, cut: bool) -> None:
    """The rules by which a dialogue ends (spec sdsd §3)."""
    count = len(talk.messages)
    target = min(talk.spec["target_turns"], stage.max_messages)
    if cut:
        talk.ended, talk.truncated = "a turn was cut", True
    elif side == "user":
        return  # the agent answers also the last message
    elif talk.done_by_user:
        talk.ended = "end marker"
    elif count >= target:
        talk.ended = "last beat"
    elif talk.farewells >= 2:
        talk.ended = "farewell"
    elif count + 2 > stage.max_messages:
        talk.ended, talk.truncated = "message limit", True


def user_view(texts: Prompts, talk: Talk) -> list[rules.Message]:
    """What the user's side sees: the plan, and the conversation with the roles exchanged."""
    spec = talk.spec
    system = texts.user.format(persona=spec["persona"], goal=spec["goal"], plan=talk.plan, end=END)
    others = [texts.opening, *(message["content"] for message in talk.messages[1::2])]
    view = [{"role": "system", "content": system}]
    for beat, other in enumerate(others, 1):
        view.append({"role": "user", "content": other + texts.beat.format(beat=beat)})
        view += [{"role": "assistant", "content": message["content"]} for message in talk.messages[2 * beat - 2 :][:1]]
    return view


def agent_view(texts: Prompts, talk: Talk, manner: str) -> list[rules.Message]:
    """What the agent's side sees: the conversation; an informed agent also the plan."""
    text = texts.informed if manner == "informed" else texts.blind
    system = text.format(plan=talk.plan, principles=rules.numbered(talk.spec["principle"]), broken=BROKEN)
    return [*([{"role": "system", "content": system}] if system else []), *talk.messages]


def row_of(talk: Talk, stage: Dialogues, model: str, version: str) -> dict[str, Any]:
    """A dialogue as a row, before it is judged (spec sdsd §7)."""
    spec = talk.spec
    return {
        **spec, "model": model, "talk_mode": stage.talk, "plan": talk.plan, "messages": talk.messages,
        "n_turns": len(talk.messages), "is_truncated": talk.truncated, "ended": talk.ended,
        "planned": spec["mode"] == "violate", "marker": None if stage.talk == "blind" else talk.marker,
        "resampled": dict(talk.resampled), "seed": stage.seed, "prompt_version": version,
        "tokens_in": talk.tokens_in, "tokens_user": talk.tokens["user"], "tokens_agent": talk.tokens["agent"],
    }  # fmt: skip
