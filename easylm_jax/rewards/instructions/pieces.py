"""Helpers shared by verifiers of IFEval and IFTrain: pieces between dividers, text in brackets."""

from __future__ import annotations

import re
from collections.abc import Iterator

STARS = "******"
_DIVIDER = re.compile(r"\s?\*\*\*\s?")
_LOOSE_DIVIDER = re.compile(r"\s?\*\s?\*\s?\*\s?")  # "* * *", as some texts of the instruction show it


def starred_pieces(text: str, version: str) -> list[str]:
    """The pieces of a text between "***" dividers; in "fixed" also between "* * *"."""
    return (_LOOSE_DIVIDER if version == "fixed" else _DIVIDER).split(text)


def filled(pieces: list[str]) -> list[str] | None:
    """The pieces that are not blank; None if a blank piece is between others."""
    if any(not piece.strip() for piece in pieces[1:-1]):
        return None
    return [piece for piece in pieces if piece.strip()]


def spans(text: str, opener: str, closer: str) -> Iterator[str]:
    """The shortest spans from `opener` to `closer` within each line, in time linear in the text."""
    for line in text.split("\n"):
        start = line.find(opener)
        while start >= 0:
            end = line.find(closer, start + len(opener))
            if end < 0:
                break
            yield line[start + len(opener) : end]
            start = line.find(opener, end + len(closer))
