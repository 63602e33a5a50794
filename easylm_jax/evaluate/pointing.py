"""Pointing and counting: the grammar, the parser, matching metrics, and pictures with the points drawn.

from easylm_jax.evaluate import pointing
pointing.read(response)                      → [(x, y), …] in percent
pointing.matched(response, record).f1
pointing.counting([(said, gold), …])         → accuracy, within one, valid, by number
pointing.draw("a.jpg", pointing.read(response)).save("shown.png")
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from easylm_jax.data.points import Point, in_order, is_well_formed, read, read_count, write, write_count
from easylm_jax.rewards.pictures import Pointing
from easylm_jax.rewards.pictures import pointing as matched
from models.molmo import decode

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "Point",
    "Pointing",
    "counting",
    "draw",
    "in_order",
    "is_well_formed",
    "matched",
    "read",
    "read_count",
    "to_pixels",
    "write",
    "write_count",
]


def to_pixels(points: Sequence[Point], width: int, height: int) -> list[Point]:
    """Points in percent as pixels of a picture."""
    return [(x / 100 * width, y / 100 * height) for x, y in points]


def counting(pairs: Sequence[tuple[int | None, int]]) -> dict[str, Any]:
    """Metrics of counts, from pairs of what a response said (None: no number) and what is there (spec molmo §13.4).

    `accuracy`, `within_one` and `valid` are shares of all; `by_count` the accuracy for each number that is there, and
    `macro` its mean.
    """
    if not pairs:
        raise ValueError("no counts to compare")
    right = np.array([said == gold for said, gold in pairs])
    near = np.array([said is not None and abs(said - gold) <= 1 for said, gold in pairs])
    golds = np.array([gold for _, gold in pairs])
    by_count = {int(gold): float(right[golds == gold].mean()) for gold in sorted(set(golds.tolist()))}
    return {
        "accuracy": float(right.mean()), "within_one": float(near.mean()),
        "valid": float(np.mean([said is not None for said, _ in pairs])),
        "by_count": by_count, "macro": float(np.mean(list(by_count.values()))),
    }  # fmt: skip


def draw(picture: Any, points: Sequence[Point], *, colour: str = "magenta") -> Image:
    """The picture with points in percent drawn as numbered rings; `picture` is what `decode.read` takes."""
    from PIL import Image, ImageDraw

    shown = Image.fromarray(decode.read(picture))
    pen, radius = ImageDraw.Draw(shown), max(2, min(shown.size) // 60)
    for number, (x, y) in enumerate(to_pixels(points, *shown.size), start=1):
        box = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse(box, outline="white", width=max(1, radius // 2) + 1)
        pen.ellipse(box, outline=colour, width=max(1, radius // 2))
        pen.text((x + radius + 1, y - radius), str(number), fill=colour)
    return shown
