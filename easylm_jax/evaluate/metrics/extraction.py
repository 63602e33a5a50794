"""The answer that a response gives, found in its text."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping
from typing import Any

from easylm_jax.rewards.maths.extract import last_boxed, last_number, minerva
from easylm_jax.rewards.text import chosen

_ANSWER_IS = re.compile(r"[tT]he answer is (.*?)\.(?=\s|$)", re.DOTALL)
_ANSWER_LINE = re.compile(r"[tT]he answer is (.*?)\.?\s*$", re.MULTILINE)
_NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*")

Extract = Callable[[str, Mapping[str, Any]], str | None]  # (text, document) → the answer


def first_paragraph(text: str) -> str:
    """What stands before the first empty line."""
    return text.strip().partition("\n\n")[0]


def answer_is(text: str, document: Any = None) -> str | None:
    """What "the answer is" is followed by in the first paragraph, up to the next full stop or the end of the line:
    BIG-Bench Hard's answer to a chain-of-thought prompt. None if the phrase is missing."""
    part = first_paragraph(text)
    found = _ANSWER_IS.search(part) or _ANSWER_LINE.search(part)
    return found[1].strip() if found else None


def answer_is_or_all(text: str, document: Any = None) -> str:
    """The same, and the first paragraph where the phrase is missing."""
    found = answer_is(text)
    return first_paragraph(text) if found is None else found


def first_line(text: str, document: Any = None) -> str:
    """The first line, without white space at its ends."""
    return text.strip().partition("\n")[0].strip()


def number_said(text: str, document: Any = None) -> str | None:
    """The last number of a text, without commas."""
    return last_number(text)


def minerva_answer(text: str, document: Any = None) -> str | None:
    """The answer in Minerva's sentence ("The final answer is …"), else in the last box."""
    said = minerva(text)
    return last_boxed(text) if said is None else said


def letter_after(phrase: str, letters: str | int) -> Extract:
    """Finds the letter that a response chooses: the last one after `phrase`, then after looser phrases, then the last
    in parentheses, then the last capital on its own (spec tulu3 §8.2).

    Args:
        phrase: what the prompt asked to write before the answer.
        letters: the letters that there are, or how many from A.
    """
    allowed = string.ascii_uppercase[:letters] if isinstance(letters, int) else letters

    def extract(text: str, document: Any = None) -> str | None:
        return chosen(text, phrase, allowed)

    return extract


def code_block(text: str, document: Any = None) -> str:
    """The program of a response: the text up to the next ``` where the prompt has opened a block, the first block
    otherwise, the whole text without one."""
    before, mark, rest = text.partition("```")
    if not mark:
        return text
    if before.strip():
        return before
    body = rest.partition("```")[0]
    first, newline, code = body.partition("\n")
    return code if newline and first.strip().isidentifier() else body
