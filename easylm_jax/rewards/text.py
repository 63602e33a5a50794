"""Verifiers that compare texts: exact match, token F1, multiple choice, the R1 format (spec tulu3 §6.1).

Each takes a response and its record and returns a score from 0 to 1. The label is the record's `ground_truth`, or
`answer` if it has none. Run time is linear in the length of the response, and no response is an error.
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
    """The record's label: `ground_truth`, or `answer`. Raises KeyError if it has neither."""
    found = record.get("ground_truth")
    return record["answer"] if found is None else found


def squad_normal(text: str) -> str:
    """SQuAD's normalisation: lower case, without ASCII punctuation and articles, single spaces between words."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact(text: str, gold: str) -> bool:
    """Whether two texts are equal after normalisation. A gold text whose normalisation is empty ("-", "The") is
    compared without it, so that an empty answer never matches."""
    normal = squad_normal(gold)
    return squad_normal(text) == normal if normal else text.strip().lower() == gold.strip().lower()


def f1(text: str, gold: str) -> float:
    """SQuAD's F1 over the words of the normalised texts, with multiplicity; 0 if they share no word."""
    ours, theirs = (Counter(squad_normal(one).split()) for one in (text, gold))
    shared = (ours & theirs).total()
    return 2 * shared / (ours.total() + theirs.total()) if shared else 0.0


def flan(response: str, record: Mapping[str, Any]) -> float:
    """1 if the text after the last "The answer is: " (or the whole text without it) matches the label."""
    return float(exact(response.rpartition(_FLAN)[2], _text(record)))


def string_matcher(response: str, record: Mapping[str, Any]) -> float:
    """1 if the text between the last `<answer>` and the next `</answer>` matches the label; 0 without the tags."""
    opened, closed = response.rpartition("<answer>")[1:], "</answer>"
    if not opened[0] or closed not in opened[1]:
        return 0.0
    return float(exact(opened[1].partition(closed)[0], _text(record)))


def string_f1(response: str, record: Mapping[str, Any]) -> float:
    """Token F1 of the answer (what follows the last `</think>`, answer tags dropped); of several labels, the best."""
    answer = answer_of(response)
    return max(f1(answer, gold) for gold in _texts(label_of(record)))


def puzzle(response: str, record: Mapping[str, Any]) -> float:
    """1 if the answer after the reasoning matches the label."""
    return float(exact(answer_of(response), _text(record)))


def re_search(response: str, record: Mapping[str, Any]) -> float:
    """1 if the first `<finish>…</finish>` matches any of the labels (a list, or its JSON text)."""
    begun = _FINISH.search(response)
    done = _FINISHED.search(response, begun.end()) if begun else None
    if begun is None or done is None:
        return 0.0
    answer = response[begun.end() : done.start()]
    return float(bool(answer.strip()) and any(exact(answer, gold) for gold in _parsed(label_of(record))))


def re_search_f1(response: str, record: Mapping[str, Any]) -> float:
    """The best token F1 of the last `<finish>…</finish>` with any label; 0.1 if it shares no word with them.

    0 if the element is missing, not closed, or empty. As published, this verifier reads the last such element and
    `re_search` the first.
    """
    opened, closed = response.rpartition("<finish>")[1:], "</finish>"
    if not opened[0] or closed not in opened[1]:
        return 0.0
    answer = opened[1].partition(closed)[0]
    if not answer.strip():
        return 0.0
    return max(f1(answer, gold) for gold in _parsed(label_of(record))) or 0.1


def r1_format(response: str, record: Mapping[str, Any]) -> float:
    """1 if a `</think>` is followed by `<answer>`, with only whitespace between, and later by `</answer>`.

    Equivalent to a DOTALL match of `.*?</think>\\s*<answer>.*?</answer>` at the start (spec tulu3 §5.1).
    """
    begun = _R1.search(response)
    return float(begun is not None and response.find("</answer>", begun.end()) >= 0)


def multiple_choice(
    response: str, record: Mapping[str, Any], phrase: str = "the answer is", choices: str | None = None
) -> float:
    """1 if the response chooses the letter of the label, which is given as "B", "(b)", or its index from 0.

    The letter is searched in this order, and the last match of the first pattern that occurs counts (spec tulu3 §8.2):
    after `phrase`; after "answer", "option" or "choice" with "is" or ":"; in `\\boxed{}`; in parentheses; a capital
    letter on its own.

    Args:
        response: the response.
        record: the record with the label.
        phrase: the phrase that the prompt asked for before the answer; case-insensitive.
        choices: the allowed letters, such as "ABCD". By default as many as the record's `choices` (or `options`), or
            else A to D, extended up to the letter of the label.
    """
    gold = _letter(label_of(record))
    if choices is None:
        listed = next((record[name] for name in ("choices", "options") if isinstance(record.get(name), list)), "ABCD")
        choices = string.ascii_uppercase[: max(len(listed), string.ascii_uppercase.index(gold) + 1)]
    return float(chosen(response, phrase, choices) == gold)


def chosen(response: str, phrase: str, choices: str) -> str | None:
    """The letter that a response chooses; None if there is none."""
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
    """Labels that may be JSON text of a list or of a string; any other text is a label itself."""
    if isinstance(label, str):
        try:
            parsed = json.loads(label)
        except (ValueError, RecursionError):
            parsed = None
        return _texts(parsed if isinstance(parsed, (list, str)) else label.strip())
    return _texts(label)


_ASSISTANT = re.compile(r"<\|assistant\|>")


def answer_of(response: Any) -> str:
    """The answer of a response that may contain reasoning: the text after the last </think>, without answer tags."""
    if not isinstance(response, str):
        return ""
    text = _ASSISTANT.sub("", response).rpartition("</think>")[2]
    return text.replace("<answer>", "").replace("</answer>", "").strip()
