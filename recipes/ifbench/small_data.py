"""Requests and instructions that a tiny model can follow, for `recipes/ifbench/small.py`.

A request asks for a few words, with instructions of IFEval and IFTrain. Pages for pre-training follow them. Responses
in the conversations for fine-tuning ignore half of the instructions, which reinforcement learning can improve. Two
instructions never occur in the prompts of reinforcement learning. A hash of its words decides whether a request is held
out.
"""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from recipes.arithmetic import WORDS
from recipes.ifbench.data import Request, drawn, row

TRAINED = (
    "punctuation:no_comma",
    "punctuation:punctuation_dot",
    "startend:quotation",
    "first_word:first_word_answer",
    "last_word:last_word_answer",
)
OTHERS = ("keywords:existence", "detectable_format:title")  # not in the prompts of reinforcement learning
NAMED = ("oak", "river", "sun", "tree")  # words that instructions name; requests use the others
SAID = [word for word in WORDS if word not in NAMED]
OVERLOOKED = 0.5  # share of instructions that responses for fine-tuning ignore
HELD_OUT = 0.08

Given = Mapping[str, Mapping[str, Any]]


def requests(rng: random.Random, *, held_out: bool) -> Iterator[list[str]]:
    """Two to four words to say, of one part."""
    while True:
        words = rng.sample(SAID, rng.randint(2, 4))
        if (zlib.crc32(" ".join(words).encode()) % 10_000 < HELD_OUT * 10_000) == held_out:
            yield words


def instructed(rng: random.Random, pool: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """One to three instructions of the pool with their arguments, words that no request has."""
    ids = drawn(rng, list(pool), rng.randint(1, 3))
    first, last, *keywords = rng.sample(NAMED, 4)
    arguments = {
        "first_word:first_word_answer": {"first_word": first},
        "last_word:last_word_answer": {"last_word": last},
        "keywords:existence": {"keywords": keywords},
    }
    return {name: arguments.get(name, {}) for name in ids}


def answer(words: list[str], given: Given) -> str:
    """The words, separated by commas and with a full stop, but for what the instructions say."""
    said = [*words, *given.get("keywords:existence", {}).get("keywords", [])]
    if "first_word:first_word_answer" in given:
        said.insert(0, given["first_word:first_word_answer"]["first_word"])
    if "last_word:last_word_answer" in given:
        said.append(given["last_word:last_word_answer"]["last_word"])
    if "detectable_format:title" in given:
        said[0] += " <<words>>"
    text = (" " if "punctuation:no_comma" in given else ", ").join(said)
    text += "" if "punctuation:punctuation_dot" in given else "."
    return f'"{text}"' if "startend:quotation" in given else text


def prompt(words: list[str], given: Given) -> dict[str, Any]:
    """A row in the form of IF-RLVR's prompts."""
    request = Request(" ".join(words), f"Say these words: {' '.join(words)}.")
    return row(request, list(given), list(given.values()))


def conversation(rng: random.Random, words: list[str]) -> dict[str, Any]:
    """A prompt and what a careless annotator answers."""
    given = instructed(rng, (*TRAINED, *OTHERS))
    followed = {name: own for name, own in given.items() if rng.random() >= OVERLOOKED}
    (message,) = prompt(words, given)["messages"]
    return {"messages": [message, {"role": "assistant", "content": answer(words, followed)}]}


def page(rng: random.Random, words: Iterator[list[str]]) -> dict[str, str]:
    """Four exchanges in which every instruction is followed."""
    lines = []
    for said in itertools.islice(words, 4):
        given = instructed(rng, (*TRAINED, *OTHERS))
        (message,) = prompt(said, given)["messages"]
        lines.append(f"<|user|>\n{message['content']}\n<|assistant|>\n{answer(said, given)}")
    return {"text": "\n".join(lines)}


def prompts(rng: random.Random, words: Iterator[list[str]], pool: tuple[str, ...], count: int) -> list[dict[str, Any]]:
    """Different prompts with instructions of the pool."""
    found: dict[str, dict[str, Any]] = {}
    while len(found) < count:
        said = next(words)
        made = prompt(said, instructed(rng, pool))
        found.setdefault(made["messages"][0]["content"], made)
    return list(found.values())


def write(seed: int) -> dict[str, list[dict[str, Any]]]:
    """Pages, conversations, prompts, and held-out prompts with the instructions of the rewards and with others."""
    rng = random.Random(seed)
    train, test = requests(rng, held_out=False), requests(rng, held_out=True)
    return {
        "pages.jsonl": [page(rng, train) for _ in range(12_000)],
        "sft.jsonl": [conversation(rng, next(train)) for _ in range(4_000)],
        "sft_held_out.jsonl": [conversation(rng, next(test)) for _ in range(300)],
        "prompts.jsonl": prompts(rng, train, TRAINED, 4_000),
        "prompts_held_out.jsonl": prompts(rng, test, TRAINED, 400),
        "prompts_others.jsonl": prompts(rng, test, OTHERS, 200),
    }
