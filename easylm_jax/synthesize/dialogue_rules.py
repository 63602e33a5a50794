"""Rules of self-directed dialogues without a model: specs, checks of plans and turns, reading of critiques (spec sdsd).

specs → plans (`plan_fault`) → turns (`turn_fault`) → critiques (`violations_of`) → filters (`dialogue_filters`)
"""

from __future__ import annotations

import collections
import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from easylm_jax.config.dialogue_prompts import BROKEN, DONE, END
from easylm_jax.data.curation.texts import words
from models.errors import UserError

Message = dict[str, str]
_LABEL = re.compile(r"^\s*(?:\W{0,3})(USER|AGENT|ASSISTANT|SYSTEM|HUMAN)\W{0,3}:", re.IGNORECASE | re.MULTILINE)
_SIDE = re.compile(r"^[ \t]*[*_]{0,2}(USER|AGENT)[*_]{0,2}:[*_]{0,2}", re.IGNORECASE | re.MULTILINE)
_MARKUP = re.compile(r"<\|[a-z_]+\|>|</?s>|\[/?INST\]")
_BEAT = re.compile(r"^\s*\(?(\d{1,2})[.):]", re.MULTILINE)
_LIST = re.compile(r"PRINCIPLES\s+VIOLATED\s*:?[^\[\n]*\[([^\]\n]*)\]", re.IGNORECASE)
_FAREWELL = re.compile(r"\b(?:good ?bye|bye|farewell|see you|take care|have a (?:great|nice|good) (?:day|one))\b", re.I)
_REFUSAL = re.compile(r"^\W*(?:i'?m sorry|sorry|i can(?:no|')t|i am unable|i won'?t)\b.{0,120}$", re.I | re.S)


class Principle(TypedDict):
    """A row of the principles."""

    pid: str
    text: str


class Spec(TypedDict):
    """What a dialogue is to be."""

    id: int
    domain: str
    subarea: str
    gid: str
    goal: str
    pids: list[str]
    principle: list[str]
    persona: str
    mode: str
    target_turns: int


def check_principles(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raises `UserError` for principles that are equal, have no number or more than 40 words."""
    seen: dict[str, str] = {}
    for row in rows:
        if not isinstance(row.get("pid"), str) or not isinstance(row.get("text"), str):
            raise UserError(f"principles: a row must have pid and text, both texts, not {str(row)[:80]}")
        normal = " ".join(words(row["text"]))
        if not 1 <= len(normal.split()) <= 40:
            raise UserError(f"principles: {row['pid']} has {len(normal.split())} words; 1 to 40 are allowed")
        if normal in seen:
            raise UserError(f"principles: {row['pid']} says what {seen[normal]} says")
        seen[normal] = row["pid"]
    if len({row["pid"] for row in rows}) < len(rows):
        raise UserError("principles: a pid occurs twice")


def make_specs(
    count: int, seed: int, violate: float, most_messages: int, *, domains: Sequence[Mapping[str, Any]],
    goals: Sequence[Mapping[str, Any]], principles: Sequence[Mapping[str, Any]], personas: Sequence[Mapping[str, Any]],
) -> list[Spec]:  # fmt: skip
    """Specs in which every domain, goal, principle and persona is as frequent as the others, to within one.

    `violate` of them aim at a violation; the messages of a dialogue are even and uniform from 4 to `most_messages`.
    """
    random = np.random.Generator(np.random.PCG64([seed, 0x5D5D]))

    def deck(size: int) -> Any:
        while True:
            yield from random.permutation(size).tolist()

    decks = {name: deck(len(rows)) for name, rows in
             (("domain", domains), ("goal", goals), ("principle", principles), ("persona", personas))}  # fmt: skip
    subareas = [deck(len(row["subareas"])) for row in domains]
    lengths = list(range(min(4, most_messages), most_messages + 1, 2))
    specs: list[Spec] = []
    for i in range(count):
        at = next(decks["domain"])
        goal = goals[next(decks["goal"])]
        wanted = int(random.integers(1, min(3, len(principles)) + 1))
        chosen: list[int] = []
        while len(chosen) < wanted:
            index = next(decks["principle"])
            chosen += [index] if index not in chosen else []
        specs.append(Spec(
            id=i, domain=domains[at]["domain"], subarea=domains[at]["subareas"][next(subareas[at])], gid=goal["gid"],
            goal=goal["text"], pids=[principles[c]["pid"] for c in chosen],
            principle=[principles[c]["text"] for c in chosen], persona=personas[next(decks["persona"])]["text"],
            mode="violate" if int((i + 1) * violate) > int(i * violate) else "cooperate",
            target_turns=lengths[int(random.integers(len(lengths)))],
        ))  # fmt: skip
    return specs


def shares_run(text: str, other: str, n: int) -> bool:
    """Whether two texts have n words in a row in common."""
    a, b = words(text), words(other)
    grams = {tuple(b[i : i + n]) for i in range(len(b) - n + 1)}
    return any(tuple(a[i : i + n]) in grams for i in range(len(a) - n + 1))


def plan_fault(plan: str, principles: Sequence[str], needs_beats: bool = True) -> str | None:
    """Why a plan is not used: empty, no numbered beats, dialogue in it, or more than 8 words of a principle."""
    if not plan.strip():
        return "empty"
    if needs_beats and not _BEAT.search(plan):
        return "no beats"
    if _LABEL.search(plan):
        return "dialogue in it"
    if any(shares_run(plan, text, 9) for text in principles):
        return "copies a principle"
    return None


def beats_of(plan: str) -> int:
    """The numbered lines of a plan."""
    return len(set(_BEAT.findall(plan)))


def cleaned(text: str, side: str) -> tuple[str, bool]:
    """A turn without markers, and whether there was one: the end (user), or a broken principle (agent)."""
    marker = END if side == "user" else BROKEN
    return text.replace(marker, "").strip(), marker in text


def turn_fault(text: str, plan: str, earlier: Sequence[str]) -> str | None:
    """Why a turn is sampled again: empty, a role's label or a template's token, the plan, a loop, an earlier turn."""
    if not text:
        return "empty"
    if _LABEL.search(text) or _MARKUP.search(text):
        return "role label"
    if END in text or BROKEN in text:
        return "marker"
    if shares_run(text, plan, 9):
        return "plan"
    split = words(text)
    grams = collections.Counter(tuple(split[i : i + 6]) for i in range(len(split) - 5))
    if grams and grams.most_common(1)[0][1] >= 4:
        return "loop"
    if text in earlier:
        return "repeats a turn"
    return None


def script_of(text: str) -> tuple[list[Message], bool]:
    """The messages of a dialogue that was written in one piece, and whether its end was: USER and AGENT by turns, from
    the first USER on; what comes after `DONE`, or after a side that speaks twice in a row, is left out."""
    lines, end, _ = text.partition(f"\n{DONE}")
    parts = _SIDE.split(lines)
    messages: list[Message] = []
    for side, said in zip(parts[1::2], parts[2::2], strict=True):
        role = "user" if side.upper() == "USER" else "assistant"
        if role != ("user", "assistant")[len(messages) % 2]:
            if not messages:
                continue
            return messages, False
        messages.append({"role": role, "content": said.strip()})
    return messages, bool(end)


def is_farewell(text: str) -> bool:
    """Whether a short message says good-bye."""
    return len(text.split()) <= 30 and _FAREWELL.search(text) is not None


def violations_of(critique: str, count: int) -> list[int] | None:
    """The principles, from 1, that a critique names in its last list; None if it has no list or names another number.

    Lists are "[1,2]", "[ ]", "[1-3]" and "[2 4]"; "none" is an empty list.
    """
    lists = _LIST.findall(critique)
    if not lists:
        return None
    text = lists[-1].strip()
    if text.casefold() in ("", "none"):
        return []
    found: set[int] = set()
    for part in re.split(r"[,;\s]+", re.sub(r"\s*[-–]\s*", "-", text)):
        match = re.fullmatch(r"#?(\d{1,3})(?:-(\d{1,3}))?", part)
        if match is None:
            return None
        first, last = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= last <= count:
            return None
        found |= set(range(first, last + 1))
    return sorted(found)


def numbered(principles: Sequence[str]) -> str:
    """The principles as numbered lines."""
    return "\n".join(f"{i}. {text}" for i, text in enumerate(principles, 1))


def transcript(messages: Sequence[Message]) -> str:
    """Messages as lines of USER and AGENT, without a system turn."""
    names = {"user": "USER", "assistant": "AGENT"}
    return "\n".join(f"{names[m['role']]}: {m['content']}" for m in messages if m["role"] in names)


def changed(old: str, new: str) -> float:
    """The share of words that differ between two texts: 1 − 2 · words in common, in order / words of both."""
    return 1 - difflib.SequenceMatcher(None, words(old), words(new), autojunk=False).ratio()


def is_bare_refusal(text: str) -> bool:
    """Whether a short text only declines."""
    return _REFUSAL.search(text) is not None
