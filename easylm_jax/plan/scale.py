"""Writes the results of a sweep, as a Markdown table and a figure, into a section of a page."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from easylm_jax.config import Recipe
from easylm_jax.plan import report
from easylm_jax.plan.sweep import Point, table
from easylm_jax.report import plots
from easylm_jax.report.style import STYLE

_WIDTH, _HEIGHT = 640, 300
_HEADER = (
    "# How recipes scale\n\nWritten by `easylm plan RECIPE --sweep … --write FILE`, one section per command; do not "
    "edit. Seconds are projections ([Planning](plan.md)); nothing was measured.\n"
)
_EXPLANATIONS = {
    "weak": "Weak scaling: the rows per chip are those of the recipe's own pod, so the batch grows with the pod.",
    "strong": "Strong scaling: the batch is the recipe's, so more chips have fewer rows each.",
}


def title(recipe: Recipe, point: Point, scaling: str) -> str:
    """The heading of a section: what is run, and whether scaling is strong or weak."""
    return f"{report.described(point.stage, recipe).partition(';')[0]} ({recipe.name}), {scaling} scaling"


def write(path: Path, found: Sequence[Point], recipe: Recipe, scaling: str, command: str) -> None:
    """Writes a sweep's section into the page at `path`, replacing an earlier one, and its figure next to it."""
    heading = title(recipe, found[0], scaling)
    name = "scale-" + re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") + ".svg"
    drawn = figure(found, heading)
    image = [f"![Step time, tokens per second and memory by number of chips]({name})", ""] if drawn else []
    if drawn:
        (path.parent / name).write_text(drawn, encoding="utf-8")
    lines = [_line(cells) for cells in table(found)]
    lines.insert(1, _line(["---"] * len(table(found)[0])))
    how = _EXPLANATIONS[scaling]
    if recipe.decode_mesh is not None and found[0].stage.generates:
        how += f" Models generate on `{recipe.decode_mesh}`."
    body = "\n".join([f"{how} Written by `{command}` with {report.versions()}.", "", *image, *lines, ""])
    old = path.read_text(encoding="utf-8") if path.is_file() else _HEADER
    sections = re.split(r"(?m)^## ", old)
    new = f"{heading}\n\n{body}\n"
    kept = [new if one.startswith(f"{heading}\n") else one for one in sections]
    if new not in kept:
        kept[-1] = kept[-1].rstrip("\n") + "\n\n"
        kept.append(new)
    path.write_text("## ".join(kept).rstrip("\n") + "\n", encoding="utf-8")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def figure(found: Sequence[Point], heading: str) -> str:
    """An SVG. If pods of several sizes fit: step time, tokens per second per chip, and memory against the number of
    chips, one line per chip generation and remat policy. Otherwise bars of the parts of a step. "" if nothing fits."""
    fitting = [point for point in found if point.fits]
    if not fitting:
        return ""
    if len({point.topology.chips for point in fitting}) == 1:
        return _page([_bars(fitting)], heading)
    lines: dict[str, list[Point]] = {}
    for point in fitting:
        lines.setdefault(_series_name(point), []).append(point)
    charts = []
    for label, value in (
        ("step time, s", lambda point: point.seconds[1]),
        ("tokens/s per chip", lambda point: point.tokens_per_second),
        ("GiB per device", lambda point: point.gib or 0.0),
    ):  # fmt: skip
        series = [
            plots.Series(name, [(math.log2(point.topology.chips), value(point)) for point in own], i, look="both")
            for i, (name, own) in enumerate(lines.items())
        ]
        charts.append(plots.line_chart(
            series, x_label="chips", y_label=label, width=_WIDTH, height=_HEIGHT, legend=len(series) > 1,
            x_names=lambda power: f"{2**power:,.0f}",
        ))  # fmt: skip
    return _page(charts, heading)


def _series_name(point: Point) -> str:
    compute = getattr(point.stage, "compute", None)
    return f"{point.topology.chip.name}, remat {compute.remat if compute else '–'}"


def _bars(fitting: Sequence[Point]) -> str:
    parts = ("compute", "kernels", "exposed_collectives", "hidden_collectives")
    bars = []
    for point in fitting:
        remat = _series_name(point).partition(", ")[2]
        labels = (point.topology.name, point.mesh, remat, getattr(point.stage, "batch", ""))
        bars.append((", ".join(map(str, labels)), [point.part(name) for name in parts]))
    return plots.bar_chart(
        bars, ("compute", "kernels", "network, exposed", "network, overlapped"), x_label="step time, s",
        values=[f"{point.tokens_per_second:,.0f} tokens/s per chip" for point in fitting], width=900,
    )  # fmt: skip


def _page(charts: Sequence[str], heading: str) -> str:
    """The charts below each other, as one SVG file."""
    sizes = [tuple(int(x) for x in re.findall(r'viewBox="0 0 (\d+) (\d+)"', chart)[0]) for chart in charts]
    width, height = max(w for w, _ in sizes), sum(h for _, h in sizes) + 24
    drawn, top = [], 24
    for chart, (_, high) in zip(charts, sizes, strict=True):
        drawn.append(f'<g transform="translate(0 {top})">{re.sub("^<svg[^>]*>|</svg>$", "", chart)}</g>')
        top += high
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{heading}">'
        f'<style>{STYLE}</style><rect width="100%" height="100%" fill="var(--paper)"/>'
        f'<text class="title" x="4" y="16">{heading}</text>{"".join(drawn)}</svg>\n'
    )
