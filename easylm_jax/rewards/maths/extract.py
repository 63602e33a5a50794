"""Extraction of the final answer of a response, by patterns in order of preference.

All searches run from the end, or once over the text, so that megabytes take milliseconds.
"""

from __future__ import annotations

import re

from easylm_jax.rewards.maths.tokens import LONGEST

NUMBER = re.compile(r"[-+]?(?:\d*\.\d+|\d+)")  # Tülu 3's; spec tulu3 §6.1
_COMMA = re.compile(r"(?<=\d),(?=\d)")
_MINERVA = "Final Answer: The final answer is"
_MINERVA_END = ". I hope it is correct"
_REACH = 8 * LONGEST  # maximum number of characters searched for the end of a box
_SAID = re.compile(r"(?:final answer|answer|result)\s*(?:is|:|=)+\s*:?\s*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?=\s|$)|\n|,\s(?=[a-z]{3})| because | since | which ")
# A number on its own: not part of a word, a command or a larger formula.
_ALONE = re.compile(
    r"(?<![\w\\{}^_./*+-])(?<![\d)\]}+*/-]\s)(?:-\s?)?\$?"
    r"(?:\d{1,3}\s\d{1,3}/\d{1,3}|(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,40})(?:\.\d{1,40})?(?:[eE][+-]?\d{1,3}|\s?/\s?\d{1,40})?)"
    r"(?![\w^_\\{/])(?!\.\d)(?!\s*[-+*/^=<>\\×·])%?"
)
_TAIL = 20_000  # characters at the end of a response that are searched


def last_number(text: str) -> str | None:
    """The last number of a text, as text, without commas between digits; None if there is none."""
    numbers = NUMBER.findall(_COMMA.sub("", text))
    return numbers[-1] if numbers else None


def without_commas(text: str) -> str:
    return _COMMA.sub("", text)


def braced(text: str, start: int) -> str | None:
    """The text between the brace at `start` and its matching brace; None if that is missing or too far away."""
    depth, end, at = 0, min(len(text), start + _REACH), start
    while at < end:
        character = text[at]
        if character == "\\":
            at += 2
            continue
        if character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[start + 1 : at]
        at += 1
    return None


def last_boxed(text: str) -> str | None:
    r"""The content of the last \boxed{…} or \fbox{…}, with matching braces; `\boxed x$` ends at the dollar sign."""
    at = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if at < 0:
        return None
    start = at + (len("\\boxed") if text.startswith("\\boxed", at) else len("\\fbox"))
    while start < len(text) and text[start] == " ":
        start += 1
    if text.startswith("{", start):
        return braced(text, start)
    end = text.find("$", start, start + LONGEST)
    return text[start : end if end >= 0 else min(len(text), start + LONGEST)].strip() or None


def minerva(text: str) -> str | None:
    """The answer of the last sentence in Minerva's form ("Final Answer: The final answer is …")."""
    at = text.rfind(_MINERVA)
    if at < 0:
        return None
    start = at + len(_MINERVA)
    end = text.find(_MINERVA_END, start, start + _REACH)
    return text[start:end].strip() if end >= 0 else None


def candidates(text: str) -> list[str]:
    """The candidate answers of a response, at most four: those of the first pattern that matches, where a box and
    Minerva's sentence count as one pattern (spec tulu3 §6.2)."""
    found = [answer for answer in (last_boxed(text), minerva(text)) if answer is not None]
    if not found:
        found = [answer for answer in (_hashes(text), _said(text)) if answer is not None]
    if not found and (between := _dollars(text)) is not None:
        found = [between]
    if not found:
        found = [text.strip()] if len(text) <= LONGEST else []
        alone = _last_alone(text)
        if alone is not None:
            found.append(alone)
    return [answer[: LONGEST + 1] for answer in found]


def _hashes(text: str) -> str | None:
    at = text.rfind("####")
    if at < 0:
        return None
    return text[at + 4 : at + 4 + LONGEST].strip().partition("\n")[0].strip() or None


def _said(text: str) -> str | None:
    """The text after the last "the answer is", to the end of its sentence; or of the formula if it starts with one."""
    tail = text[-_TAIL:].replace("\\$", "")
    last = _last(_SAID, tail)
    if last is None:
        return None
    rest = tail[last.end() : last.end() + LONGEST].lstrip("* \n")
    for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if rest.startswith(opening) and (end := rest.find(closing, len(opening))) > 0:
            if rest[1:2].isdigit() and opening == "$" and " " in rest[1:end]:
                continue  # $5 and $6: prices
            return rest[len(opening) : end].strip()
    return _SENTENCE_END.split(rest, maxsplit=1)[0].strip(" *") or None


def _dollars(text: str) -> str | None:
    """The text between the last two dollar signs (or in the last \\(…\\))."""
    tail = text[-_TAIL:].replace("\\$", "")
    end = tail.rfind("\\)")
    start = tail.rfind("\\(", 0, end) if end >= 0 else -1
    if start >= 0:
        return tail[start + 2 : end].strip() or None
    end = tail.rfind("$")
    if end > 0 and tail[end - 1] == "$":
        end -= 1
    start = tail.rfind("$", 0, end) if end > 0 else -1
    while start > 0 and tail[start - 1] == "\\":
        start = tail.rfind("$", 0, start - 1)
    between = tail[start + 1 : end] if start >= 0 else ""
    if len(between) > LONGEST or (between[:1].isdigit() and between.endswith(" ")):
        return None  # $5 and $6: prices
    return between.strip() or None


def _last_alone(text: str) -> str | None:
    last = _last(_ALONE, text[-_TAIL:])
    return last[0].lstrip("$").strip() if last else None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = None
    for found in pattern.finditer(text):  # noqa: B007 - the last one is what counts
        pass
    return found
