"""Figures of M-RewardBench (arXiv 2410.15522) from the results of several judges: sections of a page.

Figure 1, English against other languages, and Figure 2, the heat map, are drawn by
`evaluate.preferences.tables.heat_map`; Figures 3 to 7 and the table of translations here (spec m_rewardbench §6).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Found = Mapping[str, Any]
Records = Sequence[Mapping[str, Any]]
BINS = 30  # of rewards, as in the published plots
KAPPA_BINS = 10  # from −1 to 1, so that 0 and the paper's line at 0.60 are edges
SUBSTANTIAL = 0.6
TOP = 10  # judges of a heat map


def sections(models: Mapping[str, Found], records: Mapping[str, Mapping[str, Records]]) -> list[tuple[str, str]]:
    """(title, figure) of everything that there are results for.

    Args:
        models: `scores.json` by judge.
        records: the items of each judge by language.
    """
    drawn = [
        ("Change from English by section", drops(models)),
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


def _kinds(models: Mapping[str, Found]) -> list[str]:
    """The kinds of judges (reward model, implicit reward, language model), which have a colour each."""
    return list(dict.fromkeys(str(found.get("kind", "")) for found in models.values()))


def drops(models: Mapping[str, Found]) -> str:
    """The mean change of each section over languages, in points, and that of the average in percent of English."""
    from easylm_jax.evaluate.preferences.sections import SECTIONS
    from easylm_jax.evaluate.preferences.tables import shaded

    rows = []
    for name, found in models.items():
        changes = [each for each in found.get("drop", {}).values() if each.get("sections")]
        if not changes:
            continue
        cells = []
        for section in SECTIONS:
            values = [100 * each["sections"][section] for each in changes if section in each["sections"]]
            cells.append(_signed(sum(values) / len(values)) if values else "–")
        english, average = _value(found.get("english")), _value(found.get("average"))
        whole = math.nan if not english > 0 else 100 * (average - english) / english
        rows.append([name, *cells, "–" if math.isnan(whole) else _signed(whole)])
    if not rows:
        return ""
    head = ["judge", *(f"{section}, points" for section in SECTIONS), "average, % of English"]
    return shaded(head, [[(cell, None) for cell in row] for row in rows]) + _note(
        "Score in other languages minus score in English over the items in both, mean of languages; the last column is "
        "the change of the average of 23 languages."
    )


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _note(text: str) -> str:
    from easylm_jax.report import html

    return f'<p class="note">{html.safe(text)}</p>'


def _value(value: Any) -> float:
    return math.nan if value is None else float(value)


def agreement(models: Mapping[str, Found]) -> str:
    """Figure 3: Cohen's κ with English, the mean over languages and one standard deviation to either side."""
    from easylm_jax.report import plots

    known = {name: found for name, found in models.items() if found.get("kappa_mean") is not None}
    order = sorted(known, key=lambda name: (-known[name]["kappa_mean"], name))
    kinds = _kinds(known)
    bars, intervals, values = [], [], []
    for name in order:
        mean, spread = known[name]["kappa_mean"], known[name].get("kappa_std") or 0.0
        bars.append((name, [mean if known[name].get("kind", "") == kind else 0.0 for kind in kinds]))
        intervals.append((mean - spread, mean + spread))
        values.append(f"{mean:.2f} ± {spread:.2f}")
    chart = plots.bar_chart(bars, kinds, x_label="κ with English", values=values, intervals=intervals)
    return _figure(chart, "Mean and one standard deviation over languages; 1 is full agreement, 0 that of chance.")


def by_item(records: Mapping[str, Mapping[str, Records]]) -> str:
    """Figure 4: how many items have which κ between the judges' labels on them and on English, by section, and the
    share of each κ in every language."""
    from easylm_jax.evaluate.preferences.analyses import unanimity
    from easylm_jax.evaluate.preferences.languages import ENGLISH, LANGUAGES
    from easylm_jax.evaluate.preferences.sections import SECTIONS, SUBSETS
    from easylm_jax.evaluate.preferences.tables import shaded
    from easylm_jax.report import plots

    judges = [own for own in records.values() if ENGLISH in own]
    if len(judges) < 2:
        return ""
    counts = [[0.0] * len(SECTIONS) for _ in range(KAPPA_BINS)]
    unanimous, low, high, lines = 0, 0, 0, []
    for code in LANGUAGES:
        if not all(code in own for own in judges):
            continue
        found = unanimity([own[code] for own in judges], [own[ENGLISH] for own in judges])
        unanimous += found["unanimous"]
        own_counts = [0] * KAPPA_BINS
        for (_, subset), value in found["items"]:
            bin_ = _bin(value)
            own_counts[bin_] += 1
            counts[bin_][SECTIONS.index(SUBSETS[subset].section)] += 1
            low, high = low + (value < 0), high + (value >= SUBSTANTIAL)
        total = sum(own_counts)
        shares = [count / total if total else math.nan for count in own_counts]
        lines.append([(code, None), *((_percent(share), share) for share in shares), (str(found["unanimous"]), None)])
    edges = [-1 + 2 * at / KAPPA_BINS for at in range(KAPPA_BINS + 1)]
    names = [f"{low:.1f} to {high:.1f}".replace("-", "−") for low, high in zip(edges, edges[1:], strict=False)]
    total = int(sum(map(sum, counts)))
    chart = plots.bar_chart(
        list(zip(names, counts, strict=True)), SECTIONS, x_label="items of all languages, by κ and section",
        values=[f"{int(sum(row))}" for row in counts],
    )  # fmt: skip
    told = f"Of {total} items {low} have κ below 0 and {high} at least 0.60; {unanimous} more, on which all judges " \
           "agree in both languages, have no κ."  # fmt: skip
    table = shaded(["items in %, by κ", *names, "no κ"], lines)
    return _figure(chart, told) + table


def _bin(kappa: float) -> int:
    return min(KAPPA_BINS - 1, int((kappa + 1) / 2 * KAPPA_BINS + 1e-9))


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.0f}"


def dimensions(models: Mapping[str, Found]) -> str:
    """Figure 6: the score of languages by resource class, family and script, averaged over judges."""
    from easylm_jax.evaluate.preferences.languages import DIMENSIONS, LANGUAGES
    from easylm_jax.report import plots

    parts = []
    for dimension in DIMENSIONS:
        tables = [found["by"][dimension] for found in models.values() if found.get("by")]
        names = list(dict.fromkeys(name for table in tables for name in table))
        if dimension == "resources":
            names.sort(reverse=True)
        values = {name: [table[name] for table in tables if table.get(name) is not None] for name in names}
        means = {name: 100 * sum(own) / len(own) for name, own in values.items() if own}
        counted = {name: sum(str(getattr(one, dimension)) == name for one in LANGUAGES.values()) for name in means}
        bars = [(f"{'class ' * (dimension == 'resources')}{name} ({counted[name]})", [mean])
                for name, mean in means.items()]  # fmt: skip
        label = f"score by {'resource class' if dimension == 'resources' else dimension}, %"
        shown = [f"{mean:.1f}" for mean in means.values()]
        parts.append(_figure(plots.bar_chart(bars, ["score"], x_label=label, values=shown)))
    return "".join(parts) and "".join(parts) + _note(
        f"Mean of {len(models)} judges; in brackets, the number of languages."
    )


def translation(models: Mapping[str, Found]) -> str:
    """The accuracy on the translation task by difficulty and direction, the best judges first."""
    from easylm_jax.evaluate.preferences.items import TRANSLATION
    from easylm_jax.evaluate.preferences.tables import percent, shaded

    rows = {name: found[TRANSLATION] for name, found in models.items() if found.get(TRANSLATION)}
    best = sorted(rows, key=lambda name: (-_value(rows[name].get("score")), name))[:TOP]
    columns = list(dict.fromkeys(column for name in best for column in rows[name]))
    if not rows:
        return ""
    lines = [
        [(name, None), *((percent(rows[name].get(column)), _value(rows[name].get(column))) for column in columns)]
        for name in best
    ]
    return shaded(["accuracy, %", *("all" if name == "score" else name for name in columns)], lines)


def qualities(
    pairs: Mapping[str, tuple[Found, Found]], texts: Mapping[str, Mapping[str, tuple[str, str]]],
    results: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> list[tuple[str, str]]:  # fmt: skip
    """Figure 5: the same bench in two translations. The averages of each judge on both, and, where the texts are at
    hand, accuracy on the poorer one by the quality of its prompts.

    Args:
        pairs: (results on the poorer translation, on the better one) by judge.
        texts: by language and item, the prompt in the poorer and in the better translation.
        results: by judge and language, the result of each item of the poorer translation.
    """
    from easylm_jax.evaluate.preferences.analyses import quality_against_accuracy
    from easylm_jax.report import plots

    both = [
        plots.Series(name, [(0.0, 100 * worse["average"]), (1.0, 100 * better["average"])], at, "both")
        for at, (name, (worse, better)) in enumerate(pairs.items())
        if worse.get("average") is not None and better.get("average") is not None
    ]
    ends = {0.0: "poorer", 1.0: "better"}
    slopes = plots.line_chart(both, x_label="translation of the bench", y_label="average of 23 languages, %",
                              x_names=lambda x: ends.get(round(x, 6), ""), least=5.0)  # fmt: skip
    gains = [100 * (better["average"] - worse["average"]) for worse, better in pairs.values()
             if worse.get("average") is not None and better.get("average") is not None]  # fmt: skip
    told = ""
    if gains:
        span = f"{_signed(min(gains))} to {_signed(max(gains))}"
        told = f"The better translation changes the average by {span} points. Published: 1 to 3, from NLLB 3.3B to " \
               "Google Translate."  # fmt: skip
    found = [("Quality of the translation", _figure(slopes, told))] if slopes else []
    if not texts:
        return found
    series, notes = [], []
    for at, (name, own) in enumerate(results.items()):
        flat = {(code, key): value for code, rows in own.items() for key, value in rows.items()}
        worse = {(code, key): one for code, rows in texts.items() for key, (one, _) in rows.items()}
        better = {(code, key): one for code, rows in texts.items() for key, (_, one) in rows.items()}
        quality = quality_against_accuracy(worse, better, flat, bins=5)
        points = [(part["chrf"], 100 * part["accuracy"]) for part in quality["bins"]]
        spread = [_wilson(part["accuracy"], part["n"]) for part in quality["bins"]]
        series.append(plots.Series(name, points, at, "both", y_intervals=spread))
        notes.append(f"{name}: Spearman {quality['spearman']:+.2f}".replace("-", "−"))
    chart = plots.line_chart(series, x_label="chrF of the poorer prompt against the better one, fifths of the items",
                             y_label="accuracy, %", least=10.0)  # fmt: skip
    caption = f"Mean chrF {quality['chrf']:.1f}; bars are 95 % intervals of the accuracy. {'; '.join(notes)}."
    return [*found, ("Accuracy by quality of the translated prompt", _figure(chart, caption))]


def _wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share, in percent."""
    from easylm_jax.evaluate.statistics import share_interval

    low, high = share_interval(share * n, n)
    return 100 * low, 100 * high


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
    return _figure(plots.line_chart(series, x_label="score (reward)", y_label="answers", title=name, height=240))
