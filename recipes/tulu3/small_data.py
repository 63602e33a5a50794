"""Problems for `recipes/tulu3/small.py` in the format of Tülu 3: word problems, LaTeX problems, instructions.

A row has the name of its verifier in `dataset` (gsm8k, MATH, ifeval) and its label in `ground_truth`. Pages for
pre-training are correct; conversations for fine-tuning have wrong sums and ignored instructions. A hash of its numbers
or words decides whether a problem is held out.
"""

from __future__ import annotations

import itertools
import math
import random
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from recipes.ifbench import small_data as words

CARELESS = 0.4  # share of sums in conversations for fine-tuning that are wrong by one
HELD_OUT = 0.08
NAMES, THINGS = ("Ann", "Ben", "Mia", "Tom"), ("apples", "birds", "keys", "stones")
KINDS = ("gsm8k", "MATH", "ifeval")


class Problem(NamedTuple):
    """A question with its label, a correct response and one with an error."""

    dataset: str
    question: str
    ground_truth: str
    answer: str
    careless: str

    @property
    def row(self) -> dict[str, Any]:
        """The problem in the format of the published rows."""
        messages = [{"role": "user", "content": self.question}]
        return {"messages": messages, "dataset": self.dataset, "ground_truth": self.ground_truth}


def _held_out(key: str) -> bool:
    return zlib.crc32(key.encode()) % 10_000 < HELD_OUT * 10_000


def _sum(rng: random.Random, held_out: bool) -> tuple[int, int]:
    while True:
        a, b = rng.randint(0, 99), rng.randint(1, 9)
        if _held_out(f"{a} {b}") == held_out:
            return a, b


def _gsm8k(rng: random.Random, held_out: bool) -> Problem:
    a, b = _sum(rng, held_out)
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    question = f"{name} has {a} {thing} and gets {b} more. How many {thing} has {name}?"
    return Problem("gsm8k", question, str(a + b), *(_working(a, b, c) for c in (a + b, a + b + rng.choice((-1, 1)))))


def _working(a: int, b: int, c: int) -> str:
    return f"{a} + {b} = {c}. So the answer is {c}."


def _math(rng: random.Random, held_out: bool) -> Problem:
    """A sum, or a fraction to reduce."""
    if rng.random() < 0.5:
        a, b = _sum(rng, held_out)
        wrong = a + b + rng.choice((-1, 1))
        question, truth, other = f"Compute ${a}+{b}$.", str(a + b), str(wrong)
        steps = f"{a}+{b}"
    else:
        while True:
            factor, low, high = rng.randint(2, 9), rng.randint(1, 8), rng.randint(2, 9)
            if math.gcd(low, high) == 1 and low != high and _held_out(f"{factor} {low} {high}") == held_out:
                break
        steps = f"\\frac{{{low * factor}}}{{{high * factor}}}"
        question = f"Reduce ${steps}$."
        truth, other = (f"\\frac{{{low}}}{{{bottom}}}" for bottom in (high, high + 1))
    right, careless = (f"${steps}={value}$, so \\boxed{{{value}}}" for value in (truth, other))
    return Problem("MATH", question, truth, right, careless)


def _ifeval(rng: random.Random, held_out: bool) -> Problem:
    said = next(words.requests(rng, held_out=held_out))
    given = words.instructed(rng, words.TRAINED)
    made = words.prompt(said, given)
    followed = {name: own for name, own in given.items() if rng.random() >= words.OVERLOOKED}
    (message,) = made["messages"]
    answers = (words.answer(said, given), words.answer(said, followed))
    return Problem("ifeval", message["content"], made["ground_truth"], *answers)


MAKERS: dict[str, Callable[[random.Random, bool], Problem]] = dict(zip(KINDS, (_gsm8k, _math, _ifeval), strict=True))


def problems(seed: int, *, held_out: bool) -> Iterator[Problem]:
    """An endless stream of training or held-out problems, with every kind equally often."""
    rng = random.Random(f"{seed} {held_out}")
    while True:
        for make in MAKERS.values():
            yield make(rng, held_out)


def _conversation(problem: Problem, rng: random.Random) -> dict[str, Any]:
    careless = problem.dataset == "ifeval" or rng.random() < CARELESS
    answer = problem.careless if careless else problem.answer
    return {"messages": [*problem.row["messages"], {"role": "assistant", "content": answer}]}


def _page(stream: Iterator[Problem]) -> dict[str, str]:
    """Three correct exchanges, one of each kind."""
    asked = itertools.islice(stream, 3)
    return {"text": "\n".join(f"<|user|>\n{it.question}\n<|assistant|>\n{it.answer}" for it in asked)}


def _distinct(stream: Iterator[Problem], counts: dict[str, int]) -> dict[str, list[dict[str, Any]]]:
    """`counts` distinct prompts of each kind."""
    found: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in counts}
    while any(len(found[name]) < count for name, count in counts.items()):
        problem = next(stream)
        if len(found[problem.dataset]) < counts[problem.dataset]:
            found[problem.dataset].setdefault(problem.question, problem.row)
    return {name: list(rows.values()) for name, rows in found.items()}


def write(seed: int) -> dict[str, list[dict[str, Any]]]:
    """Pages, conversations, mixed prompts, and held-out prompts of each kind."""
    train, test = problems(seed, held_out=False), problems(seed, held_out=True)
    rng = random.Random(seed)
    files = {
        "pages.jsonl": [_page(train) for _ in range(15_000)],
        "sft.jsonl": [_conversation(next(train), rng) for _ in range(4_000)],
        "sft_held_out.jsonl": [_conversation(next(test), rng) for _ in range(300)],
        "prompts.jsonl": [next(train).row for _ in range(8_000)],
    }
    rows = _distinct(test, {"gsm8k": 300, "MATH": 80, "ifeval": 200})
    return files | {f"{name.lower()}_held_out.jsonl": rows[name] for name in KINDS}
