"""Parts of a text that several checks of IFEval and IFTrain count: pieces between dividers, lines, brackets."""

from __future__ import annotations

import re
from collections.abc import Iterator

STARS = "******"
_DIVIDER = re.compile(r"\s?\*\*\*\s?")
_LOOSE_DIVIDER = re.compile(r"\s?\*\s?\*\s?\*\s?")  # "* * *", as some texts of the instruction show it


def starred_pieces(text: str, version: str) -> list[str]:
    """What *** divides; in "fixed" * * * does as well."""
    return (_LOOSE_DIVIDER if version == "fixed" else _DIVIDER).split(text)


def filled(pieces: list[str]) -> list[str] | None:
    """The pieces that are not blank; None where a blank one stands between others."""
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
