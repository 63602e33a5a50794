"""Verifiers of responses about pictures: short answers, counts and points (spec molmo §13, §14).

A record's points are `points`, pairs in percent of width and height. What counts as a hit is `regions`, one for each
point: a box [left, top, right, bottom] in percent; without them, a circle of `radius` percent round the point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from easylm_jax.data import points
from models.molmo import decode


class Pointing(NamedTuple):
    """Precision, recall and F1 of predicted points, each from 0 to 1."""

    precision: float
    recall: float
    f1: float


def pointing(response: str, record: Mapping[str, Any], *, radius: float = 5.0, strict: bool = False) -> Pointing:
    """How well the points of a response hit those of a record.

    Points are assigned one to one, with the least sum of distances; a point hits where it lies in the region of its
    target. Where nothing is there to point at, all three are 1 for a response without points and 0 otherwise.
    `strict`: a response that is not one well-formed element counts as without points, and is wrong.
    """
    gold, found = (
        np.array(record["points"], float).reshape(-1, 2),
        np.array(points.read(response), float).reshape(-1, 2),
    )
    if not len(gold):
        return Pointing(*[float(not len(found))] * 3)
    if not len(found) or (strict and not points.is_well_formed(response)):
        return Pointing(0.0, 0.0, 0.0)
    distance = np.linalg.norm(found[:, None] - gold, axis=-1)
    regions = record.get("regions")
    pairs = assign(distance)
    hits = sum(
        distance[i, j] <= radius if regions is None else _inside(found[i], regions[j]) for i, j in pairs
    )  # of the assigned pairs
    precision, recall = float(hits) / len(found), float(hits) / len(gold)
    return Pointing(precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0)


def assign(cost: np.ndarray) -> list[tuple[int, int]]:
    """The one-to-one assignment of rows to columns with the least sum, as (row, column)."""
    from scipy.optimize import linear_sum_assignment

    return [(int(i), int(j)) for i, j in zip(*linear_sum_assignment(cost), strict=True)]


def _inside(point: np.ndarray, box: Sequence[float]) -> bool:
    left, top, right, bottom = box
    return bool(left <= point[0] <= right and top <= point[1] <= bottom)


def shown(record: Mapping[str, Any], response: str) -> dict[str, Any]:
    """What a report shows of a response to a prompt about pictures; nothing for other prompts.

    `pictures` are small copies, `{"data", "width", "height"}`; `points` those of the response, in percent of the first.
    """
    names = [image["path"] for image in record.get("_images") or ()]
    if not names:
        return {}
    small = [dict(zip(("data", "width", "height"), decode.thumbnail(name), strict=True)) for name in names]
    return {"pictures": small, "points": points.read(response)}


def points_f1(response: str, record: Mapping[str, Any], *, radius: float = 5.0, strict: bool = False) -> float:
    """F1 of the points of a response."""
    return pointing(response, record, radius=radius, strict=strict).f1


def points_precision(response: str, record: Mapping[str, Any], *, radius: float = 5.0) -> float:
    """The share of a response's points that hit."""
    return pointing(response, record, radius=radius).precision


def points_recall(response: str, record: Mapping[str, Any], *, radius: float = 5.0) -> float:
    """The share of a record's points that are hit."""
    return pointing(response, record, radius=radius).recall


def count(response: str, record: Mapping[str, Any], *, within: int = 0) -> float:
    """1 where the number that a response gives is the record's `count`, or at most `within` from it; 0 otherwise."""
    said = points.read_count(response)
    return float(said is not None and abs(said - int(record["count"])) <= within)


def count_valid(response: str, record: Mapping[str, Any]) -> float:
    """1 where a response gives a number at all."""
    return float(points.read_count(response) is not None)


def short_answer(response: str, record: Mapping[str, Any]) -> float:
    """1 where a response is the record's `answer` (or one of a list), case and outer punctuation apart."""
    gold = record["answer"]
    return float(_plain(response) in {_plain(one) for one in ([gold] if isinstance(gold, str) else gold)})


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).strip(" .,!?\"'")
