"""The tables and figures of preference benches, as Markdown and as a page that loads nothing (spec §6)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from easylm_jax.evaluate.preferences.items import TRANSLATION
from easylm_jax.evaluate.preferences.languages import LANGUAGES
from easylm_jax.evaluate.preferences.sections import RB2_DOMAINS, SECTIONS
from easylm_jax.report import html, plots


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent, "–" for NaN and null."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"


def number(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def markdown(found: Mapping[str, Any]) -> str:
    """Everything that `analyses.analyse` or `scores_of` found, as tables."""
    parts = [f"# {found.get('bench', 'preferences')}: {found.get('model', '')} ({found.get('kind', '')})"]
    scores: Mapping[str, Mapping[str, Any]] = found["scores"]
    names = dict.fromkeys((*SECTIONS, *RB2_DOMAINS))  # Safety is of both
    columns = [name for name in names if any(name in each for each in scores.values())]
    rows = []
    for code, each in scores.items():
        cells = [percent(each.get(name)) for name in columns]
        more = [percent(each.get("flip_rate")), percent(each.get("error_rate")), str(each.get("truncated", 0))]
        rows.append([code, percent(each["score"]), *cells, str(each["n"]), str(each.get("ties", 0)), *more])
    parts.append(grid(["language", "score", *columns, "n", "ties", "flips", "errors", "cut"], rows))
    odd = list(found.get("oddities", {}).values())
    if odd:
        counts = {name: sum(each[name] for each in odd) for name in odd[0]}
        parts.append(
            "Scored and counted: " + ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in counts.items()) + "."
        )
    if "average" in found:
        missing = found["missing_languages"]
        said = f"missing: {', '.join(missing)}" if missing else "23 languages, English not among them"
        parts.append(f"Average {percent(found['average'])}, deviation {percent(found['deviation'])} ({said}).")
        for dimension, groups in found["by"].items():
            parts.append(grid([dimension, "score"], [[name, percent(value)] for name, value in groups.items()]))
    if found.get("kappa"):
        rows = [
            [code, number(each["kappa"]), f"{number(each['low'])} to {number(each['high'])}",
             percent(found["flips"][code]), percent(found["drop"][code]["score"]),
             f"{percent(found['drop'][code]['low'])} to {percent(found['drop'][code]['high'])}"]
            for code, each in found["kappa"].items()
        ]  # fmt: skip
        parts.append(grid(["against English", "κ", "95 %", "flips", "drop", "95 %"], rows))
        parts.append(f"κ {number(found['kappa_mean'])} ± {number(found['kappa_std'])} over languages.")
    if TRANSLATION in found:
        parts.append(grid([TRANSLATION, "accuracy"], [[k, percent(v)] for k, v in found[TRANSLATION].items()]))
    return "\n\n".join(parts) + "\n"


def heat_map(
    models: Mapping[str, Mapping[str, Any]], top: int = 10, more: Sequence[tuple[str, str]] = ()
) -> str:  # fmt: skip
    """A page with the paper's figures for some judges (`analyses.analyse` of each): the heat map of the best `top` by
    average, English against multilingual scores, and `more` sections (title, HTML)."""
    named = {name: found for name, found in models.items() if not math.isnan(_number(found["average"]))}
    best = sorted(named, key=lambda name: (-named[name]["average"], name))[:top] or list(models)[:top]
    shorts = list(dict.fromkeys(language.short for language in LANGUAGES.values()))
    values = [_number(models[name]["columns"].get(short)) for name in best for short in shorts]
    known = [value for value in values if not math.isnan(value)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    head = "".join(f"<th>{html.safe(cell)}</th>" for cell in ("judge", "avg", "var", *shorts))
    lines = []
    for name in best:
        own = [_number(models[name]["columns"].get(short)) for short in shorts]
        cells = "".join(_cell(value, low, high) for value in own)
        average, variance = percent(models[name]["average"]), _variance(own)
        lines.append(f"<tr><td>{html.safe(name)}</td><td>{average}</td><td>{variance}</td>{cells}</tr>")
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    points = [
        plots.Series(name, [(100 * found["english"], 100 * found["average"])], colour=at % plots.COLOURS, look="marks")
        for at, (name, found) in enumerate(named.items())
        if not math.isnan(_number(found.get("english")))
    ]
    sections = [("Judges and languages", table)]
    if points:
        chart = plots.line_chart(points, x_label="English", y_label="average of 23 languages")
        sections.append(("English against other languages", f"<figure>{chart}</figure>"))
    facts = [("judges", str(len(models))), ("languages", str(len(LANGUAGES)))]
    return html.document("M-RewardBench", "", facts, "", [*sections, *more])


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _variance(values: Sequence[float]) -> str:
    """The sample variance of scores in percent over the columns, as the paper prints it."""
    if len(values) < 2 or any(math.isnan(value) for value in values):
        return "–"
    mean = sum(values) / len(values)
    return f"{1e4 * sum((value - mean) ** 2 for value in values) / (len(values) - 1):.1f}"


def _cell(value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return "<td>–</td>"
    share = 0.5 if high == low else (value - low) / (high - low)
    colour = f"rgba(40, 110, 180, {0.08 + 0.6 * share:.2f})"
    return f'<td style="background:{colour}">{percent(value)}</td>'
