"""What a sweep says: its table in Markdown and its figure, each a section of one page that commands write."""

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
_PAPER = (
    "# How recipes scale\n\nWritten by `easylm plan RECIPE --sweep … --write FILE`, a section for each command; do not "
    "edit. Seconds are projections ([Planning](plan.md)); nothing was measured.\n"
)
_HOW = {
    "weak": "Weak scaling: the rows of a chip stay those of the recipe's own pod, so the batch grows with the pod.",
    "strong": "Strong scaling: the batch stays the recipe's, so every chip has fewer rows the more there are.",
}


def title(recipe: Recipe, point: Point, scaling: str) -> str:
    """A section's heading: what is run, and what is kept where pods differ."""
    return f"{report.described(point.stage, recipe).partition(';')[0]} ({recipe.name}), {scaling} scaling"


def write(path: Path, found: Sequence[Point], recipe: Recipe, scaling: str, command: str) -> None:
    """Puts the sweep's section into the page at `path`, in place of the one before, and its figure beside the page."""
    heading = title(recipe, found[0], scaling)
    name = "scale-" + re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") + ".svg"
    drawn = figure(found, heading)
    image = [f"![Seconds, tokens a second and memory by chips]({name})", ""] if drawn else []
    if drawn:
        (path.parent / name).write_text(drawn, encoding="utf-8")
    lines = [_line(cells) for cells in table(found)]
    lines.insert(1, _line(["---"] * len(table(found)[0])))
    how = _HOW[scaling]
    if recipe.decode_mesh is not None and found[0].stage.generates:
        how += f" Models write on `{recipe.decode_mesh}`."
    body = "\n".join([f"{how} Written by `{command}` with {report.versions()}.", "", *image, *lines, ""])
    old = path.read_text(encoding="utf-8") if path.is_file() else _PAPER
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
    """Where several sizes of pods fit: seconds, tokens a second and chip, and memory over chips, a line for each
    generation, policy and (unless chosen for the pod) mesh. Elsewhere the parts of a step as bars. "" of nothing."""
    fitting = [point for point in found if point.fits]
    if not fitting:
        return ""
    if len({point.topology.chips for point in fitting}) == 1:
        return _page([_bars(fitting)], heading)
    lines: dict[str, list[Point]] = {}
    for point in fitting:
        lines.setdefault(_line_of(point), []).append(point)
    charts = []
    for label, value in (
        ("seconds of a step", lambda point: point.seconds[1]),
        ("tokens/s a chip", lambda point: point.tokens_a_second),
        ("GiB of a device", lambda point: point.gib or 0.0),
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


def _line_of(point: Point) -> str:
    compute = getattr(point.stage, "compute", None)
    return f"{point.topology.chip.name}, remat {compute.remat if compute else '–'}"


def _bars(fitting: Sequence[Point]) -> str:
    parts = ("compute", "kernels", "exposed_collectives", "hidden_collectives")
    bars = []
    for point in fitting:
        said = (point.topology.name, point.mesh, _line_of(point).partition(", ")[2], getattr(point.stage, "batch", ""))
        bars.append((", ".join(str(one) for one in said), [point.part(name) for name in parts]))
    return plots.bar_chart(
        bars, ("compute", "kernels", "network, waited for", "network, hidden"), x_label="seconds of a step",
        values=[f"{point.tokens_a_second:,.0f} tokens/s a chip" for point in fitting], width=900,
    )  # fmt: skip


def _page(charts: Sequence[str], heading: str) -> str:
    """Charts one below the other, as a file of its own."""
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
