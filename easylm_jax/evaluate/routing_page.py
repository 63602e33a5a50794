"""Tables and figures of routing analyses (`routing_run.results`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from easylm_jax.report import html, plots
from easylm_jax.report.figures import Figure
from easylm_jax.report.plots import Series
from easylm_jax.runtime import processes
from easylm_jax.runtime.files import atomic_write, write_json

_CELL = 9  # pixels of a cell of a heat map


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
    lines = [
        f"routing of {result['run']} on {result['text']}: {experts} experts, {k} active, {result['layers']} layers; "
        "means over layers",
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
    lines.append(f"independent routers agree in {1 / experts:.1%} (k=1) and {k / experts:.1%} (k={k})")
    for name, domain in result["domains"].items():
        largest = [max(layer) for layer in domain["shares"][str(k)]]
        shown = ", ".join(
            f"layer {layer} {share:.1%}" for layer, share in zip(result["shown_layers"], largest, strict=True)
        )
        lines.append(
            f"{name}, {domain['tokens']:,} tokens: the most used expert gets {shown} (uniform {k / experts:.1%})"
        )
    return "\n".join(lines)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def page(result: dict[str, Any]) -> str:
    """The figures: saturation over training, vocabulary by depth, co-activation, domains."""
    k, shown = result["active"], result["shown_layers"]
    training = [_over_training(result, str(n)) for n in dict.fromkeys((1, k))] if len(result["steps"]) > 1 else []
    together = [
        heat_map(matrix, title=f"Layer {layer}: share of the tokens of expert i (row) that j computes too")
        for layer, matrix in zip(shown, result["coactivation"], strict=True)
    ]
    domains = [
        heat_map(
            [domain["shares"][str(k)][place] for domain in result["domains"].values()],
            title=f"Layer {layer}: share of a domain's tokens by expert",
            rows=list(result["domains"]),
        )
        for place, layer in enumerate(shown)
    ]
    sections = [
        ("Tables", f"<pre>{html.safe(text(result))}</pre>"),
        ("Saturation", _drawn(training)),
        ("Vocabulary specialisation", _drawn([_by_depth(result)])),
        ("Co-activation", _drawn(together)),
        ("Domain specialisation", _drawn(domains)),
    ]
    facts = [("experts", str(result["experts"])), ("active", str(k)), ("layers", str(result["layers"]))]
    return html.document("Routing", result["run"], facts, "", sections)


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
    left, top = (110 if rows else 4), 22
    cells = [
        f'<rect x="{left + _CELL * j}" y="{top + _CELL * i}" width="{_CELL}" height="{_CELL}" '
        f'style="fill:var(--c0);opacity:{value / largest:.3f}"><title>{i}, {j}: {value:.4f}</title></rect>'
        for i, row in enumerate(matrix)
        for j, value in enumerate(row)
    ]
    names = [
        f'<text class="note" x="{left - 4}" y="{top + _CELL * (i + 1) - 1}" text-anchor="end">{html.safe(name)}</text>'
        for i, name in enumerate(rows or ())
    ]
    width, height = left + _CELL * len(matrix[0]) + 4, top + _CELL * len(matrix) + 4
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{html.safe(title)}"><text class="title" x="2" y="15">{html.safe(title)} (darkest: '
        f"{largest:.3f})</text>{''.join(cells)}{''.join(names)}</svg>"
    )
