"""Points in text: how a model writes them, and how a response is read (spec molmo §13).

    <point x="12.5" y="40.0" alt="dog">dog</point>
    <points x1="12.5" y1="40.0" x2="61.0" y2="43.2" alt="dog">dog</points>

Coordinates are percent of width and height from the top left, with one decimal; points are sorted by x, then by y.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

Point = tuple[float, float]

NONE = "There are none."
_NUMBER = r"\s*(\d+(?:\.\d+)?)\s*"
_CLICK = re.compile(rf"Click\({_NUMBER},{_NUMBER}\)")
_PAIR = re.compile(rf"\({_NUMBER},{_NUMBER}\)")
_ATTRIBUTES = re.compile(rf"""x(\d*)\s*=\s*["']?{_NUMBER}["']?\s*,?\s*y\1\s*=\s*["']?{_NUMBER}["']?""")
_COMPACT = re.compile(r"\b(?:\d+|p)\s*=\s*(\d{3})\s*,\s*(\d{3})\b")
_WHOLE = (
    re.compile(r"\s*<point\b[^<>]*>[^<>]*</point>\s*"),
    re.compile(r"\s*<points\b[^<>]*>[^<>]*</points>\s*"),
    re.compile(rf"\s*\({_NUMBER},{_NUMBER}\)\s*(?:\n\s*\({_NUMBER},{_NUMBER}\)\s*)*"),
)
_WORDS = {
    word: number
    for number, word in enumerate((
        "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
        "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
    ))
}  # fmt: skip


def in_order(points: Sequence[Sequence[float]]) -> list[Point]:
    """Points rounded to one decimal, by x and then by y."""
    rounded = [(round(float(x), 1), round(float(y), 1)) for x, y in points]
    return sorted(rounded, key=lambda p: 10_000 * p[0] + p[1])


def write(points: Sequence[Sequence[float]], label: str, alt: str | None = None) -> str:
    """The text of points in percent; `NONE` where there are none."""
    found, alt = in_order(points), label if alt is None else alt
    if not found:
        return NONE
    if len(found) == 1:
        (x, y), end = found[0], f'alt="{alt}">{label}</point>'
        return f'<point x="{x:.1f}" y="{y:.1f}" {end}'
    pairs = " ".join(f'x{k}="{x:.1f}" y{k}="{y:.1f}"' for k, (x, y) in enumerate(found, start=1))
    return f'<points {pairs} alt="{alt}">{label}</points>'


def write_count(points: Sequence[Sequence[float]], label: str) -> str:
    """Points and then their number, so that the last index leads to the count."""
    if not points:
        return NONE
    return f"Counting the {write(points, label)} shows a total of {len(points)}."


def read(text: str) -> list[Point]:
    """The points of a response in percent, in the order of the text; any of the forms that Molmo models wrote.

    A form is looked for only where the ones before it left text. A point with a coordinate above 100 is left out.
    """
    found: list[tuple[int, Point]] = []
    for form, scale in ((_CLICK, 1.0), (_ATTRIBUTES, 1.0), (_PAIR, 1.0), (_COMPACT, 0.1)):
        for hit in form.finditer(text):
            x, y = (float(value) * scale for value in hit.groups()[-2:])
            found.append((hit.start(), (x, y)))
        text = form.sub(lambda hit: " " * len(hit[0]), text)
    return [point for _, point in sorted(found, key=lambda item: item[0]) if max(point) <= 100]


def is_well_formed(text: str) -> bool:
    """Whether a whole response is one element of points, or a list of pairs, one a line."""
    return bool(read(text)) and any(form.fullmatch(text) for form in _WHOLE)


def read_count(text: str) -> int | None:
    """The number that a response gives: its last word, "a total of N", or none; None where it gives no number."""
    words = text.strip().lower().rstrip(".! ").split()
    last = words[-1].strip("\"'*,:;()") if words else ""
    if re.fullmatch(r"\d{1,9}", last):
        return int(last)
    if last in _WORDS:
        return _WORDS[last]
    total = re.findall(r"a total of\s+(\w+)", text.lower())
    if total:
        said = total[-1]
        return int(said) if re.fullmatch(r"\d{1,9}", said) else _WORDS.get(said)
    return 0 if re.search(r"\bnone\b", text.lower()) else None
