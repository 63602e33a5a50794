"""The tables and figures of preference benches, as Markdown and as a page that loads nothing (spec §6)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from easylm_jax.evaluate.preferences.agreement import pearson, spearman
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
    if found.get("beside"):
        parts.append(agreement(found["beside"], "beside"))
    if TRANSLATION in found:
        parts.append(grid([TRANSLATION, "accuracy"], [[k, percent(v)] for k, v in found[TRANSLATION].items()]))
    return "\n\n".join(parts) + "\n"


def agreement(pairs: Sequence[Mapping[str, Any]], head: str = "judges") -> str:
    """A table of the agreement between judges (`analyses.between`)."""
    name = lambda each: each["b"] if head == "beside" else f"{each['a']}, {each['b']}"  # noqa: E731
    rows = [
        [name(each), str(each["n"]), percent(each["equal"]), number(each["kappa"]),
         f"{number(each['low'])} to {number(each['high'])}"] for each in pairs
    ]  # fmt: skip
    return grid([head, "items", "equal verdicts, %", "κ", "95 %"], rows)


def heat_map(
    models: Mapping[str, Mapping[str, Any]], top: int = 10, more: Sequence[tuple[str, str]] = ()
) -> str:  # fmt: skip
    """A page with the paper's figures for some judges (`analyses.analyse` of each): the heat map of the best `top` by
    average (Figure 2), English against multilingual scores (Figure 1), and `more` sections (title, HTML)."""
    named = {name: found for name, found in models.items() if not math.isnan(_number(found["average"]))}
    best = sorted(named, key=lambda name: (-named[name]["average"], name))[:top] or list(models)[:top]
    shorts = list(dict.fromkeys(language.short for language in LANGUAGES.values()))
    lines = []
    for name in best:
        own = [_number(models[name]["columns"].get(short)) for short in shorts]
        cells = [(percent(value), value) for value in own]
        lines.append([(name, None), (percent(models[name]["average"]), None), (_variance(own), None), *cells])
    note = (
        '<p class="note">Scores in %; avg is the mean of 23 languages, var the variance over the columns, where both '
    )
    table = shaded(["judge", "avg", "var", *shorts], lines) + f"{note}forms of Chinese are one.</p>"
    sections = [("Judges and languages", table)]
    chart = _english(named)
    if chart:
        sections.append(("English against other languages", f"<figure>{chart}</figure>"))
    facts = [("judges", str(len(models))), ("languages", str(len(LANGUAGES)))]
    return html.document("M-RewardBench", "", facts, "", [*sections, *more])


def _english(models: Mapping[str, Mapping[str, Any]]) -> str:
    """English against the average, a colour for each kind of judge, with the line on which both are equal."""
    known = {name: found for name, found in models.items() if not math.isnan(_number(found.get("english")))}
    kinds = list(dict.fromkeys(str(found.get("kind", "")) for found in known.values()))
    points, named = [], set[str]()
    for name, found in known.items():
        kind = str(found.get("kind", ""))
        at = (100 * found["english"], 100 * found["average"])
        colour = kinds.index(kind) % plots.COLOURS
        points.append(plots.Series(name, [at], colour=colour, look="marks", in_legend=False, labels=True))
        if kind not in named:  # a legend of kinds: the names stand at the points
            points.append(plots.Series(kind, [at], colour=colour, look="marks"))
        named.add(kind)
    chart = plots.line_chart(points, x_label="English, %", y_label="average of 23 languages, %", diagonal=True)
    if not chart:
        return ""
    sides = [[found[side] for found in known.values()] for side in ("english", "average")]
    told = "On the line a judge is as good in other languages as in English."
    if len(known) > 2:
        told += f" Pearson's r {pearson(*sides):.2f}, Spearman's ρ {spearman(*sides):.2f} over {len(known)} judges."
    return f"{chart}<figcaption>{told.replace(' -', ' −')}</figcaption>"


def shaded(head: Sequence[str], rows: Sequence[Sequence[tuple[str, float | None]]]) -> str:
    """A table as HTML of (text, value) cells: those with a value are the darker the larger it is."""
    known = [value for row in rows for _, value in row if value is not None and not math.isnan(value)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    names = "".join(f"<th{' class=words' if not at else ''}>{html.safe(cell)}</th>" for at, cell in enumerate(head))
    lines = []
    for row in rows:
        cells = "".join(
            f"<td{' class=words' if not at else ''}{_shade(value, low, high)}>{html.safe(text)}</td>"
            for at, (text, value) in enumerate(row)
        )
        lines.append(f"<tr>{cells}</tr>")
    table = f"<table><thead><tr>{names}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _variance(values: Sequence[float]) -> str:
    """The sample variance of scores in percent over the columns, as the paper prints it."""
    if len(values) < 2 or any(math.isnan(value) for value in values):
        return "–"
    mean = sum(values) / len(values)
    return f"{1e4 * sum((value - mean) ** 2 for value in values) / (len(values) - 1):.1f}"


def _shade(value: float | None, low: float, high: float) -> str:
    if value is None or math.isnan(value):
        return ""
    share = 0.5 if high == low else (value - low) / (high - low)
    return f' style="background:rgba(40, 110, 180, {0.05 + 0.5 * share:.2f})"'
