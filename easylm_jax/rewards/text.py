"""Verifiers that compare texts: exact match, token F1, multiple choice, the format of an R1 answer (spec tulu3 §6.1).

Each takes a response and its record and gives 0 to 1. The label is the record's `ground_truth`, or `answer` where it
has none. Everything is linear in the response, and no response is an error.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Mapping
from typing import Any

from models.errors import UserError

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_FINISH, _FINISHED = re.compile("<finish>", re.IGNORECASE), re.compile("</finish>", re.IGNORECASE)
_R1 = re.compile(r"</think>\s*<answer>")
_FLAN = "The answer is: "


def label_of(record: Mapping[str, Any]) -> Any:
    """The record's label: `ground_truth`, or `answer`. KeyError where it has neither."""
    found = record.get("ground_truth")
    return record["answer"] if found is None else found


def squad_normal(text: str) -> str:
    """Lower-cased, without ASCII punctuation and articles, single spaces between words (SQuAD's normalisation)."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact(text: str, gold: str) -> bool:
    """Whether two texts are the same once normalised. A gold text of which nothing would be left ("-", "The") is
    compared as it is, so that an empty answer never equals it."""
    normal = squad_normal(gold)
    return squad_normal(text) == normal if normal else text.strip().lower() == gold.strip().lower()


def f1(text: str, gold: str) -> float:
    """SQuAD's F1 over the words of the normalised texts, counted with their multiplicity; 0 where none is shared."""
    ours, theirs = (Counter(squad_normal(one).split()) for one in (text, gold))
    shared = (ours & theirs).total()
    return 2 * shared / (ours.total() + theirs.total()) if shared else 0.0


def flan(response: str, record: Mapping[str, Any]) -> float:
    """1 where the text after the last "The answer is: " (all of it where that is missing) matches the label."""
    return float(exact(response.rpartition(_FLAN)[2], _text(record)))


def string_matcher(response: str, record: Mapping[str, Any]) -> float:
    """1 where what stands between the last `<answer>` and the next `</answer>` matches the label; 0 without them."""
    opened, closed = response.rpartition("<answer>")[1:], "</answer>"
    if not opened[0] or closed not in opened[1]:
        return 0.0
    return float(exact(opened[1].partition(closed)[0], _text(record)))


def string_f1(response: str, record: Mapping[str, Any]) -> float:
    """Token F1 of the answer (what follows the last `</think>`, answer tags dropped); of several labels, the best."""
    answer = answer_of(response)
    return max(f1(answer, gold) for gold in _texts(label_of(record)))


def puzzle(response: str, record: Mapping[str, Any]) -> float:
    """1 where the answer behind the reasoning matches the label."""
    return float(exact(answer_of(response), _text(record)))


def re_search(response: str, record: Mapping[str, Any]) -> float:
    """1 where the first `<finish>…</finish>` matches any of the labels (a list, or JSON text of one)."""
    begun = _FINISH.search(response)
    done = _FINISHED.search(response, begun.end()) if begun else None
    if begun is None or done is None:
        return 0.0
    answer = response[begun.end() : done.start()]
    return float(bool(answer.strip()) and any(exact(answer, gold) for gold in _parsed(label_of(record))))


def re_search_f1(response: str, record: Mapping[str, Any]) -> float:
    """Token F1 of the last `<finish>…</finish>` with the best of the labels; 0.1 where it is there and shares no word.

    0 where it is missing, not closed, or empty. As published, this one reads the last such element and `re_search` the
    first.
    """
    opened, closed = response.rpartition("<finish>")[1:], "</finish>"
    if not opened[0] or closed not in opened[1]:
        return 0.0
    answer = opened[1].partition(closed)[0]
    if not answer.strip():
        return 0.0
    return max(f1(answer, gold) for gold in _parsed(label_of(record))) or 0.1


def r1_format(response: str, record: Mapping[str, Any]) -> float:
    """1 where some `</think>` is followed by `<answer>`, with at most blanks between, and that by `</answer>`.

    The same as a match of `.*?</think>\\s*<answer>.*?</answer>` at the start, over lines (spec tulu3 §5.1).
    """
    begun = _R1.search(response)
    return float(begun is not None and response.find("</answer>", begun.end()) >= 0)


def multiple_choice(
    response: str, record: Mapping[str, Any], phrase: str = "the answer is", choices: str | None = None
) -> float:
    """1 where the response chooses the letter of the label, as "B", "(b)", or the number of it from 0.

    The letter is looked for in this order, and the last match of the first kind that is there counts (spec tulu3
    §8.2): behind `phrase`; behind "answer", "option" or "choice" with "is" or ":"; in `\\boxed{}`; in parentheses; a
    capital that stands alone.

    Args:
        phrase: what the prompt asked the answer to end with. Upper and lower case are the same.
        choices: the letters there are, such as "ABCD". Left out: as many as the record's `choices` (or `options`)
            has, or else A to D, and up to the label's where that is a later one.
    """
    gold = _letter(label_of(record))
    if choices is None:
        listed = next((record[name] for name in ("choices", "options") if isinstance(record.get(name), list)), "ABCD")
        choices = string.ascii_uppercase[: max(len(listed), string.ascii_uppercase.index(gold) + 1)]
    return float(chosen(response, phrase, choices) == gold)


def chosen(response: str, phrase: str, choices: str) -> str | None:
    """The letter that a response chooses, or None."""
    letter = f"[{re.escape(choices.upper())}]"
    marked = rf"[\s:=*_$\"'`]{{0,8}}(?:\\(?:boxed|text)\{{)?\(?({letter})(?![\w'’])"
    for pattern in (
        rf"(?i:{re.escape(phrase)}){marked}",
        rf"(?i:\b(?:answer|option|choice)(?: is|s are)?){marked}",
        rf"\\boxed\{{(?:\\text\{{)?\(?({letter})(?![\w'’])",
        rf"\(({letter})\)",
        rf"(?<![\w'’])({letter})(?![\w'’])",
    ):
        found = re.findall(pattern, response)
        if found:
            return found[-1]
    return None


def _letter(label: Any) -> str:
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < 26:
        return string.ascii_uppercase[label]
    found = re.fullmatch(r"\s*\(?([A-Za-z])[).:]?\s*", str(label), re.ASCII)
    if found is None:
        raise UserError(f"reward: multiple_choice needs a letter as the label, not {str(label)[:80]!r}")
    return found[1].upper()


def _text(record: Mapping[str, Any]) -> str:
    """The label as one text."""
    label = label_of(record)
    if isinstance(label, (list, tuple, dict)):
        raise UserError(f"reward: the label must be one text, not {str(label)[:80]!r}")
    return str(label)


def _texts(label: Any) -> list[str]:
    """The label as one or more texts."""
    found = [str(one) for one in label] if isinstance(label, (list, tuple)) else [str(label)]
    if not found:
        raise UserError("reward: the list of labels is empty")
    return found


def _parsed(label: Any) -> list[str]:
    """Labels that may be written as JSON: a list, or one text in quotes; everything else is the text itself."""
    if isinstance(label, str):
        try:
            parsed = json.loads(label)
        except (ValueError, RecursionError):
            parsed = None
        return _texts(parsed if isinstance(parsed, (list, str)) else label.strip())
    return _texts(label)


_ASSISTANT = re.compile(r"<\|assistant\|>")


def answer_of(response: Any) -> str:
    """The answer of a response that may hold its reasoning: what follows the last </think>, without answer tags."""
    if not isinstance(response, str):
        return ""
    text = _ASSISTANT.sub("", response).rpartition("</think>")[2]
    return text.replace("<answer>", "").replace("</answer>", "").strip()
