"""Metrics of answers about pictures: VQA score, ANLS, relaxed accuracy, choices, MMMU's parser (spec molmo §14)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from easylm_jax.data.points import read_count
from easylm_jax.evaluate.benchmark import Response

_NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_ARTICLES = ("a", "an", "the")
# Words that people write without their apostrophe.
_CONTRACTED = (
    "aren't", "can't", "couldn't", "didn't", "doesn't", "don't", "hadn't", "hasn't", "haven't", "he'd", "he's", "how's",
    "i'd", "i'm", "i've", "isn't", "it'd", "it'll", "let's", "mustn't", "shouldn't", "that's", "there's", "they'd",
    "they'll", "they're", "they've", "wasn't", "we'd", "we're", "we've", "weren't", "what's", "where's", "who's",
    "why's", "won't", "wouldn't", "you'd", "you'll", "you're", "you've",
)  # fmt: skip
_CONTRACTIONS = {word.replace("'", ""): word for word in _CONTRACTED}
_MARKS = re.compile(r"[;/\[\]\"{}()=+\\_><@`,?!-]")


def answer_of(text: str) -> str:
    """What a response says: what follows "Answer:", the most frequent of several lines, with single spaces."""
    if "Answer:" in text:
        text = text.rpartition("Answer:")[2]
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return " ".join(Counter(lines).most_common(1)[0][0].split()) if lines else ""


def vqa_normal(text: str) -> str:
    """A short answer in VQA's normal form: lower case, no marks or articles, digits for words, contractions."""
    text = _MARKS.sub(" ", text.lower().replace("\n", " ")).replace(".", " " if not re.search(r"\d\.\d", text) else ".")
    words = [_NUMBERS.get(word, word) for word in text.split() if word not in _ARTICLES]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words).strip(" .")


def vqa_score(label: Sequence[str], response: Response) -> float:
    """min(annotators that agree / 3, 1), without the official leave-one-out average."""
    said = vqa_normal(answer_of(response.texts[0]))
    return min(sum(vqa_normal(one) == said for one in label) / 3, 1.0)


def edit_distance(a: str, b: str) -> int:
    """Insertions, deletions and replacements from one text to the other."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


def anls(label: Sequence[str], response: Response) -> float:
    """The best of 1 − edit distance / longer length over the references, 0 where the quotient is 0.5 or more."""
    said = answer_of(response.texts[0]).lower()
    best = 0.0
    for gold in label:
        gold = " ".join(gold.lower().split())
        longer = max(len(gold), len(said))
        share = edit_distance(gold, said) / longer if longer else 0.0
        best = max(best, 1 - share if share < 0.5 else 0.0)
    return best


def _number(text: str) -> float | None:
    text = text.strip().replace(",", "")
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def relaxed(label: str, response: Response) -> float:
    """Numbers within 5 % of the gold one; other answers, and a gold 0, must be equal but for case."""
    said = answer_of(response.texts[0])
    gold, found = _number(label), _number(said)
    if gold and found is not None:
        return float(abs(found - gold) <= 0.05 * abs(gold))
    return float(said.lower() == label.strip().lower())


def choose(text: str, options: Sequence[str]) -> int:
    """The option that an answer means: the equal one, else the only one that holds it, else the nearest by edits. A
    single letter (with a bracket or a full stop) numbers an option."""
    said = answer_of(text)
    letter = re.fullmatch(r"\(?([A-Za-z])[).:]?", said)
    if letter and ord(letter[1].upper()) - ord("A") < len(options):
        return ord(letter[1].upper()) - ord("A")
    lower = [" ".join(option.lower().split()) for option in options]
    if said.lower() in lower:
        return lower.index(said.lower())
    holding = [number for number, option in enumerate(lower) if said and said.lower() in option]
    if len(holding) == 1:
        return holding[0]
    return min(range(len(options)), key=lambda number: edit_distance(lower[number], said.lower()))


def right_choice(label: tuple[int, Sequence[str]], response: Response) -> float:
    """Whether the option that a response means is the right one; `label` is its number and the options."""
    number, options = label
    return float(choose(response.texts[0], options) == number)


def exact(label: str, response: Response) -> float:
    """Whether a response is the gold answer, in VQA's normal form."""
    return float(vqa_normal(answer_of(response.texts[0])) == vqa_normal(label))


def counted(label: int, response: Response) -> float:
    """Whether the number that a response gives is the gold one."""
    return float(read_count(response.texts[0]) == label)


def counted_near(label: int, response: Response) -> float:
    """The same within one."""
    said = read_count(response.texts[0])
    return float(said is not None and abs(said - label) <= 1)


def gives_number(label: Any, response: Response) -> float:
    """Whether a response gives a number."""
    return float(read_count(response.texts[0]) is not None)


def choices(question: str, options: Sequence[str]) -> str:
    """A question with lettered options, one a line (spec molmo §10.3)."""
    lines = [f"{chr(ord('A') + number)}: {option}" for number, option in enumerate(options)]
    return "\n".join([question, *lines, ""])
