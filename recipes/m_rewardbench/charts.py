"""Figures of M-RewardBench (arXiv 2410.15522, Figures 2 to 6) from the results of several judges: sections of a page.

The heat map and English against other languages are drawn by `evaluate.preferences.tables.heat_map`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Found = Mapping[str, Any]
Records = Sequence[Mapping[str, Any]]
BINS = 30  # of rewards, as in the published plots
KAPPA_BINS = 10  # from −1 to 1


def sections(models: Mapping[str, Found], records: Mapping[str, Mapping[str, Records]]) -> list[tuple[str, str]]:
    """(title, figure) of everything that there are results for.

    Args:
        models: `scores.json` by judge.
        records: the items of each judge by language.
    """
    drawn = [
        ("Agreement of each judge with its English verdicts", agreement(models)),
        ("Agreement of judges by item", by_item(records)),
        ("Resource class, family and script", dimensions(models)),
        ("Translation", translation(models)),
        ("Rewards of chosen and rejected answers", "".join(rewards(name, own) for name, own in records.items())),
    ]
    return [(title, body) for title, body in drawn if body]


def _figure(svg: str, caption: str = "") -> str:
    from easylm_jax.report import html

    return f"<figure>{svg}<figcaption>{html.safe(caption)}</figcaption></figure>" if svg else ""


def agreement(models: Mapping[str, Found]) -> str:
    """Cohen's κ with English: the mean over languages and one standard deviation to either side, judges sorted."""
    from easylm_jax.report import plots

    known = {name: found for name, found in models.items() if found.get("kappa_mean") is not None}
    order = sorted(known, key=lambda name: (-known[name]["kappa_mean"], name))
    series = []
    for at, name in enumerate(order):
        mean, spread = known[name]["kappa_mean"], known[name].get("kappa_std") or 0.0
        series.append(plots.Series(
            name, [(float(at + 1), mean)], colour=at, look="marks", y_intervals=[(mean - spread, mean + spread)]
        ))  # fmt: skip
    return _figure(plots.line_chart(series, x_label="judge", y_label="κ with English", least=0.1),
                   "Mean over 23 languages, bars one standard deviation.")  # fmt: skip


def by_item(records: Mapping[str, Mapping[str, Records]]) -> str:
    """How many items of all languages have which κ between the judges' labels on them and on English."""
    from easylm_jax.evaluate.preferences.analyses import unanimity
    from easylm_jax.evaluate.preferences.languages import ENGLISH, LANGUAGES
    from easylm_jax.report import plots

    judges = [own for own in records.values() if ENGLISH in own]
    if len(judges) < 2:
        return ""
    counts, unanimous = [0] * KAPPA_BINS, 0
    for code in LANGUAGES:
        if all(code in own for own in judges):
            found = unanimity([own[code] for own in judges], [own[ENGLISH] for own in judges])
            unanimous += found["unanimous"]
            for value in found["kappas"]:
                counts[min(KAPPA_BINS - 1, int((value + 1) / 2 * KAPPA_BINS))] += 1
    edges = [-1 + 2 * at / KAPPA_BINS for at in range(KAPPA_BINS + 1)]
    bars = [(f"{low:.1f} to {high:.1f}", [float(count)])
            for low, high, count in zip(edges, edges[1:], counts, strict=False)]  # fmt: skip
    chart = plots.bar_chart(bars, ["items"], x_label="items", values=[str(count) for count in counts])
    return _figure(chart, f"{unanimous} items on which all judges agree in both languages have no κ.")


def dimensions(models: Mapping[str, Found]) -> str:
    """The score of languages by resource class, family and script, averaged over judges."""
    from easylm_jax.evaluate.preferences.languages import DIMENSIONS
    from easylm_jax.report import plots

    parts = []
    for dimension in DIMENSIONS:
        tables = [found["by"][dimension] for found in models.values() if found.get("by")]
        names = list(dict.fromkeys(name for table in tables for name in table))
        values = {name: [table[name] for table in tables if table.get(name) is not None] for name in names}
        means = {name: 100 * sum(own) / len(own) for name, own in values.items() if own}
        bars = [(name, [mean]) for name, mean in means.items()]
        shown = [f"{mean:.1f}" for mean in means.values()]
        parts.append(_figure(plots.bar_chart(bars, ["score"], x_label=f"score by {dimension}", values=shown)))
    return "".join(parts)


def translation(models: Mapping[str, Found]) -> str:
    """The accuracy on the translation task by difficulty and direction, a row for each judge."""
    from easylm_jax.evaluate.preferences.items import TRANSLATION
    from easylm_jax.evaluate.preferences.tables import percent
    from easylm_jax.report import html

    rows = {name: found[TRANSLATION] for name, found in models.items() if found.get(TRANSLATION)}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    if not rows:
        return ""
    head = "".join(f"<th>{html.safe(cell)}</th>" for cell in ("judge", *columns))
    lines = [
        f"<tr><td>{html.safe(name)}</td>" + "".join(f"<td>{percent(row.get(column))}</td>" for column in columns)
        for name, row in rows.items()
    ]
    return f"<table><thead><tr>{head}</tr></thead><tbody>{'</tr>'.join(lines)}</tr></tbody></table>"


def rewards(name: str, records: Mapping[str, Records]) -> str:
    """The histogram of a judge's scores of chosen and of rejected answers, over all languages."""
    from easylm_jax.report import plots

    pairs = [row["scores"] for own in records.values() for row in own
             if row.get("kind") == "pair" and len(row.get("scores", ())) == 2]  # fmt: skip
    values = [value for pair in pairs for value in pair]
    low, high = (min(values), max(values)) if values else (0.0, 0.0)
    if low == high:
        return ""
    series = []
    for at, side in enumerate(("chosen", "rejected")):
        counts = [0] * BINS
        for pair in pairs:
            counts[min(BINS - 1, int((pair[at] - low) / (high - low) * BINS))] += 1
        points = [(low + (high - low) * (bin_ + 0.5) / BINS, float(count)) for bin_, count in enumerate(counts)]
        series.append(plots.Series(side, points, colour=at))
    return _figure(plots.line_chart(series, x_label="score", y_label="answers", title=name, height=240))
