"""Whether a text is the answer, with each benchmark's own normalisation: SQuAD, DROP, TriviaQA, PopQA, BIG-Bench Hard.

Labels are lists of accepted answers, of which the best counts. The functions take texts; `best` and `mean_of` make
metrics of a `Response` from them, which average over the samples of a document.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from easylm_jax.evaluate.benchmark import Response
from easylm_jax.rewards.text import exact, f1

_ARTICLE = re.compile(r"\b(?:a|an|the)\b", re.UNICODE)
_TRIVIA_MARKS = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`", " "))
_MARKS = str.maketrans("", "", string.punctuation)

Compare = Callable[[str, Any], float]  # (answer, one accepted answer) → a score from 0 to 1


def mean_of(compare: Compare) -> Callable[[Any, Response], float]:
    """A metric of one right answer: the mean over the samples; a text without an answer scores 0."""
    return best(lambda answer, label: compare(answer, label), several=False)


def best(compare: Compare, *, several: bool = True) -> Callable[[Any, Response], float]:
    """A metric of a list of accepted answers: the best of them, averaged over the samples."""

    def score(label: Any, response: Response) -> float:
        golds = label if several else [label]
        scores = [max((compare(one, gold) for gold in golds), default=0.0) if one else 0.0 for one in response.answers]
        return float(np.mean(scores)) if scores else 0.0

    return score


# SQuAD, Natural Questions and CoQA (arXiv 1606.05250): rewards.text has the normalisation.


def squad_exact(answer: str, gold: str) -> float:
    """Whether two texts are equal in lower case without punctuation, articles and further spaces."""
    return float(exact(answer, gold))


def squad_f1(answer: str, gold: str) -> float:
    """F1 over the words of the normalised texts, with multiplicity."""
    return f1(answer, gold)


# TriviaQA (arXiv 1705.03551): a mark of punctuation parts words.


def trivia_normal(text: str) -> str:
    """Lower case, underscores and punctuation as spaces, without articles and further spaces."""
    return " ".join(_ARTICLE.sub(" ", text.replace("_", " ").lower().translate(_TRIVIA_MARKS)).split())


def trivia_exact(answer: str, gold: str) -> float:
    """Whether two texts are equal after TriviaQA's normalisation."""
    return float(trivia_normal(answer) == trivia_normal(gold))


# PopQA (arXiv 2212.10511): an accepted answer may stand anywhere in the response.


def contains(answer: str, gold: str) -> float:
    """Whether the response contains the accepted answer as it is, in lower case, or with a capital first letter."""
    return float(any(form in answer for form in (gold, gold.lower(), gold.capitalize())))


# BIG-Bench Hard (arXiv 2210.09261)


def same_text(answer: str, gold: str) -> float:
    """Whether two texts are equal but for white space at their ends."""
    return float(answer.strip() == gold.strip())


def same_words(answer: str, gold: str) -> float:
    """Whether two texts are equal but for case, punctuation and spaces; a text of punctuation alone is compared as it
    is (BIG-Bench Hard's brackets)."""

    def plain(text: str) -> str:
        kept = " ".join(text.lower().translate(_MARKS).split())
        return kept or text.strip()

    return float(plain(answer) == plain(gold))


# DROP (arXiv 1903.00161): answers are sets of spans; numbers must agree.


def _number(token: str) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return True


def drop_normal(text: str) -> str:
    """Words, parted at spaces and hyphens, in lower case without punctuation and articles; numbers as floats."""
    words = []
    for token in re.split(" |-", text):
        token = token.lower()
        token = token if _number(token) else "".join(mark for mark in token if mark not in string.punctuation)
        token = str(float(token)) if _number(token) else token
        words.append(" ".join(_ARTICLE.sub(" ", token).split()))
    return " ".join(word for word in words if word.strip()).strip()


def _bags(answer: str | Sequence[str]) -> tuple[list[str], list[set[str]]]:
    spans = [drop_normal(span) for span in ([answer] if isinstance(answer, str) else answer)]
    return spans, [set(span.split()) for span in spans]


def drop_exact(answer: str | Sequence[str], gold: str | Sequence[str]) -> float:
    """Whether two sets of spans are equal after normalisation."""
    ours, theirs = _bags(answer)[0], _bags(gold)[0]
    return float(set(ours) == set(theirs) and len(ours) == len(theirs))


def drop_f1(answer: str | Sequence[str], gold: str | Sequence[str]) -> float:
    """The mean F1 of the spans, matched one to one for the largest sum; 0 for a pair whose numbers differ. Rounded to
    two decimals, as published."""
    ours, theirs = _bags(answer)[1], _bags(gold)[1]
    scores = np.array([[_bag_f1(one, other) for one in ours] for other in theirs]).reshape(len(theirs), len(ours))
    rows, columns = linear_sum_assignment(-scores)
    return float(round(scores[rows, columns].sum() / max(len(ours), len(theirs), 1), 2))


def _bag_f1(ours: set[str], gold: set[str]) -> float:
    numbers = {word for word in gold if _number(word)}
    if numbers and not numbers & {word for word in ours if _number(word)}:
        return 0.0
    shared = len(ours & gold)
    precision = shared / len(ours) if ours else 1.0
    recall = shared / len(gold) if gold else 1.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def drop_answers(document: Any) -> list[tuple[str, ...]]:
    """The accepted answers of a document of DROP, each a tuple of spans: its `answer` and its `validated_answers`."""
    found = [_drop_spans(document["answer"])]
    validated = document.get("validated_answers") or {}
    if isinstance(validated, dict):  # columns, as the hub stores them
        names = ("number", "date", "spans")
        count = max((len(validated.get(name) or ()) for name in names), default=0)
        validated = [{name: validated[name][row] for name in names if validated.get(name)} for row in range(count)]
    found += [_drop_spans(one) for one in validated]
    return list(dict.fromkeys(spans for spans in found if spans))


def _drop_spans(answer: Any) -> tuple[str, ...]:
    """The spans of one annotation: its number, its spans, or its date as day, month and year."""
    if str(answer.get("number") or ""):
        return (str(answer["number"]),)
    spans: Iterable[str] = answer.get("spans") or ()
    if spans:
        return tuple(spans)
    date = answer.get("date") or {}
    said = " ".join(str(date[part]) for part in ("day", "month", "year") if date.get(part))
    return (said,) if said else ()
