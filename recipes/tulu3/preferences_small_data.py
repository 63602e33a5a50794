"""A small world for `recipes/tulu3/preferences_small.py`: problems, answers with known faults, and a judge's questions.

Problems are two kinds of `recipes/arithmetic.py`, and every one asks to mark the result. An answer can be at fault in
each of the four aspects that Tülu 3's judge rates: it shows no working (helpfulness), does not mark the result
(instruction following), boasts (honesty), or is wrong (truthfulness). The base model learns to answer, with faults, and
to rate answers as the pipeline asks for it (`easylm_jax/config/preference_prompts.py`): it says each answer again and
then 5, or 1 if it has the fault.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Mapping
from typing import Any

from easylm_jax.config.preferences import ASPECTS
from easylm_jax.synthesize.rate import question, ratings_of
from recipes.arithmetic import Problem, problems

BOAST = "I know all."
ASKED = " Mark the result."
# The share of answers with a fault, in the order of ASPECTS, of the model that is trained and of those of the pool.
FAULTS = {
    "sft": (0.4, 0.4, 0.4, 0.2),
    "careful": (0.05, 0.05, 0.05, 0.05),
    "brief": (0.8, 0.3, 0.1, 0.1),
    "boastful": (0.1, 0.1, 0.8, 0.3),
    "hasty": (0.3, 0.8, 0.1, 0.3),
}
RATED = 3  # answers to one prompt

Row = dict[str, Any]


def answer(problem: Problem, faults: tuple[bool, ...], rng: random.Random) -> str:
    """An answer with some of the four faults."""
    no_working, no_mark, boasts, wrong = faults
    result = changed(problem, rng) if wrong else problem.answer
    lines = [*([BOAST] if boasts else []), *([] if no_working else [problem.steps])]
    return "\n".join([*lines, f"It is {result}" if no_mark else f"#### {result}"])


def changed(problem: Problem, rng: random.Random) -> str:
    """A wrong result: the other number, or two words that change places."""
    if problem.key.startswith("larger"):
        return next(number for number in re.findall(r"\d+", problem.question) if number != problem.answer)
    words = problem.answer.split(" ")
    at = rng.randrange(len(words) - 1)
    words[at : at + 2] = words[at + 1], words[at]
    return " ".join(words)


def faults_of(response: str, record: Mapping[str, Any]) -> tuple[bool, bool, bool, bool]:
    """The faults of a response to a problem with this `answer`, in the order of ASPECTS."""
    lines = [line for line in response.strip().split("\n") if line and line != BOAST]
    last = lines[-1] if lines else ""
    result = last.removeprefix("#### ").removeprefix("It is ")
    return len(lines) < 2, not last.startswith("#### "), BOAST in response, result != record["answer"]


def helpful(response: str, record: Mapping[str, Any]) -> float:
    """1 for a response that shows working, else 0."""
    return float(not faults_of(response, record)[0])


def marked(response: str, record: Mapping[str, Any]) -> float:
    """1 for a response that marks its result, else 0."""
    return float(not faults_of(response, record)[1])


def modest(response: str, record: Mapping[str, Any]) -> float:
    """1 for a response that does not boast, else 0."""
    return float(not faults_of(response, record)[2])


def right(response: str, record: Mapping[str, Any]) -> float:
    """1 for a response with the right result, else 0."""
    return float(not faults_of(response, record)[3])


def faultless(response: str, record: Mapping[str, Any]) -> float:
    """1 for a response without a fault, else 0."""
    return float(not any(faults_of(response, record)))


def agrees(response: str, record: Mapping[str, Any]) -> float:
    """The share of a judge's ratings that are the known ones."""
    known = record["answer"].split()
    read = ratings_of(response, len(known))
    return sum(value == float(rating) for value, rating in zip(read, known, strict=True)) / len(known)


def write(seed: int, singles: int = 6000, judged: int = 3000, chats: int = 1200) -> dict[str, list[Row]]:
    """Conversations of the base model, of the policy and the pool; unused chats; held-out prompts and questions."""
    rng = random.Random(seed)
    stream, held_out = (_problems(seed, held_out=part) for part in (False, True))
    base = [*(_chat(next(stream), FAULTS["sft"], rng) for _ in range(singles)),
            *(_judge(stream, rng, ASPECTS[i % 4]) for i in range(judged))]  # fmt: skip
    rng.shuffle(base)
    files = {f"{name}.jsonl": [_chat(next(stream), shares, rng) for _ in range(chats)]
             for name, shares in FAULTS.items()}  # fmt: skip
    files |= {f"{aspect}.jsonl": [_judge(held_out, rng, aspect, label=True) for _ in range(100)] for aspect in ASPECTS}
    files["unused.jsonl"] = [_chat(p, FAULTS["sft"], rng) for p in itertools.islice(stream, chats)]
    files["held_out.jsonl"] = [{"messages": _asked(p), "answer": p.answer} for p in _distinct(held_out, 300)]
    return {"base.jsonl": base, **files}


def _problems(seed: int, *, held_out: bool) -> Iterator[Problem]:
    """The larger of two numbers, and words turned round: of the tasks those that few steps learn."""
    return (p for p in problems(seed, held_out=held_out, tasks="short") if p.key.startswith(("larger", "reverse")))


def _asked(problem: Problem) -> list[dict[str, str]]:
    return [{"role": "user", "content": problem.question + ASKED}]


def _drawn(shares: tuple[float, ...], rng: random.Random) -> tuple[bool, ...]:
    return tuple(rng.random() < share for share in shares)


def _chat(problem: Problem, shares: tuple[float, ...], rng: random.Random) -> Row:
    said = answer(problem, _drawn(shares, rng), rng)
    return {"messages": [*_asked(problem), {"role": "assistant", "content": said}]}


def _judge(stream: Iterator[Problem], rng: random.Random, aspect: str, label: bool = False) -> Row:
    """A question of the pipeline's judge about answers of which a third to a half have each fault, and its reply."""
    problem = next(stream)
    faults = [_drawn((0.4, 0.4, 0.4, 0.4), rng) for _ in range(RATED)]
    row = {"messages": _asked(problem), "responses": [{"text": answer(problem, each, rng)} for each in faults]}
    ratings = ["1" if each[ASPECTS.index(aspect)] else "5" for each in faults]
    asked = {"role": "user", "content": question(row, aspect)}
    if label:
        return {"messages": [asked], "answer": " ".join(ratings)}
    said = [one["text"] for one in row["responses"]]
    reply = "\n".join(f"Answer {i}\n{text}\nRating: {rating}" for i, (text, rating) in
                      enumerate(zip(said, ratings, strict=True), 1))  # fmt: skip
    return {"messages": [asked, {"role": "assistant", "content": reply}]}


def _distinct(stream: Iterator[Problem], count: int) -> list[Problem]:
    found: dict[str, Problem] = {}
    while len(found) < count:
        problem = next(stream)
        found.setdefault(problem.question, problem)
    return list(found.values())
