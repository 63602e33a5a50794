"""Answers as tokens: numbers, letters, words, commands and signs."""

from __future__ import annotations

import re

LONGEST = 1000  # characters of an answer that is read
_MOST_TOKENS = 400
_MOST_DIGITS = 300


class Unreadable(Exception):
    """The text is no answer that is read here."""


_TOKEN = re.compile(
    r"(?P<num>\d+(?:\.\d+)?(?:[eE][+-]?\d{1,3}(?![\w.]))?|\.\d+)|(?P<cmd>\\(?:[A-Za-z]+|[{}|%\\]))|(?P<name>[A-Za-z]+)"
    r"|(?P<sym>\*\*|<=|>=|!=|[-+*/^_(){}\[\]|,;=<>!%&'])|(?P<blank>\s+)"
)
FUNCTIONS = {
    name: name for name in
    ("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "ln", "exp")
}  # fmt: skip
FUNCTIONS |= {"asin": "arcsin", "acos": "arccos", "atan": "arctan"}


def tokens_of(text: str) -> list[str]:
    """The tokens of an answer; a run of letters is one function or word, or several variables.

    Raises:
        Unreadable: it has a character that is no part of one, or too many digits or tokens.
    """
    tokens, at = [], 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise Unreadable(f"{text[at]!r}")
        at = found.end()
        if found.lastgroup == "blank":
            continue
        token = found[0]
        if found.lastgroup == "num" and len(token) > _MOST_DIGITS:
            raise Unreadable("too many digits")
        tokens += _letters(token) if found.lastgroup == "name" else [token]
    if not 0 < len(tokens) <= _MOST_TOKENS:
        raise Unreadable("nothing, or too much")
    return tokens


def _letters(name: str) -> list[str]:
    """A run of letters: a function, a constant, a product of at most three small variables, or else a word."""
    if len(name) == 1 or name in FUNCTIONS or name in ("sqrt", "log", "abs", "pi", "or", "and", "infty"):
        return [name if len(name) == 1 else f"\\{name}"]
    if name.lower() in ("inf", "infinity", "oo"):
        return ["\\infty"]
    if name.startswith("pi") and len(name) == 3:
        return ["\\pi", name[2]]
    if len(name) <= 3 and name.islower():
        return list(name)
    return [f"'{name}"]
