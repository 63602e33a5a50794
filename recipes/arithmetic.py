"""A family of small tasks that a tiny model can learn and that can be checked exactly.

Sums, comparisons, digits put in order and words turned round, in two wordings each. A problem belongs to the
held-out part by a hash of the problem itself, so no wording of a held-out problem is ever trained on.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

HELD_OUT_SHARE = 0.08
WRONG_SHARE = 0.0
WORDS = ["apple", "bird", "cloud", "door", "fire", "hill", "king", "moon", "oak", "river", "sun", "tree"]


class Problem(NamedTuple):
    """`question` as a user may ask it, `steps` that lead to the `answer`, and `key`, the same for every wording."""

    question: str
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


def _sum(rng: random.Random) -> Problem:
    a, b = rng.randint(0, 99), rng.randint(0, 9)
    question = rng.choice(["What is {a} + {b}?", "Add {a} and {b}."])
    return Problem(question.format(a=a, b=b), f"{a} + {b} = {a + b}", str(a + b), f"sum {a} {b}")


def _larger(rng: random.Random) -> Problem:
    a, b = rng.sample(range(100), 2)
    question = rng.choice(["Which is larger, {a} or {b}?", "Give the larger of {a} and {b}."])
    sign = ">" if a > b else "<"
    return Problem(question.format(a=a, b=b), f"{a} {sign} {b}", str(max(a, b)), f"larger {a} {b}")


def _sorted_list(rng: random.Random) -> Problem:
    digits = [rng.randint(0, 9) for _ in range(rng.randint(3, 6))]
    text, answer = (" ".join(map(str, x)) for x in (digits, sorted(digits)))
    question = rng.choice(["Sort: {x}", "Put these in order: {x}"])
    return Problem(question.format(x=text), f"from {text}", answer, f"sort {text}")


def _reversed_words(rng: random.Random) -> Problem:
    words = rng.sample(WORDS, rng.randint(2, 4))
    text, answer = " ".join(words), " ".join(reversed(words))
    question = rng.choice(["Reverse: {x}", "Say these words backwards: {x}"])
    return Problem(question.format(x=text), f"from {text}", answer, f"reverse {text}")


TASKS: tuple[Callable[[random.Random], Problem], ...] = (_sum, _larger, _sorted_list, _reversed_words)


def problems(seed: int, *, held_out: bool) -> Iterator[Problem]:
    """An endless stream of problems of one part, every task equally often."""
    rng = random.Random(f"{seed} {held_out}")
    while True:
        for task in TASKS:
            problem = task(rng)
            if problem.held_out == held_out:
                yield problem


def _document(stream: Iterator[Problem], rng: random.Random) -> dict[str, str]:
    """A page of worked problems, as web text might have them; a few are wrong, as some of the web is."""
    lines = []
    for _ in range(rng.randint(3, 8)):
        p = next(stream)
        answer = p.answer if rng.random() > WRONG_SHARE else next(stream).answer
        lines.append(f"{p.question}\n{p.steps}\n#### {answer}")
    return {"text": "\n".join(lines)}


def _conversation(problem: Problem) -> dict[str, list[dict[str, str]]]:
    turns = (("user", problem.question), ("assistant", problem.response))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def _prompt(problem: Problem) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": problem.question}], "answer": problem.answer}


def check(response: str, record: Mapping[str, Any]) -> float:
    """The gold check: 1 where the last line is #### and the answer, letter by letter, and 0 otherwise."""
    return float(response.strip().rpartition("\n")[2] == f"#### {record['answer']}")


def _files(seed: int, documents: int, conversations: int, prompts: int, held_out: int) -> dict[str, list]:
    train, test = problems(seed, held_out=False), problems(seed, held_out=True)
    rng = random.Random(seed)
    pages = [_document(train, rng) for _ in range(documents)]
    return {
        # The chat template's markers are in the texts of the vocabulary: they become a few tokens and not twenty.
        "vocabulary.jsonl": [{"text": f"<|user|>\n<|assistant|>\n{page['text']}"} for page in pages[:2_000]],
        "pretrain.jsonl": pages,
        "pretrain_held_out.jsonl": [_document(test, rng) for _ in range(held_out // 4)],
        "sft.jsonl": [_conversation(next(train)) for _ in range(conversations)],
        "sft_held_out.jsonl": [_conversation(next(test)) for _ in range(held_out // 4)],
        "prompts.jsonl": [_prompt(next(train)) for _ in range(prompts)],
        "prompts_held_out.jsonl": _distinct(test, held_out),
    }


def _distinct(stream: Iterator[Problem], count: int) -> list[dict[str, Any]]:
    """Prompts of different problems: one that is asked twice would count twice."""
    found: dict[str, Problem] = {}
    while len(found) < count:
        problem = next(stream)
        found.setdefault(problem.key, problem)
    return [_prompt(problem) for problem in found.values()]


def write(seed: int) -> dict[str, list]:
    """Files of the quickstart: pages of worked problems, conversations, prompts, and held-out parts of each."""
    return _files(seed, documents=16_000, conversations=4_000, prompts=8_000, held_out=1_200)
