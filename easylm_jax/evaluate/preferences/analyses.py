"""Analyses of a judge over languages: sections, agreement with English, drops, groups of languages (spec §4 to §6)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from easylm_jax.evaluate.preferences import agreement
from easylm_jax.evaluate.preferences.items import TRANSLATION
from easylm_jax.evaluate.preferences.languages import (
    DIMENSIONS,
    ENGLISH,
    LANGUAGES,
    by_dimension,
    merged_chinese,
    summarise,
)
from easylm_jax.evaluate.preferences.sections import (
    RB2_DOMAINS,
    SECTIONS,
    SUBSETS,
    preference_sections,
    subset_means,
    ties_score,
)
from models.errors import UserError

Records = Sequence[Mapping[str, Any]]
ByLanguage = Mapping[str, Records]


def scores_of(records: Records, bench: str) -> dict[str, Any]:
    """The scores of one language (or of an English bench): subsets, sections, and rates of errors, flips and cuts.

    `bench` is "rewardbench", "m_rewardbench", "rewardbench2" or "pairs" (any other set: the plain mean).
    """
    pairs = [(row["subset"], row["result"]) for row in records]
    found: dict[str, Any] = {"n": len(records), "subsets": subset_means(pairs)}
    if bench == "rewardbench2":
        found |= rewardbench2(records)
    elif bench == "pairs":
        found["score"] = float(np.mean([result for _, result in pairs])) if pairs else math.nan
    else:
        found |= preference_sections(pairs, bench)
    asked = sum(len(row.get("verdicts", ())) for row in records)
    ordered = [row["flipped"] for row in records if row.get("flipped") is not None]
    found["ties"] = sum(_is_tie(row) for row in records)
    found["truncated"] = sum(bool(row.get("truncated")) for row in records)
    found["tokens"] = sum(row.get("tokens", 0) for row in records)
    if asked:
        found["error_rate"] = sum(row.get("errors", 0) for row in records) / asked
    if ordered:
        found["flip_rate"] = sum(ordered) / len(ordered)
    scored = [row["scores"] for row in records if row.get("kind") == "pair" and len(row.get("scores", ())) == 2]
    if scored:
        table = np.asarray(scored, np.float64)
        found["reward"] = {
            "chosen": float(table[:, 0].mean()), "chosen_std": float(table[:, 0].std()),
            "rejected": float(table[:, 1].mean()), "rejected_std": float(table[:, 1].std()),
            "margin": float((table[:, 0] - table[:, 1]).mean()),
        }  # fmt: skip
    return found


def _is_tie(row: Mapping[str, Any]) -> bool:
    scores = row.get("scores", ())
    return row.get("kind") == "pair" and len(scores) == 2 and scores[0] == scores[1]


def rewardbench2(records: Records) -> dict[str, Any]:
    """The six domains of RewardBench 2 and their plain mean."""
    unknown = sorted({row["subset"] for row in records} - set(RB2_DOMAINS))
    if unknown:
        raise UserError(f"RewardBench 2 has no subset {', '.join(unknown)[:200]}; it has {', '.join(RB2_DOMAINS)}")
    domains: dict[str, Any] = {}
    for name in RB2_DOMAINS:
        own = [row for row in records if row["subset"] == name]
        if own and name == "Ties":
            parts = [(row["id"], row["scores"][: row["correct"]], row["scores"][row["correct"] :]) for row in own]
            domains[name] = ties_score(parts)
        elif own:
            domains[name] = float(np.mean([row["result"] for row in own]))
    missing = [name for name in RB2_DOMAINS if name not in domains]
    domains["score"] = float(np.mean(list(domains.values()))) if domains else math.nan
    return {**domains, "missing": missing} if missing else domains


def labels_of(records: Records) -> dict[tuple[str, str], int]:
    """The label of each item by (id, subset): which side is preferred."""
    return {(str(row["id"]), row["subset"]): agreement.label_of(row["result"]) for row in records}


def analyse(records: ByLanguage, *, draws: int = 500, seed: int = 0) -> dict[str, Any]:
    """All that is known of one judge over the languages of M-RewardBench.

    `scores` and, beside English, `kappa`, `flips` and `drop` by language; the average over 23 languages with its
    deviation (NaN, and the missing ones, where one is missing); averages by resource class, family and script; κ
    between any two languages.
    """
    own = {code: records[code] for code in (ENGLISH, *LANGUAGES) if code in records}
    scores = {
        code: scores_of(rows, "rewardbench" if code == ENGLISH else "m_rewardbench") for code, rows in own.items()
    }
    others = {code: scores[code]["score"] for code in scores if code != ENGLISH}
    summary = summarise(others)
    found: dict[str, Any] = {
        "scores": scores, "average": summary.average, "deviation": summary.deviation,
        "missing_languages": list(summary.missing), "columns": merged_chinese(others),
        "by": {dimension: by_dimension(others, dimension) for dimension in DIMENSIONS},
    }  # fmt: skip
    labels = {code: labels_of(rows) for code, rows in own.items()}
    codes = list(labels)
    found["kappa_matrix"] = {a: {b: agreement.kappa_of(labels[a], labels[b]) for b in codes} for a in codes}
    if ENGLISH in own:
        found["english"] = scores[ENGLISH]["score"]
        found |= against_english(own, labels, draws=draws, seed=seed)
    if TRANSLATION in records:
        found[TRANSLATION] = translation(records[TRANSLATION])
    return found


def against_english(
    records: ByLanguage, labels: Mapping[str, Mapping[tuple[str, str], int]], *, draws: int, seed: int
) -> dict[str, Any]:  # fmt: skip
    """κ with its interval, flips and the drop of the score against English, for each language."""
    kappa, flips, drops = {}, {}, {}
    for code in records:
        if code == ENGLISH:
            continue
        common = [key for key in labels[code] if key in labels[ENGLISH]]
        a, b = ([labels[side][key] for key in common] for side in (code, ENGLISH))
        low, high = agreement.kappa_interval(a, b, draws=draws, seed=seed)
        kappa[code] = {"kappa": agreement.cohens_kappa(a, b), "low": low, "high": high, "n": len(common)}
        flips[code] = agreement.flip_rate(labels[code], labels[ENGLISH])
        drops[code] = drop(records[ENGLISH], records[code], draws=draws, seed=seed)
    values = [each["kappa"] for each in kappa.values() if not math.isnan(each["kappa"])]
    mean = float(np.mean(values)) if values else math.nan
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return {"kappa": kappa, "kappa_mean": mean, "kappa_std": spread, "flips": flips, "drop": drops}


def drop(english: Records, other: Records, *, draws: int = 500, seed: int = 0) -> dict[str, Any]:
    """Score and sections of a language minus those of English over the items in both, with the 95 % interval of the
    score (bootstrap of the items within each subset, the same items on both sides)."""
    key = lambda row: (str(row["id"]), row["subset"])  # noqa: E731
    base = {key(row): float(row["result"]) for row in english}
    shared = [(row["subset"], float(row["result"]), base[key(row)]) for row in other if key(row) in base]
    if not shared:
        return {"score": math.nan, "low": math.nan, "high": math.nan, "n": 0}
    subsets = list(dict.fromkeys(subset for subset, _, _ in shared))
    weights = _weights(subsets)
    values = {name: np.array([ours - theirs for subset, ours, theirs in shared if subset == name]) for name in subsets}
    rng = np.random.default_rng(seed)
    samples = np.zeros(draws)
    for name in subsets:
        samples += weights[name] * values[name][rng.integers(0, len(values[name]), (draws, len(values[name])))].mean(1)
    means = {name: float(each.mean()) for name, each in values.items()}
    low, high = np.quantile(samples, [0.025, 0.975])
    by_section = {}
    for section in SECTIONS:
        here = [name for name in subsets if SUBSETS[name].section == section]
        if here:
            total = sum(SUBSETS[name].m_rewardbench for name in here)
            by_section[section] = sum(SUBSETS[name].m_rewardbench * means[name] for name in here) / total
    score = sum(weights[name] * means[name] for name in subsets)
    return {"score": float(score), "low": float(low), "high": float(high), "n": len(shared), "sections": by_section}


def _weights(subsets: Sequence[str]) -> dict[str, float]:
    """The weight of each subset in the score: its share of its section, divided by the number of sections."""
    totals: dict[str, float] = {}
    for name in subsets:
        totals[SUBSETS[name].section] = totals.get(SUBSETS[name].section, 0.0) + SUBSETS[name].m_rewardbench
    return {
        name: SUBSETS[name].m_rewardbench / totals[SUBSETS[name].section] / len(totals) for name in subsets
    }  # fmt: skip


def translation(records: Records) -> dict[str, Any]:
    """The accuracy on the translation task by difficulty and direction, and over all pairs."""
    means = subset_means([(row["subset"].removeprefix("maple-"), row["result"]) for row in records])
    return {**means, "score": float(np.mean([row["result"] for row in records]))}


def across_models(averages: Mapping[str, float], english: Mapping[str, float]) -> dict[str, float]:
    """How the models' multilingual averages follow their English scores: Pearson's r and Spearman's ρ."""
    names = [
        name for name in averages if not math.isnan(averages[name]) and not math.isnan(english.get(name, math.nan))
    ]
    x, y = [english[name] for name in names], [averages[name] for name in names]
    return {"pearson": agreement.pearson(x, y), "spearman": agreement.spearman(x, y), "models": len(names)}


def between(judges: Mapping[str, ByLanguage], *, draws: int = 500, seed: int = 0) -> list[dict[str, Any]]:
    """How far any two judges prefer the same answers, over the items of all languages that both have judged.

    Returns:
        For each pair of judges `a` and `b`: κ of their labels with its 95 % interval ("kappa", "low", "high"), the
        share of equal labels ("equal"), the number of items ("n"), and κ of each language ("languages"). Without a
        common item "n" is 0 and the rest is NaN.
    """
    labels = {
        name: {code: labels_of(rows) for code, rows in records.items()} for name, records in judges.items()
    }  # fmt: skip
    names, found = list(labels), []
    for a, b in ((a, b) for at, a in enumerate(names) for b in names[at + 1 :]):
        codes = [code for code in labels[a] if code in labels[b]]
        both = [(labels[a][code][key], labels[b][code][key])
                for code in codes for key in labels[a][code] if key in labels[b][code]]  # fmt: skip
        first, second = [x for x, _ in both], [y for _, y in both]
        low, high = agreement.kappa_interval(first, second, draws=draws, seed=seed)
        equal = sum(x == y for x, y in both) / len(both) if both else math.nan
        found.append({
            "a": a, "b": b, "kappa": agreement.cohens_kappa(first, second), "low": low, "high": high, "equal": equal,
            "n": len(both), "languages": {code: agreement.kappa_of(labels[a][code], labels[b][code]) for code in codes},
        })  # fmt: skip
    return found


def unanimity(models: Sequence[Records], english: Sequence[Records]) -> dict[str, Any]:
    """Per-instance agreement of one language: of every item, κ between the labels of all models on it and on English.

    Returns:
        "items", (id and subset, κ) of each item, and "unanimous", the number of items on which every model gives one
        and the same label on both sides, which have no κ.
    """
    first, second = [labels_of(rows) for rows in models], [labels_of(rows) for rows in english]
    common = set.intersection(*(set(each) for each in (*first, *second)))
    values = [
        (key, agreement.cohens_kappa([m[key] for m in first], [m[key] for m in second])) for key in sorted(common)
    ]
    defined = [(key, value) for key, value in values if not math.isnan(value)]
    return {"items": defined, "unanimous": len(values) - len(defined)}


def quality_against_accuracy(
    translations: Mapping[str, str], references: Mapping[str, str], results: Mapping[str, float], bins: int = 4
) -> dict[str, Any]:  # fmt: skip
    """How accuracy follows the quality of translated prompts: chrF against a reference translation (sacrebleu), by id.

    Returns the mean chrF, Spearman's correlation of an item's chrF with its result, and accuracy by quantile of chrF.

    Raises:
        UserError: sacrebleu is not installed, or no id is in all three.
    """
    try:
        from sacrebleu.metrics import CHRF
    except ImportError:
        raise UserError("chrF needs sacrebleu: pip install 'easylm_jax[evals]'") from None
    common = [key for key in translations if key in references and key in results]
    if not common:
        raise UserError("no item has a translation, a reference and a result")
    metric = CHRF()
    quality = [float(metric.sentence_score(translations[key], [references[key]]).score) for key in common]
    right = [results[key] for key in common]
    order = np.argsort(quality, kind="stable")
    parts = [part for part in np.array_split(order, min(bins, len(order))) if len(part)]
    by_quality = [
        {"chrf": float(np.mean([quality[i] for i in part])), "accuracy": float(np.mean([right[i] for i in part])),
         "n": len(part)} for part in parts
    ]  # fmt: skip
    return {"chrf": float(np.mean(quality)), "spearman": agreement.spearman(quality, right), "bins": by_quality}
