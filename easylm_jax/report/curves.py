"""What is drawn of a curve: its mean over seeds, a moving average where it is long, and which points are outliers.

A curve is a list of points (x, y) with increasing x.
"""

from __future__ import annotations

import bisect
import itertools
import math
import statistics
from collections.abc import Sequence

Point = tuple[float, float]
Interval = tuple[float, float]

MOST_POINTS = 240  # of a line
SMOOTH_FROM = 60  # points; shorter curves are drawn as they are
NOISE = 1 / 100  # of the range of a curve: so large are the typical steps of a noisy one
WINDOW = 1 / 20  # of the curve: width of the moving average
CRUSH = 5.0  # outliers are set aside if without them the axis is so many times shorter
OUTLIERS = 1 / 20  # at most this share of all points, or one for each curve
RUN = 1 / 50  # so many neighbours outside, of the points of a curve, or 3, are part of it and no outliers


def mean_curve(curves: Sequence[Sequence[Point]]) -> list[Point]:
    """The mean of curves at every x that all of them have."""
    tables = [dict(curve) for curve in curves if curve]
    if not tables or len(tables) < len(curves):
        return []
    return [(x, sum(t[x] for t in tables) / len(tables)) for x in tables[0] if all(x in t for t in tables)]


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points: means of consecutive points."""
    size = math.ceil(len(points) / most)
    if size <= 1:
        return list(points)
    chunks = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in chunk) / len(chunk), sum(y for _, y in chunk) / len(chunk)) for chunk in chunks]


def is_noisy(points: Sequence[Point]) -> bool:
    """Whether a curve is long and rough, so that its moving average is easier to read."""
    if len(points) <= SMOOTH_FROM:
        return False
    values = [y for _, y in points]
    steps = [abs(after - before) for before, after in zip(values, values[1:], strict=False)]
    return statistics.median(steps) > NOISE * (max(values) - min(values))


def smoothed(points: Sequence[Point], window: float = WINDOW) -> list[Point]:
    """The moving average of a curve, over this share of it. Towards both ends the window becomes narrower, to a third,
    so that it stays centred for longer."""
    half = max(1, round(len(points) * window / 2))
    sums = list(itertools.accumulate((y for _, y in points), initial=0.0))
    averaged = []
    for i, (x, _) in enumerate(points):
        reach = min(half, max(half // 3, min(i, len(points) - 1 - i)))
        start, end = max(0, i - reach), min(len(points), i + reach + 1)
        averaged.append((x, (sums[end] - sums[start]) / (end - start)))
    return averaged


def band(curves: Sequence[Sequence[Point]], window: float = WINDOW) -> list[tuple[float, float, float]]:
    """(x, low, high): the 10 % and 90 % quantiles of the points of all curves in each window along x."""
    points = sorted(point for curve in curves for point in curve)
    count = max(2, math.ceil(1 / window))
    size = max(2, len(points) / count)
    edges = [round(i * size) for i in range(math.ceil(len(points) / size) + 1)]
    bands = []
    for start, end in zip(edges, edges[1:], strict=False):
        near = points[start:end]
        if len(near) > 1:
            deciles = statistics.quantiles([y for _, y in near], n=10, method="inclusive")
            bands.append((sum(x for x, _ in near) / len(near), deciles[0], deciles[-1]))
    if bands:  # from the first to the last point
        bands = [(points[0][0], *bands[0][1:]), *bands, (points[-1][0], *bands[-1][1:])]
    return bands


def robust_range(curves: Sequence[Sequence[float]]) -> Interval:
    """The lowest and the highest value that an axis should show.

    That is the full range, unless a few isolated values would crush the rest: then what lies within half the range of
    the others, or closer.
    """
    values = sorted(value for curve in curves for value in curve)
    if not values:
        return 0.0, 0.0
    full = values[0], values[-1]
    most = min(max(len(curves), int(len(values) * OUTLIERS)), len(values) // 4)
    trimmed = _trimmed(values, most)
    if trimmed is None:
        return full
    reach = (trimmed[1] - trimmed[0]) / 2
    near = [value for value in values if trimmed[0] - reach <= value <= trimmed[1] + reach]
    found = near[0], near[-1]
    isolated = all(_longest_outside(curve, found) < max(3, len(curve) * RUN) for curve in curves)
    return found if isolated else full


def _trimmed(values: Sequence[float], most: int) -> Interval | None:
    """The range of sorted values without as few as possible, so that it becomes `CRUSH` times shorter."""
    spread = values[-1] - values[0]

    def narrowest(removed: int) -> Interval:
        ranges = [(values[low], values[len(values) - 1 - removed + low]) for low in range(removed + 1)]
        return min(ranges, key=lambda one: one[1] - one[0])

    def is_enough(removed: int) -> bool:
        start, end = narrowest(removed)
        return (end - start) * CRUSH < spread

    removed = bisect.bisect_left(range(most + 1), True, key=is_enough)
    if removed > most:
        return None
    start, end = narrowest(removed)
    return (start, end) if end > start else None  # without any spread, as of a count that is mostly 0, all is shown


def _longest_outside(curve: Sequence[float], shown: Interval) -> int:
    longest = run = 0
    for value in curve:
        run = 0 if shown[0] <= value <= shown[1] else run + 1
        longest = max(longest, run)
    return longest


def fading(points: Sequence[Point], segments: int = 16) -> list[tuple[list[Point], float]]:
    """A path in pieces, each with its opacity: pale where it begins, full where it ends."""
    pieces = max(1, min(segments, len(points) - 1))
    edges = [round(i * (len(points) - 1) / pieces) for i in range(pieces + 1)]
    return [
        (list(points[start : end + 1]), 0.25 + 0.75 * (i + 1) / pieces)
        for i, (start, end) in enumerate(zip(edges, edges[1:], strict=False))
    ]
