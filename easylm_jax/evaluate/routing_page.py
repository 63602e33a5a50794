"""Tables and figures of routing analyses (`routing_run.analyse`, `routing_published.analyse`)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from easylm_jax.report import html, plots
from easylm_jax.report.figures import Figure
from easylm_jax.report.plots import Series
from easylm_jax.runtime import processes
from easylm_jax.runtime.files import atomic_write, write_json

_CELL, _LARGEST = 9, 24  # pixels of a cell of a heat map, at least and at most
_ROOM = 64 * _CELL  # the width of all cells of a row, where it is not wider
_NAMED = 14  # the least height of cells where rows have names
_FLOWS = 40  # drawn of a pair of layers


def write(folder: Path, result: dict[str, Any]) -> None:
    """Writes `routing.json` and `routing.html`, from the first process."""
    if not processes.is_first_process():
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "routing.json", result)
    with atomic_write(folder / "routing.html") as file:
        file.write(page(result).encode())


def text(result: dict[str, Any]) -> str:
    """The tables as text: a line for each checkpoint, then for each domain."""
    k, experts = result["active"], result["experts"]
    sizes = f"{experts} experts, {k} active, {result['layers']} layers"
    lines = _step_lines(result, sizes) if result["steps"] else [f"counts of {result['run']}: {sizes}"]
    for name, domain in result["domains"].items():
        largest = [max(layer) for layer in domain["shares"][str(k)]]
        shown = ", ".join(
            f"layer {layer} {share:.1%}" for layer, share in zip(result["shown_layers"], largest, strict=True)
        )
        lines.append(
            f"{name}, {domain['tokens']:,} tokens: the most used expert gets {shown} (uniform {k / experts:.1%}); "
            f"load {_mean(domain['load_max']):.2f} to {_mean(domain['load_min']):.2f} of the mean, entropy "
            f"{_mean(domain['load_entropy']):.2f} of {math.log(experts):.2f}"
        )
    return "\n".join(lines)


def _step_lines(result: dict[str, Any], sizes: str) -> list[str]:
    k, experts = result["active"], result["experts"]
    lines = [
        f"routing of {result['run']} on {result['text']}: {sizes}; means over layers",
        f"{'step':>9} {'progress':>9} {'saturation k=1':>15} {f'k={k}':>7} {'load max':>9} {'min':>6} {'entropy':>8} "
        f"{'vocabulary: input':>18} {'next':>6} {'predicted':>10}",
    ]
    for one in result["steps"]:
        words = [_mean(one["vocabulary"][name]["mean"]) for name in ("ids", "following", "predicted")]
        lines.append(
            f"{one['step']:>9} {one['progress']:>9.1%} {_mean(one['saturation']['1']):>15.1%} "
            f"{_mean(one['saturation'][str(k)]):>7.1%} {_mean(one['load_max']):>9.2f} {_mean(one['load_min']):>6.2f} "
            f"{_mean(one['router_entropy']):>8.3f} {words[0]:>18.1%} {words[1]:>6.1%} {words[2]:>10.1%}"
        )
    return [*lines, f"independent routers agree in {1 / experts:.1%} (k=1) and {k / experts:.1%} (k={k})"]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def page(result: dict[str, Any]) -> str:
    """The figures: saturation over training, vocabulary by depth, co-activation, domains, flow between layers."""
    k, shown = result["active"], result["shown_layers"]
    several = len(result["steps"]) > 1
    together = [
        heat_map(matrix, title=f"Layer {layer}: share of the tokens of expert i (row) that j computes too")
        for layer, matrix in zip(shown, result["coactivation"], strict=False)
    ]
    flows = [flow_chart(name, domain["flows"], result["experts"]) for name, domain in result["domains"].items()]
    sections = [
        ("Tables", f"<pre>{html.safe(text(result))}</pre>"),
        ("Saturation", _drawn([_over_training(result, str(n)) for n in dict.fromkeys((1, k)) if several])),
        ("Vocabulary specialisation", _drawn([_by_depth(result)] if result["steps"] else [])),
        ("Co-activation", _drawn(together)),
        ("Domain specialisation", _drawn(_domains(result))),
        ("Flow between layers", html.grid([Figure(flow) for flow in flows if flow])),
    ]
    facts = [("experts", str(result["experts"])), ("active", str(k)), ("layers", str(result["layers"]))]
    return html.document("Routing", result["run"], facts, "", sections)


def _domains(result: dict[str, Any]) -> list[str]:
    """For each layer the shares of all experts of every domain, as they are numbered and in the order of size."""
    k, experts, charts = result["active"], result["experts"], []
    for place, layer in enumerate(result["shown_layers"]):
        shares = {name: domain["shares"][str(k)][place] for name, domain in result["domains"].items()}
        title = f"Layer {layer}: share of a domain's tokens by expert"
        charts.append(heat_map(list(shares.values()), title=title, rows=list(shares)))
        series = [
            Series(name, [(i + 1.0, 100 * share) for i, share in enumerate(sorted(found, reverse=True))], colour)
            for colour, (name, found) in enumerate(shares.items())
        ]
        uniform = Series("uniform", [(1.0, 100 * k / experts), (float(experts), 100 * k / experts)], 5, "thin")
        title = f"Layer {layer}: experts of each domain, most used first"
        charts.append(
            plots.line_chart([*series, uniform], x_label="rank", y_label="share of the tokens, %", title=title)
        )
    return charts


def _drawn(charts: list[str]) -> str:
    return html.drawn([Figure(chart) for chart in charts])


def _over_training(result: dict[str, Any], k: str) -> str:
    layers = range(result["layers"])
    series = [
        Series(
            f"layer {layer}", [(100 * s["progress"], 100 * s["saturation"][k][layer]) for s in result["steps"]], layer
        )
        for layer in layers
    ]
    title = f"Router saturation, k = {k}"
    return plots.line_chart(series, x_label="training, %", y_label="experts of the last step, %", title=title)


def _by_depth(result: dict[str, Any]) -> str:
    names = {"ids": "input token", "following": "next token", "predicted": "predicted token"}
    last = result["steps"][-1]["vocabulary"]
    series = [
        Series(label, [(float(layer), 100 * share) for layer, share in enumerate(last[name]["mean"])], colour)
        for colour, (name, label) in enumerate(names.items())
    ]
    title = "Vocabulary specialisation"
    return plots.line_chart(series, x_label="layer", y_label="largest share of an expert, %", title=title)


def heat_map(matrix: list[list[float]], *, title: str, rows: list[str] | None = None) -> str:
    """A matrix as cells whose darkness is the value over the largest one; a tooltip has the value."""
    largest = max((value for row in matrix for value in row), default=0.0) or 1.0
    wide = min(_LARGEST, max(_CELL, _ROOM // len(matrix[0])))
    left, top, tall = (110, 22, max(_NAMED, wide)) if rows else (4, 22, wide)
    cells = [
        f'<rect x="{left + wide * j}" y="{top + tall * i}" width="{wide}" height="{tall}" '
        f'style="fill:var(--c0);opacity:{value / largest:.3f}"><title>{i}, {j}: {value:.4f}</title></rect>'
        for i, row in enumerate(matrix)
        for j, value in enumerate(row)
    ]
    names = [
        f'<text class="note" x="{left - 4}" y="{top + tall * (i + 0.5) + 4}" text-anchor="end">{html.safe(name)}</text>'
        for i, name in enumerate(rows or ())
    ]
    title = f"{title} (darkest: {largest:.3f})"
    width = max(left + wide * len(matrix[0]) + 4, int(len(title) * plots.CHARACTER * 1.2))
    height = top + tall * len(matrix) + 4
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{html.safe(title)}"><text class="title" x="2" y="15">{html.safe(title)}</text>'
        f"{''.join(cells)}{''.join(names)}</svg>"
    )


def flow_chart(name: str, flows: dict[str, list[list[float]]], experts: int) -> str:
    """Tokens of a domain by their first experts in neighbouring layers, a column each, expert 0 on top: the largest
    flows of each pair of layers, as wide as their share of the tokens. "" without flows."""
    drawn = {pair: sorted(found, key=lambda flow: -flow[2])[:_FLOWS] for pair, found in flows.items()}
    largest = max((flow[2] for found in drawn.values() for flow in found), default=0.0)
    if not largest:
        return ""
    top, tall, wide = 46, 260, 150
    columns = [40 + wide * i for i in range(len(drawn) + 1)]
    labels = [pair.partition("-")[0] for pair in drawn] + [list(drawn)[-1].partition("-")[2]]
    up = [top + tall * (i + 0.5) / experts for i in range(experts)]
    lines = [
        f'<line x1="{left}" y1="{up[int(i)]:.1f}" x2="{left + wide}" y2="{up[int(j)]:.1f}" style="stroke:var(--c0);'
        f'stroke-width:{0.5 + 7 * share / largest:.2f};opacity:{0.25 + 0.6 * share / largest:.2f}">'
        f"<title>{int(i)} to {int(j)}: {share:.2%}</title></line>"
        for left, found in zip(columns, drawn.values(), strict=False)
        for i, j, share in found
    ]
    dots = [f'<circle cx="{x}" cy="{y:.1f}" r="1.6" style="fill:var(--soft)"/>' for x in columns for y in up]
    heads = [
        f'<text class="note" x="{x}" y="{top - 8}" text-anchor="middle">layer {html.safe(label)}</text>'
        for x, label in zip(columns, labels, strict=True)
    ]
    title = f"{name} (widest: {largest:.1%} of the tokens)"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {columns[-1] + 40} {top + tall + 6}" role="img" '
        f'aria-label="{html.safe(title)}"><text class="title" x="2" y="15">{html.safe(title)}</text>'
        f"{''.join(heads)}{''.join(lines)}{''.join(dots)}</svg>"
    )
