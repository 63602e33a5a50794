"""The 23 languages of M-RewardBench, and scores over them (spec m_rewardbench §2.2, §4).

Names are the dataset's configurations (FLORES-200 codes). Resource class (Joshi et al. 2020), family and script are
general linguistic facts: the paper's own table is not public, so they may be corrected here.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import NamedTuple

ENGLISH = "eng_Latn"


class Language(NamedTuple):
    """`short` labels plots, `name` is passed to judges; `resources` is the class from 0 (least) to 5."""

    short: str
    name: str
    script: str
    family: str
    resources: int


_IE, _SEMITIC = "Indo-European", "Afro-Asiatic"
LANGUAGES: dict[str, Language] = {
    "arb_Arab": Language("ar", "Arabic", "Arab", _SEMITIC, 5),
    "ces_Latn": Language("cs", "Czech", "Latn", _IE, 4),
    "deu_Latn": Language("de", "German", "Latn", _IE, 5),
    "ell_Grek": Language("el", "Greek", "Grek", _IE, 3),
    "fra_Latn": Language("fr", "French", "Latn", _IE, 5),
    "heb_Hebr": Language("he", "Hebrew", "Hebr", _SEMITIC, 3),
    "hin_Deva": Language("hi", "Hindi", "Deva", _IE, 4),
    "ind_Latn": Language("id", "Indonesian", "Latn", "Austronesian", 3),
    "ita_Latn": Language("it", "Italian", "Latn", _IE, 4),
    "jpn_Jpan": Language("ja", "Japanese", "Jpan", "Japonic", 5),
    "kor_Hang": Language("ko", "Korean", "Hang", "Koreanic", 4),
    "nld_Latn": Language("nl", "Dutch", "Latn", _IE, 4),
    "pes_Arab": Language("fa", "Persian", "Arab", _IE, 4),
    "pol_Latn": Language("pl", "Polish", "Latn", _IE, 4),
    "por_Latn": Language("pt", "Portuguese", "Latn", _IE, 4),
    "ron_Latn": Language("ro", "Romanian", "Latn", _IE, 3),
    "rus_Cyrl": Language("ru", "Russian", "Cyrl", _IE, 4),
    "spa_Latn": Language("es", "Spanish", "Latn", _IE, 5),
    "tur_Latn": Language("tr", "Turkish", "Latn", "Turkic", 4),
    "ukr_Cyrl": Language("uk", "Ukrainian", "Cyrl", _IE, 3),
    "vie_Latn": Language("vi", "Vietnamese", "Latn", "Austroasiatic", 4),
    "zho_Hans": Language("zh", "Chinese_Simplified", "Hans", "Sino-Tibetan", 5),
    "zho_Hant": Language("zh", "Chinese_Traditional", "Hant", "Sino-Tibetan", 5),
}
DIMENSIONS = ("resources", "family", "script")


class LanguageSummary(NamedTuple):
    """The mean of a model's scores over all 23 languages, and their sample standard deviation."""

    average: float
    deviation: float
    missing: tuple[str, ...]


def summarise(scores: Mapping[str, float]) -> LanguageSummary:
    """The summary of a score for each language; English is left out, both forms of Chinese count.

    A model that lacks a language has no average (NaN), not one over fewer languages.
    """
    missing = tuple(code for code in LANGUAGES if math.isnan(scores.get(code, math.nan)))
    if missing:
        return LanguageSummary(math.nan, math.nan, missing)
    values = [scores[code] for code in LANGUAGES]
    return LanguageSummary(statistics.fmean(values), statistics.stdev(values), ())


def by_dimension(scores: Mapping[str, float], dimension: str) -> dict[str, float]:
    """The mean score of the languages of each resource class, family or script, most languages first."""
    groups: dict[str, list[float]] = {}
    for code, language in LANGUAGES.items():
        if not math.isnan(scores.get(code, math.nan)):
            groups.setdefault(str(getattr(language, dimension)), []).append(scores[code])
    ordered = sorted(groups, key=lambda name: (-len(groups[name]), name))
    return {name: statistics.fmean(groups[name]) for name in ordered}


def merged_chinese(scores: Mapping[str, float]) -> dict[str, float]:
    """The 22 columns of the paper's heat map by short name: both forms of Chinese are averaged into `zh`."""
    columns: dict[str, list[float]] = {}
    for code, language in LANGUAGES.items():
        columns.setdefault(language.short, []).append(scores.get(code, math.nan))
    return {short: statistics.fmean(values) for short, values in columns.items()}
