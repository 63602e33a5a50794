"""A family of small tasks that a tiny model can learn and that can be checked exactly.

Sums, comparisons, digits or words put in order and words turned round, in two wordings each. A problem belongs to the
held-out part by a hash of the problem itself, so no wording of a held-out problem is ever trained on.

The conversations for fine-tuning are as uneven as real ones: questions in the second wording went to annotators who
often give the bare answer, without the working and the check line that the gold check asks for. What fine-tuning picks
up from them is what preferences and rewards can mend.
"""

from __future__ import annotations

import functools
import itertools
import random
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

HELD_OUT_SHARE = 0.08
CARELESS_SHARE = 0.6  # of answers to questions in the second wording
WORDS = ["apple", "bird", "cloud", "door", "fire", "hill", "king", "moon", "oak", "river", "sun", "tree"]


class Problem(NamedTuple):
    """`question` as a user may ask it, `steps` that lead to the `answer`, and `key`, the same for every wording.

    `careless` says that it is worded in the way that annotators often answer without working or check line.
    """

    question: str
    careless: bool
    steps: str
    answer: str
    key: str

    @property
    def held_out(self) -> bool:
        """Whether this problem, however worded, is kept for evaluation."""
        return zlib.crc32(self.key.encode()) % 10_000 < HELD_OUT_SHARE * 10_000

    @property
    def response(self) -> str:
        """The reference response: the steps, then the answer on a line of its own."""
        return f"{self.steps}\n#### {self.answer}"


def _ask(rng: random.Random, *wordings: str) -> tuple[str, bool]:
    """One of the wordings, and whether it is the second."""
    number = rng.randrange(len(wordings))
    return wordings[number], number == 1


def _sum(rng: random.Random) -> Problem:
    a, b = rng.randint(0, 99), rng.randint(0, 9)
    return Problem(*_ask(rng, f"What is {a} + {b}?", f"Add {a} and {b}."), f"{a} + {b} = {a + b}", str(a + b),
                   f"sum {a} {b}")  # fmt: skip


def _larger(rng: random.Random, least: int = 0) -> Problem:
    a, b = rng.sample(range(least, 100), 2)
    sign = ">" if a > b else "<"
    return Problem(*_ask(rng, f"Which is larger, {a} or {b}?", f"Give the larger of {a} and {b}."), f"{a} {sign} {b}",
                   str(max(a, b)), f"larger {a} {b}")  # fmt: skip


def _sorted_list(rng: random.Random) -> Problem:
    digits = [rng.randint(0, 9) for _ in range(rng.randint(3, 7))]
    text, answer = (" ".join(map(str, x)) for x in (digits, sorted(digits)))
    return Problem(*_ask(rng, f"Sort: {text}", f"Put these in order: {text}"), f"from {text}", answer, f"sort {text}")


def _reversed_words(rng: random.Random, most: int = 5) -> Problem:
    words = rng.sample(WORDS, rng.randint(2, most))
    text, answer = " ".join(words), " ".join(reversed(words))
    return Problem(*_ask(rng, f"Reverse: {text}", f"Say these words backwards: {text}"), f"from {text}", answer,
                   f"reverse {text}")  # fmt: skip


def _sorted_digits(rng: random.Random) -> Problem:
    number = "".join(str(rng.randint(0, 9)) for _ in range(rng.randint(3, 5)))
    return Problem(*_ask(rng, f"Sort the digits {number}", f"Put the digits {number} in order"), f"from {number}",
                   "".join(sorted(number)), f"digits {number}")  # fmt: skip


def _sorted_words(rng: random.Random) -> Problem:
    words = rng.sample(WORDS, rng.randint(2, 4))
    text = " ".join(words)
    return Problem(*_ask(rng, f"Sort: {text}", f"Put these in order: {text}"), f"from {text}", " ".join(sorted(words)),
                   f"words {text}")  # fmt: skip


Task = Callable[[random.Random], Problem]
TASKS: dict[str, tuple[Task, ...]] = {
    "all": (_sum, _larger, _sorted_list, _reversed_words),
    # Numbers of one length, digits without spaces and words of one token each: few tokens, and few steps learn them.
    "short": (
        functools.partial(_larger, least=10), _sorted_digits, _sorted_words, functools.partial(_reversed_words, most=4),
    ),
}  # fmt: skip


def problems(seed: int, *, held_out: bool, tasks: str = "all") -> Iterator[Problem]:
    """An endless stream of problems of one part, every task equally often."""
    rng = random.Random(f"{seed} {held_out}")
    while True:
        for task in TASKS[tasks]:
            problem = task(rng)
            if problem.held_out == held_out:
                yield problem


def _document(stream: Iterator[Problem], rng: random.Random) -> dict[str, str]:
    """A page of worked problems, as web text might have them."""
    lines = [f"{p.question}\n{p.response}" for p in itertools.islice(stream, rng.randint(3, 8))]
    return {"text": "\n".join(lines)}


def _conversation(problem: Problem, rng: random.Random, share: float, opening: str) -> dict[str, list[dict[str, str]]]:
    """A question with an annotator's answer: the reference, or `opening` and the bare answer of a careless one."""
    careless = problem.careless and rng.random() < share
    turns = (("user", problem.question), ("assistant", f"{opening}{problem.answer}" if careless else problem.response))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def _prompt(problem: Problem) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": problem.question}], "answer": problem.answer}


def check(response: str, record: Mapping[str, Any]) -> float:
    """The gold check: 1 where the last line is #### and the answer, letter by letter, and 0 otherwise."""
    return float(response.strip().rpartition("\n")[2] == f"#### {record['answer']}")


def _distinct(stream: Iterator[Problem], count: int) -> list[dict[str, Any]]:
    """Prompts of different problems: one that is asked twice would count twice."""
    found: dict[str, Problem] = {}
    while len(found) < count:
        problem = next(stream)
        found.setdefault(problem.key, problem)
    return [_prompt(problem) for problem in found.values()]


def write(
    seed: int,
    pages: int = 20_000,
    conversations: int = 4_000,
    prompts: int = 8_000,
    held_out: int = 1_200,
    careless: float = CARELESS_SHARE,
    opening: str = "",
    tasks: str = "all",
) -> dict[str, list]:
    """Pages of worked problems, conversations, prompts, and held-out parts of each.

    `careless` is the share of bare answers to questions in the second wording, `opening` what such an
    answer begins with, `tasks` a key of `TASKS`.
    """
    train, test = problems(seed, held_out=False, tasks=tasks), problems(seed, held_out=True, tasks=tasks)
    rng = random.Random(seed)
    texts = [_document(train, rng) for _ in range(pages)]
    return {
        # The chat template's markers are in the texts of the vocabulary: they become a few tokens and not twenty.
        "vocabulary.jsonl": [{"text": f"<|user|>\n<|assistant|>\n{page['text']}"} for page in texts[:2_000]],
        "pretrain.jsonl": texts,
        "pretrain_held_out.jsonl": [_document(test, rng) for _ in range(300)],
        "sft.jsonl": [_conversation(next(train), rng, careless, opening) for _ in range(conversations)],
        "sft_held_out.jsonl": [_conversation(next(test), rng, careless, opening) for _ in range(300)],
        "prompts.jsonl": [_prompt(next(train)) for _ in range(prompts)],
        "prompts_held_out.jsonl": _distinct(test, held_out),
    }
