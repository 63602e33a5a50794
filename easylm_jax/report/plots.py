"""Draws figures as inline SVG: lines with bands, paths, points with intervals, stacked bars.

Colours are CSS classes of the page (s0 … s7), so that figures follow its light or dark scheme. Every series has a
tooltip with its name and points.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Callable, Sequence

from easylm_jax.report.curves import Interval, Point, fading

COLOURS = 8
CHARACTER = 6.6  # approximate width of a character of labels, in pixels


@dataclasses.dataclass(frozen=True)
class Series:
    """Points (x, y) in one colour.

    `look` is "line", "thin" (a pale line), "path" (a line that is pale where it begins), "marks" (only points) or
    "both". `y_intervals` and `x_intervals` are the absolute (low, high) of each point, and `band` the (x, low, high)
    of a pale area. `outside` are outliers, which do not count for the axes and are marked at the edge. `colour` counts
    from 0; colours beyond the palette are dashed lines. With `in_legend` False the name is shown only in tooltips.
    `end` marks the last point; `labels` draws the name next to each point.
    """

    name: str
    points: Sequence[Point]
    colour: int = 0
    look: str = "line"
    y_intervals: Sequence[Interval] | None = None
    x_intervals: Sequence[Interval] | None = None
    band: Sequence[tuple[float, float, float]] = ()
    outside: Sequence[Point] = ()
    in_legend: bool = True
    end: bool = False
    labels: bool = False

    @property
    def classes(self) -> str:
        dashed = f" d{self.colour // COLOURS % 3}" if self.colour >= COLOURS else ""
        return f"s{self.colour % COLOURS}{dashed}"


@dataclasses.dataclass(frozen=True)
class Frame:
    """The plotting area in pixels, and the data ranges of its axes."""

    left: float
    right: float
    top: float
    bottom: float
    x: Interval
    y: Interval

    def at(self, point: Point) -> Point:
        """The pixel position of a point."""
        return self.across(point[0]), self.up(point[1])

    def across(self, value: float) -> float:
        return self.left + (value - self.x[0]) / (self.x[1] - self.x[0]) * (self.right - self.left)

    def up(self, value: float) -> float:
        return self.bottom - (value - self.y[0]) / (self.y[1] - self.y[0]) * (self.bottom - self.top)

    def clamped(self, point: Point) -> Point:
        """The pixel position of a point, or of the nearest point of the plotting area."""
        x, y = self.at(point)
        return min(max(x, self.left), self.right), min(max(y, self.top), self.bottom)


def line_chart(
    series: Sequence[Series], *, x_label: str, y_label: str, title: str = "", width: int = 640, height: int = 330,
    legend: bool = True, x_names: Callable[[float], str] | None = None, least: float = 0.0, diagonal: bool = False,
) -> str:  # fmt: skip
    """A line chart of the series as SVG; "" if no series has a point. `x_names` formats the ticks of the x axis;
    `least` is the shortest y axis, which keeps chance differences small. With `diagonal` both axes have one range and
    a line where x equals y."""
    series = [dataclasses.replace(one, points=list(one.points)) for one in series if one.points or one.outside]
    if not any(one.points for one in series):
        return ""
    y_low, y_high = _extent(series, 1)
    if (missing := least - (y_high - y_low)) > 0:
        y_low, y_high = y_low - missing / 2, y_high + missing / 2
    x_low, x_high = _extent(series, 0)
    if diagonal:
        x_low = y_low = min(x_low, y_low)
        x_high = y_high = max(x_high, y_high)
    y_ticks = nice_ticks(y_low, y_high, 5 if height > 240 else 4)
    exact = all(one.look in ("line", "thin", "both") and not one.x_intervals for one in series)
    x_ticks = y_ticks if diagonal else nice_ticks(x_low, x_high, max(4, width // 90), inside=exact)
    entries = [(one.classes, one.name, one.look) for one in series if one.in_legend] if legend else []
    rows = _legend_rows(entries, width)
    tick_width = max(len(text) for text in tick_labels(y_ticks)) * CHARACTER
    frame = Frame(
        left=tick_width + 30, right=width - 14, top=(26 if title else 10) + 20 * len(rows), bottom=height - 44,
        x=(x_low, x_high) if exact and not diagonal else (x_ticks[0], x_ticks[-1]), y=(y_ticks[0], y_ticks[-1]),
    )  # fmt: skip
    parts = [_legend(rows, 26 if title else 10), _axes(frame, x_ticks, y_ticks, x_label, y_label, x_names)]
    if diagonal:
        parts.append(f'<line class="grid" x1="{frame.left:.1f}" y1="{frame.bottom:.1f}" x2="{frame.right:.1f}" '
                     f'y2="{frame.top:.1f}"/>')  # fmt: skip
    parts += [_draw_band(one, frame) for one in series if one.band]
    parts += [_draw_series(one, frame) for one in series]
    parts += [_draw_outside(one, frame) for one in series]
    parts.append(_point_labels([one for one in series if one.labels], frame))
    return _svg(width, height, title, "".join(parts), f"{title or y_label} against {x_label}")


def bar_chart(
    bars: Sequence[tuple[str, Sequence[float]]], parts: Sequence[str], *, x_label: str, values: Sequence[str],
    title: str = "", width: int = 640, colours: Sequence[int] = tuple(range(COLOURS)),
    intervals: Sequence[Interval] = (),
) -> str:  # fmt: skip
    """Horizontal stacked bars as SVG: (name, lengths of its `parts`) each, with the text in `values` after each bar.

    `intervals` are the absolute (low, high) of each bar. A bar of one part may be negative.
    """
    if not bars:
        return ""
    totals = [sum(lengths) for _, lengths in bars]
    ends = [0.0, *totals, *(edge for interval in intervals for edge in interval)]
    ticks = nice_ticks(min(ends), max(ends) if max(ends) > min(ends) else 1.0, 5)
    named = [(f"s{colours[i]}", name, "bar") for i, name in enumerate(parts)] if len(parts) > 1 else []
    rows = _legend_rows(named, width)
    top = (26 if title else 8) + 20 * len(rows)
    height = int(top + 22 * len(bars) + 44)
    most = int(width * 0.4 / CHARACTER)
    shown = [name if len(name) <= most else f"{name[: most - 1]}…" for name, _ in bars]
    left = max(map(len, shown)) * CHARACTER + 16
    room = max(len(value) for value in values) * CHARACTER + 12
    frame = Frame(left, width - room, top, height - 44, (ticks[0], ticks[-1]), (0.0, 1.0))
    drawn = [_legend(rows, 26 if title else 8), _axes(frame, ticks, [], x_label, "")]
    for i, ((name, lengths), value) in enumerate(zip(bars, values, strict=True)):
        y, start = top + 22 * i + 4, 0.0
        drawn.append(_text(frame.left - 8, y + 11, shown[i], "end"))
        for j, length in enumerate(lengths):
            x, end = sorted((frame.across(start), frame.across(start + length)))
            tip = f"<title>{_safe(name)}, {_safe(parts[j])}</title>"
            drawn.append(f'<rect class="bar s{colours[j]}" x="{x:.1f}" y="{y:.1f}" width="{end - x:.1f}" '
                         f'height="14">{tip}</rect>')  # fmt: skip
            start += length
        after = max(start, 0.0)
        if intervals:
            low, high = map(frame.across, intervals[i])
            drawn.append(f'<line class="whisker" x1="{low:.1f}" y1="{y + 7:.1f}" x2="{high:.1f}" y2="{y + 7:.1f}"/>')
            after = max(after, intervals[i][1])
        drawn.append(_text(frame.across(after) + 6, y + 11, value, "start"))
    return _svg(width, height, title, "".join(drawn), title or x_label)


def swatch(one: Series) -> str:
    """A short line in the colour of a series, for a legend outside of figures."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 10" aria-hidden="true">'
        f'<line class="line {one.classes}" x1="0" y1="5" x2="24" y2="5"/></svg>'
    )


# Scales


def nice_ticks(low: float, high: float, about: int, inside: bool = False) -> list[float]:
    """Ticks at multiples of 1, 2 or 5 · 10ⁿ that cover [low, high]; with `inside`, only those within it."""
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = low / step, high / step
    first, last = (math.ceil(first - 1e-9), math.floor(last + 1e-9)) if inside else (
        math.floor(first + 1e-9), math.ceil(last - 1e-9))  # fmt: skip
    return [i * step for i in range(first, max(last, first + (not inside)) + 1)]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """The ticks as text, with as many decimals as needed; very large and small ones as powers of ten."""
    if not ticks:
        return [""]
    size = max(abs(tick) for tick in ticks)
    step = min((b - a for a, b in zip(ticks, ticks[1:], strict=False)), default=size or 1.0)
    if size and (size >= 1e6 or size < 1e-3):
        power = math.floor(math.log10(size))
        decimals = max(0, math.ceil(power - math.log10(step) - 1e-9))
        texts = [f"{tick / 10.0**power:.{decimals}f}e{power}" if tick else "0" for tick in ticks]
    else:
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        texts = [f"{tick:,.{decimals}f}" for tick in ticks]
    return [text.replace("-", "−") for text in texts]


def _extent(series: Sequence[Series], axis: int) -> Interval:
    values = [point[axis] for one in series for point in one.points]
    for one in series:
        for interval in (one.y_intervals if axis else one.x_intervals) or ():
            values += interval
        values += [edge for x, low, high in one.band for edge in ((low, high) if axis else (x,))]
        if (axis == 1) == (one.look == "marks"):  # outliers of marks lie beyond the x axis, those of lines the y axis
            values += [point[axis] for point in one.outside]
    low, high = min(values), max(values)
    if high - low < 1e-12 * max(abs(low), abs(high), 1e-300):
        pad = abs(low) * 0.1 or 1.0
        return low - pad, high + pad
    return low, high


# Drawing


def _svg(width: int, height: int, title: str, body: str, label: str) -> str:
    head = f'<text class="title" x="2" y="15">{_safe(title)}</text>' if title else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{_safe(label)}">{head}{body}</svg>'
    )


def _axes(
    frame: Frame, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str, y_label: str,
    x_names: Callable[[float], str] | None = None,
) -> str:  # fmt: skip
    parts = []
    for tick, text in zip(y_ticks, tick_labels(y_ticks), strict=False):
        y = frame.up(tick)
        parts.append(f'<line class="grid" x1="{frame.left:.1f}" y1="{y:.1f}" x2="{frame.right:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(frame.left - 6, y + 4, text, "end"))
    names = [x_names(tick) for tick in x_ticks] if x_names else tick_labels(x_ticks)
    for tick, text in zip(x_ticks, names, strict=False):
        x = frame.across(tick)
        kind = "tick" if y_ticks else "grid"
        start = frame.bottom if y_ticks else frame.top
        parts.append(f'<line class="{kind}" x1="{x:.1f}" y1="{start:.1f}" x2="{x:.1f}" y2="{frame.bottom + 4:.1f}"/>')
        over = x + len(text) * CHARACTER / 2 > frame.right + 12
        parts.append(_text(frame.right + 12 if over else x, frame.bottom + 17, text, "end" if over else "middle"))
    parts.append(f'<line class="axis" x1="{frame.left:.1f}" y1="{frame.bottom:.1f}" x2="{frame.right:.1f}" '
                 f'y2="{frame.bottom:.1f}"/>')  # fmt: skip
    middle = (frame.left + frame.right) / 2
    parts.append(_text(middle, frame.bottom + 35, x_label, "middle", "label"))
    if y_label:
        y = (frame.top + frame.bottom) / 2
        parts.append(f'<text class="label" transform="translate(12 {y:.1f}) rotate(-90)" text-anchor="middle">'
                     f"{_safe(y_label)}</text>")  # fmt: skip
    return "".join(parts)


def _draw_band(one: Series, frame: Frame) -> str:
    edges = [(x, low) for x, low, _ in one.band] + [(x, high) for x, _, high in reversed(one.band)]
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(frame.clamped, edges))
    return f'<polygon class="band {one.classes}" points="{corners}"/>'


def _draw_series(one: Series, frame: Frame) -> str:
    """The intervals, the line and the marks of a series."""
    tip = f"<title>{_safe(one.name)}</title>"
    at = [frame.at(point) for point in one.points]
    parts = []
    for (x, _), (low, high) in zip(at, one.y_intervals or (), strict=False):
        parts.append(f'<line class="error {one.classes}" x1="{x:.1f}" y1="{frame.up(low):.1f}" x2="{x:.1f}" '
                     f'y2="{frame.up(high):.1f}"/>')  # fmt: skip
    for (_, y), (low, high) in zip(at, one.x_intervals or (), strict=False):
        parts.append(f'<line class="error {one.classes}" x1="{frame.across(low):.1f}" y1="{y:.1f}" '
                     f'x2="{frame.across(high):.1f}" y2="{y:.1f}"/>')  # fmt: skip
    if one.look != "marks" and len(at) > 1:
        pieces = fading(at) if one.look == "path" else [(at, 1.0)]
        look = "thin" if one.look == "thin" else "line"
        for piece, opacity in pieces:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in piece)
            pale = f' stroke-opacity="{opacity:.2f}"' if opacity < 1 else ""
            parts.append(f'<polyline class="{look} {one.classes}" points="{path}"{pale}>{tip}</polyline>')
    marked = list(zip(one.points, at, strict=True))
    if one.look in ("line", "thin", "path") and len(at) > 1:
        marked = marked[-1:] if one.end else []
    for (x, y), (across, up) in marked:
        tip = f"<title>{_safe(one.name)}: {x:.4g}, {y:.4g}</title>"
        size = 4.5 if one.labels else 3
        parts.append(f'<circle class="mark {one.classes}" cx="{across:.1f}" cy="{up:.1f}" r="{size}">{tip}</circle>')
    return "".join(parts)


def _draw_outside(one: Series, frame: Frame) -> str:
    """A triangle at the edge for each outlier, pointing outwards."""
    parts = []
    for x, y in one.outside:
        across, up = frame.clamped((x, y))
        out_x = (x > frame.x[1]) - (x < frame.x[0])  # to the right or to the left
        out_y = 0 if out_x else (-1 if y > frame.y[1] else 1)  # up or down
        corners = [(out_x * 5, out_y * 5), (-out_y * 4 - out_x * 2, out_x * 4 - out_y * 2),
                   (out_y * 4 - out_x * 2, -out_x * 4 - out_y * 2)]  # fmt: skip
        points = " ".join(f"{across + dx - 5 * out_x:.1f},{up + dy - 5 * out_y:.1f}" for dx, dy in corners)
        tip = f"<title>{_safe(one.name)}: {x:.4g}, {y:.4g}, beyond the axis</title>"
        parts.append(f'<polygon class="mark {one.classes}" points="{points}">{tip}</polygon>')
    return "".join(parts)


def _point_labels(series: Sequence[Series], frame: Frame) -> str:
    """Names next to points, each placed where it overlaps no other name or point."""
    spots = [(one, one.name, frame.at(point)) for one in series for point in one.points]
    for one in series:
        for x, y in one.outside:
            beyond = y if frame.x[0] <= x <= frame.x[1] else x
            spots.append((one, f"{one.name}, at {beyond:.3g}", frame.clamped((x, y))))
    taken = [(x - 5, y - 5, x + 5, y + 5) for _, _, (x, y) in spots]
    parts = []
    for one, name, (x, y) in spots:
        size = len(name) * CHARACTER
        downs = (-7, 12, -21, 26, -35, 40, -49)
        places = [(side, y + down) for down in downs for side in (x + 9, x - 9 - size)]
        boxes = [(left, top - 6, left + size, top + 6) for left, top in places]
        inside = [box for box in boxes if box[0] >= frame.left and box[2] <= frame.right + 12
                  and box[1] >= 2 and box[3] <= frame.bottom + 6]  # fmt: skip
        box = next((box for box in inside if not any(_overlap(box, other) for other in taken)), (inside or boxes)[0])
        taken.append(box)
        parts.append(f'<text class="name {one.classes}" x="{box[0]:.1f}" y="{box[3] - 2:.1f}">{_safe(name)}</text>')
    return "".join(parts)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _legend_rows(entries: Sequence[tuple[str, str, str]], width: int) -> list[list[tuple[float, str, str, str]]]:
    """The entries without duplicates, each with its x position, in as many rows as needed."""
    rows: list[list[tuple[float, str, str, str]]] = []
    x = 0.0
    for classes, name, look in dict.fromkeys(entries):
        size = len(name) * CHARACTER + 40
        if not rows or x + size > width:
            rows.append([])
            x = 2.0
        rows[-1].append((x, classes, name, look))
        x += size
    return rows


def _legend(rows: Sequence[Sequence[tuple[float, str, str, str]]], top: float) -> str:
    parts = []
    for i, row in enumerate(rows):
        y = top + 20 * i + 6
        for x, classes, name, look in row:
            if look == "bar":
                parts.append(f'<rect class="bar {classes}" x="{x:.1f}" y="{y - 6:.1f}" width="12" height="12"/>')
            elif look != "marks":
                kind = "thin" if look == "thin" else "line"
                parts.append(
                    f'<line class="{kind} {classes}" x1="{x:.1f}" y1="{y:.1f}" x2="{x + 20:.1f}" y2="{y:.1f}"/>'
                )
            if look in ("marks", "both"):
                parts.append(f'<circle class="mark {classes}" cx="{x + 10:.1f}" cy="{y:.1f}" r="3"/>')
            parts.append(_text(x + (18 if look == "bar" else 26), y + 4, name, "start"))
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str, kind: str = "note") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_safe(text)}</text>'


def _safe(text: str) -> str:
    """Escapes text for XML; replaces control characters, which XML does not allow."""
    return html.escape("".join(c if c.isprintable() else "\ufffd" for c in text), quote=True)
