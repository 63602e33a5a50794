"""The 25 constraints of Tülu 3's IF data, `ifeval_old` (spec tulu3 §6.3): also of Tülu 3.1 and OLMo 2.

A label is an object {"func_name": ..., arguments ...}, or its JSON text; null arguments are ignored. The score is 0 or
1. Version "tulu3" reproduces the rewards of those models, including their errors; "fixed", the default, verifies what
the prompt asks for. In "fixed", a blank answer follows no constraint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from easylm_jax.rewards.instructions import tokens
from easylm_jax.rewards.instructions.pieces import STARS
from easylm_jax.rewards.instructions.scoring import find
from easylm_jax.rewards.text import answer_of, label_of
from models.errors import UserError

_SENTENCE = re.compile(r"(?<!\w\.\w.)(?<![A-Z][a-z]\.)(?<=[.?!])\s")
_SENTENCE_TULU3 = re.compile(r"(?<!\w\.\w.)(?<![A-Z][a-z]\.)(?<=[.?])\s")  # an exclamation ends none
_QUANTIFIERS = ("at least", "around", "at most")
_RULE = "* * *"
Check = Callable[..., bool]


def ifeval_old(response: str, record: Mapping[str, Any], version: str = "fixed") -> float:
    """1 if the answer (the text after the last `</think>`) follows the constraint of the label.

    Raises:
        UserError: the label names an unknown constraint or has invalid arguments, or the version is unknown.
    """
    if version not in ("tulu3", "fixed"):
        raise UserError(f"reward: ifeval_old has the versions tulu3 and fixed, not {version!r}")
    label = label_of(record)
    name, given = _constraint(label)
    check, kinds = FUNCTIONS[name]
    arguments = {key: _argument(name, key, given.get(key), kind) for key, kind in kinds.items()}
    answer = answer_of(response)
    if version == "fixed" and not answer:
        return 0.0
    return float(check(answer, version, **arguments))


def _constraint(label: Any) -> tuple[str, dict[str, Any]]:
    """The name of a label's function and its arguments; the label stays as it is."""
    given = label
    if isinstance(label, str):
        try:
            given = json.loads(label)
        except (ValueError, RecursionError):
            given = None
    if not isinstance(given, Mapping) or str(given.get("func_name")) not in FUNCTIONS:
        raise UserError(f"reward: ifeval_old needs a label with func_name, one of its 25, not {str(label)[:120]!r}")
    return given["func_name"], {key: value for key, value in given.items() if key != "func_name"}


def _argument(name: str, key: str, value: Any, kind: str) -> Any:
    """A validated argument of a function; raises `UserError` if it is invalid."""
    if kind == "count":
        number = int(value) if isinstance(value, str) and value.isdecimal() else value
        if isinstance(number, (int, float)) and not isinstance(number, bool) and number >= 0 and number % 1 == 0:
            return int(number)
    elif kind == "texts":
        if isinstance(value, (list, tuple)) and value and all(isinstance(one, str) for one in value):
            return list(value)
    elif isinstance(value, str):
        fits = {"text": value != "", "letter": len(value) == 1, "quantifier": value in _QUANTIFIERS}
        if fits[kind]:
            return value
    raise UserError(f"reward: ifeval_old: {name} needs {key}, a {kind}, not {str(value)[:80]!r}")


def _as_published(name: str, arguments: dict[str, Any], answer: str) -> bool:
    """The repaired check of IFEval's instruction of the same meaning."""
    return find(name).holds(answer, arguments, "fixed")


def _quantified(count: int, quantifier: str, bound: int, around: int) -> bool:
    if quantifier == "at least":
        return count >= bound
    return count <= bound if quantifier == "at most" else abs(count - bound) <= around


def _tenth(bound: int) -> int:
    return max(round(bound * 0.1), 1)


# Words and letters


def _keywords(text: str, version: str, keyword_list: list[str]) -> bool:
    """All of them occur, inside of words too, in any case."""
    return all(word.lower() in text.lower() for word in keyword_list)


def _keyword_frequency(text: str, version: str, word: str, N: int) -> bool:
    """As many whole words; a phrase of several is counted in "fixed" alone."""
    if version == "tulu3":
        return re.findall(r"\b\w+\b", text.lower()).count(word.lower()) == N
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)) == N


def _forbidden_words(text: str, version: str, forbidden_words: list[str]) -> bool:
    """None of them occurs, inside of words neither, in any case."""
    return not any(word.lower() in text.lower() for word in forbidden_words)


def _letter_frequency(text: str, version: str, letter: str, N: int) -> bool:
    """As many of that letter in that case."""
    return text.count(letter) == N


def _language(text: str, version: str, language: str) -> bool:
    """langdetect finds that language (with a fixed seed; as published, its draws differed from call to call)."""
    return tokens.language(text) == language


# Lengths


def _paragraph_count(text: str, version: str, N: int) -> bool:
    """`* * *` makes as many pieces, none of them blank."""
    pieces = "\n".join(line.strip() for line in text.splitlines()).strip().split(_RULE)
    return len(pieces) == N and all(piece.strip() for piece in pieces)


def _word_constraint(text: str, version: str, N: int, quantifier: str) -> bool:
    """Words between blanks; "around" is a tenth, at least 1."""
    return _quantified(len(text.split()), quantifier, N, _tenth(N))


def _sentence_constraint(text: str, version: str, N: int, quantifier: str) -> bool:
    """Pieces between ends of sentences; "around" is 1."""
    pieces = (_SENTENCE_TULU3 if version == "tulu3" else _SENTENCE).split(text)
    return _quantified(len([one for one in pieces if one or version == "tulu3"]), quantifier, N, 1)


def _paragraphs(text: str, version: str, N: int, first_word: str, i: int) -> bool:
    """As many paragraphs, and number `i` starts with the word; in "fixed" blank ones do not count, and it is a word."""
    if version == "fixed":
        arguments = {"num_paragraphs": N, "nth_paragraph": i, "first_word": first_word}
        return i > 0 and _as_published("length_constraints:nth_paragraph_first_word", arguments, text)
    pieces = text.split("\n\n")
    return len(pieces) == N and 0 <= i <= N and pieces[i - 1].strip().startswith(first_word)


# Contents and format


def _postscript(text: str, version: str, postscript_marker: str) -> bool:
    """The marker occurs, and something behind it."""
    _, marker, rest = text.partition(postscript_marker)
    return bool(marker and (rest.strip() if version == "fixed" else rest.rstrip()))


def _placeholders(text: str, version: str, N: int) -> bool:
    """At least as many [...]; "tulu3" always holds, since what was computed was taken for true."""
    return version == "tulu3" or _as_published(
        "detectable_content:number_placeholders", {"num_placeholders": N}, text
    )  # fmt: skip


def _bullet_points(text: str, version: str, N: int) -> bool:
    """Exactly as many lines that start with * or -; in "fixed" a blank and a text must follow."""
    if version == "fixed":
        return _as_published("detectable_format:number_bullet_lists", {"num_bullets": N}, text)
    return sum(line.strip().startswith(("*", "-")) for line in text.split("\n")) == N


def _title(text: str, version: str) -> bool:
    """<<...>> on one line; in "fixed" with something in it."""
    if version == "fixed":
        return _as_published("detectable_format:title", {}, text)
    return any(0 <= line.find("<<") <= line.rfind(">>") - 2 for line in text.split("\n"))


def _choice(text: str, version: str, options: list[str]) -> bool:
    """One of the options occurs as whole words; in "tulu3" the answer is a part of one."""
    if version == "tulu3":
        return any(text in option for option in options)
    return any(re.search(rf"(?<!\w){re.escape(one.strip())}(?!\w)", text) for one in options if one.strip())


def _highlighted_sections(text: str, version: str, N: int) -> bool:
    """At least as many *...*; in "tulu3" each pair of stars on a line is one, so that **a** is two."""
    if version == "fixed":
        return _as_published("detectable_format:number_highlighted_sections", {"num_highlights": N}, text)
    return sum(line.count("*") // 2 for line in text.split("\n")) >= N


def _sections(text: str, version: str, N: int, section_splitter: str) -> bool:
    """At least as many heads, "Section 1"; in "tulu3" the splitter cuts the text into exactly as many pieces."""
    if version == "fixed":
        arguments = {"section_spliter": section_splitter, "num_sections": N}
        return _as_published("detectable_format:multiple_sections", arguments, text)
    return text.count(section_splitter) + (text != "" and not text.startswith(section_splitter)) == N


def _json(text: str, version: str) -> bool:
    """All of it is JSON; in "fixed" an object or a list, perhaps in a fence."""
    if version == "fixed":
        return _as_published("detectable_format:json_format", {}, text)
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _repeat_prompt(text: str, version: str, original_prompt: str) -> bool:
    """It starts with the prompt; in "tulu3" the prompt is all that stands before the first ". "."""
    if version == "tulu3":
        return text.split(". ", 1)[0] == original_prompt
    return text.startswith(original_prompt.strip())


def _two_responses(text: str, version: str) -> bool:
    """****** stands once between two different texts; in "fixed" neither is blank."""
    pieces = [piece.strip() for piece in text.split(STARS)]
    return len(pieces) == 2 and pieces[0] != pieces[1] and (version == "tulu3" or all(pieces))


def _uppercase(text: str, version: str) -> bool:
    """No small letter; in "fixed" there are letters."""
    return text.isupper() if version == "fixed" else text == text.upper()


def _lowercase(text: str, version: str) -> bool:
    """No capital letter; in "fixed" there are letters."""
    return text.islower() if version == "fixed" else text == text.lower()


def _capital_words(text: str, version: str, N: int, quantifier: str) -> bool:
    """Words of capital letters A to Z; "around" is a tenth, at least 1, and in "tulu3" the number itself."""
    around = 0 if version == "tulu3" else _tenth(N)
    return _quantified(len(re.findall(r"\b[A-Z]+\b", text)), quantifier, N, around)


def _end(text: str, version: str, end_phrase: str) -> bool:
    """The last words are the phrase; in "fixed" blanks at the phrase's end do not count."""
    return text.endswith(end_phrase.strip() if version == "fixed" else end_phrase)


def _quotation(text: str, version: str) -> bool:
    """The first and the last character are double quotes; in "fixed" they are two."""
    return text.startswith('"') and text.endswith('"') and (version == "tulu3" or len(text) > 1)


def _no_commas(text: str, version: str) -> bool:
    return "," not in text


FUNCTIONS: dict[str, tuple[Check, dict[str, str]]] = {
    "verify_keywords": (_keywords, {"keyword_list": "texts"}),
    "verify_keyword_frequency": (_keyword_frequency, {"word": "text", "N": "count"}),
    "validate_forbidden_words": (_forbidden_words, {"forbidden_words": "texts"}),
    "verify_letter_frequency": (_letter_frequency, {"letter": "letter", "N": "count"}),
    "validate_response_language": (_language, {"language": "text"}),
    "verify_paragraph_count": (_paragraph_count, {"N": "count"}),
    "validate_word_constraint": (_word_constraint, {"N": "count", "quantifier": "quantifier"}),
    "verify_sentence_constraint": (_sentence_constraint, {"N": "count", "quantifier": "quantifier"}),
    "validate_paragraphs": (_paragraphs, {"N": "count", "first_word": "text", "i": "count"}),
    "verify_postscript": (_postscript, {"postscript_marker": "text"}),
    "validate_placeholders": (_placeholders, {"N": "count"}),
    "verify_bullet_points": (_bullet_points, {"N": "count"}),
    "validate_title": (_title, {}),
    "validate_choice": (_choice, {"options": "texts"}),
    "validate_highlighted_sections": (_highlighted_sections, {"N": "count"}),
    "validate_sections": (_sections, {"N": "count", "section_splitter": "text"}),
    "validate_json_format": (_json, {}),
    "validate_repeat_prompt": (_repeat_prompt, {"original_prompt": "text"}),
    "validate_two_responses": (_two_responses, {}),
    "validate_uppercase": (_uppercase, {}),
    "validate_lowercase": (_lowercase, {}),
    "validate_frequency_capital_words": (_capital_words, {"N": "count", "quantifier": "quantifier"}),
    "validate_end": (_end, {"end_phrase": "text"}),
    "validate_quotation": (_quotation, {}),
    "validate_no_commas": (_no_commas, {}),
}
